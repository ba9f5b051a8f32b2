//! Everything one node runs for one release.

use std::collections::BTreeMap;

use dify_common::ids::ReleaseId;
use dify_common::wire::edge::{Refusal, Route, Upstream};
use dify_common::wire::status::Finding;

use crate::engine::spec::{ContainerSpec, FirewallRule, NetworkSpec};

/// What a node runs and how it is reached.
#[derive(Debug, Clone)]
pub struct Stack {
    /// The release.
    pub release: ReleaseId,
    /// Networks, created before any container.
    pub networks: Vec<NetworkSpec>,
    /// Rules of this machine's packet filter, applied before any container.
    pub firewall: Vec<FirewallRule>,
    /// Long-running containers in start order: whatever serves first, then the
    /// rest. `after` of each holds inside this order.
    pub containers: Vec<ContainerSpec>,
    /// One-shot that migrates the main schema (`MODE=migration`).
    pub migration: ContainerSpec,
    /// One-shot template for `flask ARGS` (`MODE=job`); the caller sets `command`.
    pub job: ContainerSpec,
    /// Commands (flask arguments) run once per release after the migration.
    pub post_migration: Vec<Vec<String>>,
    /// What the edge forwards to, by name.
    pub upstreams: BTreeMap<String, Upstream>,
    /// Front-door routes.
    pub routes: Vec<Route>,
    /// Paths the front door refuses in any case.
    pub refusals: Vec<Refusal>,
    /// Paths the front door refuses until Dify's setup is finished, when no
    /// `INIT_PASSWORD` is configured.
    pub setup_refusals: Vec<Refusal>,
    /// What an operator should know.
    pub findings: Vec<Finding>,
    /// The connection budget behind the sizes.
    pub budget: Budget,
}

impl Stack {
    /// Every image reference, one-shots included; some more than once.
    pub fn images(&self) -> impl Iterator<Item = &str> {
        let specs = self.containers.iter().chain([&self.migration, &self.job]);
        specs.map(|spec| spec.image.as_str())
    }
}

/// Connections the whole fleet may open, to be held against each server's
/// `max_connections`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// To the main server.
    pub database: u32,
    /// The arithmetic in words: `(api 2 x 15 + worker 1 x 15 + ...) x 4 VMs = 240`.
    pub database_arithmetic: String,
    /// To the vector server.
    pub vector: u32,
    /// The arithmetic in words.
    pub vector_arithmetic: String,
}

/// The VM, as far as sizes depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Cores.
    pub cores: u32,
    /// Bytes of memory.
    pub memory: u64,
}
