//! `dify-supervisor` will roll releases across a managed instance group: it
//! drives Google's own updater and autoscaler, one canary first, and goes back
//! when the verdict is bad.
//!
//! **None of that is here yet.** The crate exists so that its place in the
//! workspace, its arrows (it depends on `dify-common` and never on the agent)
//! and its name are settled. What it and the agent say to each other is settled
//! too: `dify_common::wire::status`, which agents answer on port 1081.

/// Version of this program, as `dify-supervisor version` prints it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
