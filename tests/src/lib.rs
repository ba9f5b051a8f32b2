//! The harness: everything a fleet meets in production, for real where a
//! machine allows it, on sockets that a test can cut.
//!
//! ```text
//!  bed (one per run)            fleet (one per test)              node
//!  PostgreSQL, main       <──── link ─┐
//!  PostgreSQL, pgvector   <──── link ─┤                           dify-agent run
//!  Redis (one per fleet)  <──── link ─┼── agents and containers   dify-edge
//!  docker-registry        <──── link ─┤                           containers
//!  simulated Google Cloud ────────────┘
//! ```
//!
//! Nothing here is shared with the shipped programs but their wire types.

pub mod bed;
pub mod broken;
pub mod catalog;
pub mod cert;
pub mod child;
pub mod config;
pub mod docker;
pub mod dockerd;
pub mod fleet;
pub mod images;
pub mod link;
pub mod logs;
pub mod node;
pub mod program;
pub mod secrets;
pub mod socket;
pub mod stores;
pub mod systemd;
pub mod tmpfs;
pub mod wait;

pub use broken::{Broken, Doing, Outcome};
