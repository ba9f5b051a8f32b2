//! Brings the node to its wanted state and keeps it there.
//!
//! [`plan`] decides, purely; [`part`] remembers what was seen of each
//! container.

pub mod part;
pub mod plan;
pub mod probe;
