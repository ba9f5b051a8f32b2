//! Brings the node to its wanted state and keeps it there.
//!
//! [`plan`] decides, purely; [`part`] remembers what was seen of each
//! container.

pub mod drain;
pub mod local;
pub mod part;
pub mod plan;
pub mod probe;
