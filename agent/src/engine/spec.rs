//! What should run, as data: made by the wiring, carried out by the engine,
//! compared by the plan.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use dify_common::secret::Secret;

/// A value in a container's environment.
#[derive(Debug, Clone)]
pub enum EnvValue {
    /// May be shown.
    Plain(String),
    /// Never shown; prints redacted. Also for values that contain a secret,
    /// such as a broker URL.
    Secret(Secret),
}

/// One container.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// Dify's service name, such as `worker_beat`.
    pub service: String,
    /// Name on the engine: `dify-NODE-SERVICE`.
    pub name: String,
    /// Reference to run, by digest unless unlocked: `repo@sha256:...` or `repo:tag`.
    pub image: String,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub command: Option<Vec<String>>,
    /// Host name inside, when it matters: celery names its node by it.
    pub hostname: Option<String>,
    /// `uid[:gid]`, when not the image's own.
    pub user: Option<String>,
    /// Exactly the variables this service takes.
    pub env: BTreeMap<String, EnvValue>,
    /// Files shown to the container read-only.
    pub files: Vec<FileMount>,
    /// Named volumes (node-local).
    pub volumes: Vec<VolumeMount>,
    /// Networks, the first one first.
    pub networks: Vec<Attachment>,
    /// Resource limits.
    pub limits: Limits,
    /// Capabilities dropped, such as `NET_RAW`; `ALL` drops all.
    pub cap_drop: Vec<String>,
    /// Capabilities added after the drop.
    pub cap_add: Vec<String>,
    /// `no-new-privileges`.
    pub no_new_privileges: bool,
    /// Signal that asks it to stop, when not the image's own.
    pub stop_signal: Option<String>,
    /// Time between that signal and SIGKILL.
    pub stop_timeout: Duration,
    /// When it counts as ready.
    pub probe: Probe,
    /// Services that must be ready first.
    pub after: Vec<String>,
    /// Readiness of the node needs it.
    pub serving: bool,
    /// Order of stopping: lower stops first.
    pub stop_order: u32,
}

/// A file of ours inside a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMount {
    /// Absolute path in the container.
    pub path: String,
    /// The content; never a secret.
    pub content: String,
    /// Unix mode, such as `0o444`.
    pub mode: u32,
}

/// A named volume inside a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// Name on the engine: `dify-NODE-NAME`.
    pub volume: String,
    /// Absolute path in the container.
    pub path: String,
}

/// A container on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Network name on the engine.
    pub network: String,
    /// Fixed address on it.
    pub address: Ipv4Addr,
    /// Names other containers on it reach this one by.
    pub aliases: Vec<String>,
}

/// Resource limits; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Relative share of a busy CPU (1024 is the default weight).
    pub cpu_shares: Option<u32>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// How readiness is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// `GET http://ADDRESS:PORT/PATH` answers 200.
    Http {
        /// Port in the container.
        port: u16,
        /// Path and query.
        path: String,
        /// One answer's deadline.
        deadline: Duration,
    },
    /// The port accepts a connection: only for what speaks no HTTP.
    Tcp {
        /// Port in the container.
        port: u16,
    },
    /// A command in the container exits 0. Slow for Python; asked at start only.
    Exec {
        /// The command.
        command: Vec<String>,
        /// One run's deadline.
        deadline: Duration,
    },
    /// Running for this long without an exit.
    Running {
        /// How long.
        stable_for: Duration,
    },
}

/// One network of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Name on the engine: `dify-NODE-NAME`.
    pub name: String,
    /// First address of the subnet.
    pub subnet: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
    /// Address of the bridge on this machine.
    pub gateway: Ipv4Addr,
    /// No route out (Docker's `internal`).
    pub internal: bool,
    /// Driver options, such as `com.docker.network.bridge.enable_icc`.
    pub options: BTreeMap<String, String>,
}

/// A rule for this machine's own packet filter, applied before any container
/// starts and checked again whenever Docker or the agent restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirewallRule {
    /// Packets that come in on `bridge` for an address of this machine itself
    /// are dropped, unless they answer a connection this machine made:
    /// `iptables -I INPUT -i BRIDGE -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP`.
    /// Without it a container on an internal network still reaches whatever
    /// listens on this machine by the bridge's own address.
    CloseHost {
        /// Interface name of the network, as in [`BRIDGE_NAME`].
        bridge: String,
        /// First address of the network's subnet, for filters that go by source.
        subnet: Ipv4Addr,
        /// Its prefix length.
        prefix: u8,
    },
}

/// Docker's bridge driver option that fixes the interface's name
/// (docs.docker.com, "Bridge network driver").
pub const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// Labels on everything this agent creates. What lacks them is not ours.
pub mod label {
    /// The node.
    pub const NODE: &str = "io.dify-fleet.node";
    /// Dify's service name.
    pub const SERVICE: &str = "io.dify-fleet.service";
    /// Keyed hash of the spec: changed spec, replaced container.
    pub const SPEC: &str = "io.dify-fleet.spec";
    /// Release it was made for.
    pub const RELEASE: &str = "io.dify-fleet.release";
    /// `one-shot` on containers that run once and are removed.
    pub const ROLE: &str = "io.dify-fleet.role";
    /// On one-shots, the process that will remove it: `PID:STARTTIME` as in
    /// `/proc/PID/stat`, so that a reused PID is not taken for it.
    pub const OWNER: &str = "io.dify-fleet.owner";
}
