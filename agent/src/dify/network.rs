//! The node's networks: one /24, cut so that user code can reach its proxy and
//! nothing else.
//!
//! ```text
//!  main     .0/26    api  web  plugin_daemon  worker ...   ssrf_proxy    route out
//!  code     .64/27   api  worker ------ :8194 ------->     ssrf_proxy    internal
//!  sandbox  .96/27                     sandbox <- :8194 -  ssrf_proxy    internal
//!                                      sandbox - :3128 ->
//! ```
//!
//! A Docker bridge lets all its members talk, so a network that holds both api
//! and sandbox would let user code connect to api:5001. Here no network does.
//! The sandbox shares one with the proxy alone; api and worker reach it over a
//! second one, where the proxy answers under the name `sandbox` and relays port
//! 8194 (Dify's own squid template did so up to 1.14.2). What would leave an
//! internal bridge Docker drops on every version and with any packet-filter
//! backend; nothing depends on filtering inside a bridge, which needs
//! br_netfilter, or on routing between bridges, which Docker 28 forbids.
//!
//! One hole is left to us: a container on an internal network still reaches
//! this machine itself, by the address of any of its bridges (seen with Docker
//! 20.10: a database or a front door that listens on all addresses is open to
//! user code). [`FirewallRule::CloseHost`] closes it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dify_common::ids::NodeId;

use crate::config::settings::NodeNetwork;
use crate::engine::spec::{BRIDGE_NAME, FirewallRule, NetworkSpec};
use crate::release::manifest::Network;

/// Host number of the first service; .1 is the bridge.
const FIRST: u8 = 2;
/// Host numbers of the one-shots, behind the services.
pub(super) const MIGRATION: usize = 26;
/// See [`MIGRATION`].
pub(super) const JOB: usize = 27;

/// The cut of one node's /24.
#[derive(Debug, Clone)]
pub(super) struct Plan<'a> {
    pub(super) node: &'a NodeId,
    pub(super) range: NodeNetwork,
}

struct Cut {
    word: &'static str,
    /// Ends the bridge's interface name.
    letter: char,
    offset: u8,
    prefix: u8,
    internal: bool,
    /// Code of users runs on it.
    untrusted: bool,
}

fn cut(network: Network) -> Cut {
    let (word, letter, offset, prefix, internal, untrusted) = match network {
        Network::Main => ("main", 'm', 0, 26, false, false),
        Network::Code => ("code", 'c', 64, 27, true, false),
        Network::Sandbox => ("sandbox", 's', 96, 27, true, true),
        Network::Agent => ("agent", 'a', 128, 27, true, true),
        Network::AgentProxy => ("agent-proxy", 'p', 160, 27, true, true),
    };
    Cut { word, letter, offset, prefix, internal, untrusted }
}

impl Plan<'_> {
    /// Name on the engine.
    pub(super) fn name(&self, network: Network) -> String {
        format!("dify-{}-{}", self.node, cut(network).word)
    }

    /// Fixed address of the service at `index` of the manifest's list.
    pub(super) fn address(&self, network: Network, index: usize) -> Ipv4Addr {
        let index = u8::try_from(index).expect("the check bounds the number of services");
        self.host(cut(network).offset + FIRST + index)
    }

    /// `a.b.c.d/n`.
    pub(super) fn subnet(&self, network: Network) -> String {
        let cut = cut(network);
        format!("{}/{}", self.host(cut.offset), cut.prefix)
    }

    pub(super) fn spec(&self, network: Network) -> NetworkSpec {
        let cut = cut(network);
        NetworkSpec {
            name: self.name(network),
            subnet: self.host(cut.offset),
            prefix: cut.prefix,
            gateway: self.host(cut.offset + 1),
            internal: cut.internal,
            options: BTreeMap::from([(BRIDGE_NAME.to_owned(), self.bridge(&cut))]),
        }
    }

    pub(super) fn rule(&self, network: Network) -> Option<FirewallRule> {
        let cut = cut(network);
        cut.untrusted.then(|| FirewallRule::CloseHost {
            bridge: self.bridge(&cut),
            subnet: self.host(cut.offset),
            prefix: cut.prefix,
        })
    }

    /// At most 15 characters (Linux's IFNAMSIZ), unique where the /24 is.
    fn bridge(&self, cut: &Cut) -> String {
        let [a, b, c, _] = self.range.base.octets();
        format!("dify-{a:02x}{b:02x}{c:02x}-{}", cut.letter)
    }

    fn host(&self, last: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.range.base.octets();
        Ipv4Addr::new(a, b, c, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Network; 5] =
        [Network::Main, Network::Code, Network::Sandbox, Network::Agent, Network::AgentProxy];

    #[test]
    fn networks_do_not_overlap_and_hold_every_address() {
        let node: NodeId = "vm-1".parse().expect("an id");
        let plan = Plan { node: &node, range: NodeNetwork { base: Ipv4Addr::new(10, 88, 1, 0) } };
        let mut end = 0_u32;
        for network in ALL {
            let spec = plan.spec(network);
            let first = spec.subnet.to_bits();
            assert!(first >= end, "{spec:?}");
            end = first + (1 << (32 - spec.prefix));
            assert!(plan.address(network, JOB).to_bits() < end - 1);
            assert!(spec.options[BRIDGE_NAME].len() <= 15);
            assert_eq!(spec.internal, network != Network::Main);
        }
        assert!(end <= Ipv4Addr::new(10, 88, 2, 0).to_bits());
    }
}
