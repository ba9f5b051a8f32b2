//! What an edge instance is told: flags, each with an environment variable of
//! the same meaning for the systemd unit. Read once; exit code 64 when wrong.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use dify_common::telemetry::LogMode;

/// The data plane on port 1080: streams requests to Dify's containers.
#[derive(Debug, Clone, Parser)]
#[command(name = "dify-edge", version, about, args_override_self = true)]
pub struct Settings {
    /// Which instance this is; `a` and `b` take turns in an upgrade
    #[arg(long, env = "DIFY_EDGE_INSTANCE", default_value = "a")]
    pub instance: Instance,
    /// Unix socket on which the agent gives orders
    #[arg(long, env = "DIFY_EDGE_AGENT_SOCKET", default_value = "/run/dify-agent/edge.sock")]
    pub agent_socket: PathBuf,
    /// Directory for the last orders and the listen address
    #[arg(long, env = "DIFY_EDGE_STATE_DIR", default_value = "/var/lib/dify-edge")]
    pub state_dir: PathBuf,
    /// Address to listen on when systemd hands over no socket; port 0 takes a free one
    #[arg(long, env = "DIFY_EDGE_LISTEN", default_value = "0.0.0.0:1080")]
    pub listen: SocketAddr,
    /// Threads that serve; default: one per core
    #[arg(long, env = "DIFY_EDGE_THREADS")]
    pub threads: Option<NonZeroUsize>,
    /// Client connections above which only health is answered
    #[arg(long, env = "DIFY_EDGE_MAX_CONNECTIONS", default_value_t = 20_000)]
    pub max_connections: u32,
    /// Networks whose X-Forwarded-For is believed and extended; others' is replaced.
    /// Default: Google's load balancers and loopback
    #[arg(long, env = "DIFY_EDGE_TRUST", value_delimiter = ',',
          default_values_t = Network::DEFAULT)]
    pub trust: Vec<Network>,
    /// Phase bounds
    #[command(flatten)]
    pub timeouts: Timeouts,
    /// On SIGTERM without a drain ordered: how long new requests are still served.
    /// Default: three failed probes of the load balancer, 10 s apart
    #[arg(long, env = "DIFY_EDGE_DRAIN_NOTICE", default_value = "30s", value_parser = humantime::parse_duration)]
    pub drain_notice: Duration,
    /// On SIGTERM without a drain ordered: when what remains is cut
    #[arg(long, env = "DIFY_EDGE_DRAIN_BOUND", default_value = "25m", value_parser = humantime::parse_duration)]
    pub drain_bound: Duration,
    /// auto, journald, json or text
    #[arg(long, env = "DIFY_EDGE_LOG_MODE", default_value = "auto", value_parser = LogMode::from_str)]
    pub log_mode: LogMode,
    /// What to log, in tracing's directive syntax
    #[arg(long, env = "DIFY_EDGE_LOG", default_value = "info")]
    pub log: String,
}

/// Bounds per phase of an exchange. None of them bounds the whole: a stream
/// lasts as long as it lasts.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Timeouts {
    /// From the first byte of a request head to its last
    #[arg(long = "head-timeout", env = "DIFY_EDGE_HEAD_TIMEOUT", default_value = "10s", value_parser = humantime::parse_duration)]
    pub head: Duration,
    /// Idle client connection; must outlast the load balancer's 600 s
    #[arg(long, env = "DIFY_EDGE_KEEP_ALIVE", default_value = "650s", value_parser = humantime::parse_duration)]
    pub keep_alive: Duration,
    /// From the request to the head of its answer (Dify's nginx: 3600 s)
    #[arg(long = "response-timeout", env = "DIFY_EDGE_RESPONSE_TIMEOUT", default_value = "3600s", value_parser = humantime::parse_duration)]
    pub response: Duration,
    /// Silence within a body or a tunnel (Dify's nginx: 3600 s)
    #[arg(long = "idle-timeout", env = "DIFY_EDGE_IDLE_TIMEOUT", default_value = "3600s", value_parser = humantime::parse_duration)]
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            keep_alive: Duration::from_secs(650),
            response: Duration::from_hours(1),
            idle: Duration::from_hours(1),
        }
    }
}

/// Names an instance in reports, logs and file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance(String);

/// Not an instance name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an instance is named by 1 to 16 of a-z, 0-9 and '-'")]
pub struct InvalidInstance;

impl FromStr for Instance {
    type Err = InvalidInstance;

    fn from_str(text: &str) -> Result<Self, InvalidInstance> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let valid = (1..=16).contains(&text.len()) && text.chars().all(allowed);
        valid.then(|| Self(text.to_owned())).ok_or(InvalidInstance)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Not a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a network such as 10.0.0.0/8")]
pub struct InvalidNetwork;

impl Network {
    /// Source ranges of Google's load balancers and health checks (Cloud Load
    /// Balancing, "Firewall rules"), and loopback. Regional load balancers come
    /// from the proxy-only subnet, which the operator adds.
    const DEFAULT: [Self; 4] = [
        Self::v4([35, 191, 0, 0], 16),
        Self::v4([130, 211, 0, 0], 22),
        Self::v4([127, 0, 0, 0], 8),
        Self { address: IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), bits: 128 },
    ];

    const fn v4(octets: [u8; 4], bits: u8) -> Self {
        let [a, b, c, d] = octets;
        Self { address: IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, d)), bits }
    }

    /// The address lies within.
    pub fn contains(&self, address: IpAddr) -> bool {
        let shift = |width: u8| u32::from(width - self.bits);
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.checked_shr(shift(128)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (address, bits) = text.split_once('/').ok_or(InvalidNetwork)?;
        let address: IpAddr = address.parse().map_err(|_| InvalidNetwork)?;
        let bits: u8 = bits.parse().map_err(|_| InvalidNetwork)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Self { address, bits }).ok_or(InvalidNetwork)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_what_they_promise() {
        let settings = Settings::try_parse_from(["dify-edge"]).expect("defaults are valid");
        assert_eq!(settings.listen.port(), 1080);
        assert!(settings.timeouts.keep_alive > Duration::from_mins(10));
        let documented = Timeouts::default();
        assert_eq!(settings.timeouts.idle, documented.idle);
        assert_eq!(settings.timeouts.head, documented.head);
        for (address, trusted) in [
            ("35.191.7.7", true),
            ("130.211.3.255", true),
            ("130.211.4.0", false),
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("::1", true),
            ("172.17.0.2", false),
        ] {
            let address: IpAddr = address.parse().expect("an address");
            let found = settings.trust.iter().any(|network| network.contains(address));
            assert_eq!(found, trusted, "{address}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "--instance=../a",
            "--threads=0",
            "--trust=10.0.0.0/33",
            "--trust=x/8",
            "--listen=1080",
            "--idle-timeout=7",
        ] {
            assert!(Settings::try_parse_from(["dify-edge", bad]).is_err(), "{bad}");
        }
        let all: Network = "0.0.0.0/0".parse().expect("a network");
        assert!(all.contains(IpAddr::from([8, 8, 8, 8])));
    }
}
