//! `dify-agent`: takes a bare VM to a serving Dify and keeps it there.
//!
//! ```text
//! Booting -> Preflight -> Pulling -> Gating -> Starting -> Serving <-> Degraded
//!    any phase -> Failed(kind) -> (what can change is watched) -> Booting
//!    any phase -> Draining -> Stopped
//! ```
//!
//! Control plane only: root, Docker socket, metadata, secrets, no public
//! listener. Traffic is `dify-edge`'s, which goes on when this process does not.

pub mod app;
pub mod backends;
pub mod board;
pub mod cli;
pub mod config;
pub mod dify;
pub mod engine;
pub mod exit;
pub mod failure;
pub mod front;
pub mod gate;
pub mod intent;
pub mod notify;
pub mod ops;
pub mod prepare;
pub mod reconcile;
pub mod registry;
pub mod release;
pub mod secrets;
