//! What the engine holds, as far as one node is concerned.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// One look at the engine. Everything the plan needs, and nothing cached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// This node's long-running containers, by name.
    pub containers: BTreeMap<String, ObservedContainer>,
    /// This node's one-shots, by name.
    pub one_shots: BTreeMap<String, OneShot>,
    /// This node's networks, by name.
    pub networks: BTreeMap<String, ObservedNetwork>,
    /// This node's volumes.
    pub volumes: BTreeSet<String>,
    /// Names of containers that are not this node's.
    pub foreign_containers: BTreeSet<String>,
    /// Networks that are not this node's, by name, with their IPv4 subnets.
    pub foreign_networks: BTreeMap<String, Vec<Subnet>>,
}

/// A long-running container of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedContainer {
    /// Engine's id.
    pub id: String,
    /// Dify's service name.
    pub service: String,
    /// Keyed hash of the spec it was made from.
    pub spec: String,
    /// Release it was made for.
    pub release: String,
    /// Reference it was made from.
    pub image: String,
    /// Networks and the fixed addresses on them.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// What it does now.
    pub state: RunState,
    /// Grace between its stop signal and SIGKILL, as it was created with.
    pub stop_timeout: Duration,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// Never started.
    Created,
    /// Runs.
    Running {
        /// Since when, RFC 3339 as the engine writes it: changes with each start.
        since: String,
        /// Process id on this machine.
        pid: u32,
    },
    /// Ran and ended.
    Exited {
        /// Exit code; 128 + n for signal n.
        code: i64,
        /// The kernel killed it for want of memory.
        oom: bool,
        /// When, RFC 3339 as the engine writes it.
        at: String,
    },
    /// Paused, dead or being removed: no state of ours.
    Odd(String),
}

impl RunState {
    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }
}

/// A container that runs once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneShot {
    /// Engine's id.
    pub id: String,
    /// The process that started it is gone, and nobody will remove it.
    pub orphan: bool,
}

/// A network of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNetwork {
    /// Engine's id.
    pub id: String,
    /// Hash of the spec it was made from.
    pub spec: String,
}

/// An IPv4 subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// First address.
    pub base: Ipv4Addr,
    /// Prefix length, 0 to 32.
    pub prefix: u8,
}

impl Subnet {
    /// Reads `10.0.0.0/8`.
    pub fn parse(text: &str) -> Option<Self> {
        let (base, prefix) = text.split_once('/')?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
        Some(Self { base: base.parse().ok()?, prefix })
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        let shorter = self.prefix.min(other.prefix);
        let mask = u32::MAX.checked_shl(32 - u32::from(shorter)).unwrap_or(0);
        self.base.to_bits() & mask == other.base.to_bits() & mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_overlap_when_one_holds_the_other() {
        for (a, b, expected) in [
            ("10.0.0.0/8", "10.1.2.0/24", true),
            ("10.1.2.0/24", "10.1.3.0/24", false),
            ("0.0.0.0/0", "192.168.0.0/16", true),
            ("10.1.2.128/25", "10.1.2.0/25", false),
        ] {
            let (a, b) = (Subnet::parse(a).expect(a), Subnet::parse(b).expect(b));
            assert_eq!((a.overlaps(b), b.overlaps(a)), (expected, expected));
        }
        assert_eq!(Subnet::parse("10.0.0.0/33"), None);
        assert_eq!(Subnet::parse("fd00::/8"), None);
    }
}
