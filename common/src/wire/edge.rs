//! What agent and edge say to each other over the agent's unix socket:
//! one JSON document a line, [`Orders`] towards the edge, [`Report`] back.
//!
//! The agent listens; each edge instance connects, gets the present orders at
//! once and again on every change and every [`HEARTBEAT`]. An edge that loses
//! the agent goes on with the last orders it had (it keeps them on disk too).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::status::Phase;

/// The agent repeats its orders at least this often, and an edge its report.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// Everything the edge needs to know; each document replaces the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// The node, for `/health` and logs.
    pub node: String,
    /// Counts up in one life of the agent; for logs.
    pub sequence: u64,
    /// Release being served, when one is.
    #[serde(default)]
    pub release: Option<String>,
    /// Where the node stands.
    pub phase: Phase,
    /// The agent lives but is still taking over containers that run: the edge
    /// keeps its last routes and judges readiness by its own probes. Nothing
    /// else in this document but `live`, `faults` and `drain` counts then.
    #[serde(default)]
    pub adopting: bool,
    /// `/health` says 200.
    pub ready: bool,
    /// Kinds of what is missing for serving; the only detail `/health` shows.
    #[serde(default)]
    pub missing: Vec<String>,
    /// `/health/live` says 200.
    pub live: bool,
    /// Node-local faults behind a dead liveness; kinds only.
    #[serde(default)]
    pub faults: Vec<String>,
    /// Present while the node drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// Containers by name.
    #[serde(default)]
    pub upstreams: BTreeMap<String, Upstream>,
    /// Prefix routes; the longest matching prefix wins.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Paths refused before routing; the longest matching prefix wins.
    #[serde(default)]
    pub refusals: Vec<Refusal>,
    /// Agent silence, in milliseconds, after which the edge probes the
    /// containers itself and judges readiness by that.
    pub stale_after_ms: u64,
    /// Agent silence, in milliseconds, that makes `/health/live` fail:
    /// longer than systemd needs to bring an agent back.
    pub silent_fault_after_ms: u64,
}

/// How a node leaves service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Milliseconds for which new requests are still served, so that the load
    /// balancer's probes can notice.
    pub notice_ms: u64,
    /// Milliseconds, from the start, after which what remains is cut.
    pub bound_ms: u64,
}

/// One container the edge forwards to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// Where it listens, as reachable from this machine.
    pub address: SocketAddr,
    /// Idle connections may be kept. False for gunicorn, where each idle
    /// connection occupies one of few slots.
    pub pooled: bool,
    /// Requests it can really work on at once.
    pub max_in_flight: u32,
    /// Path whose 200 means the container answers; asked only when the agent
    /// is silent. `None`: a TCP connect counts.
    #[serde(default)]
    pub probe: Option<String>,
    /// Readiness needs this upstream.
    pub required: bool,
}

/// A prefix and where it goes. Dify's nginx matches raw prefixes, not segments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Raw path prefix, such as `/console/api`.
    pub prefix: String,
    /// Key in [`Orders::upstreams`].
    pub upstream: String,
    /// Add `Dify-Hook-Url` with the full public URL of the request.
    #[serde(default)]
    pub hook_url: bool,
}

/// A path prefix that is answered by the edge itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Raw path prefix.
    pub prefix: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// Sentence in the answer's body.
    pub message: String,
}

/// What an edge instance says back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Which instance: `a` or `b`.
    pub instance: String,
    /// Process id.
    pub pid: u32,
    /// Version of the edge.
    pub version: String,
    /// [`Orders::sequence`] it works by.
    pub sequence: u64,
    /// What it does.
    pub state: EdgeState,
    /// Where it listens.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// Requests being served, upgraded connections included.
    pub in_flight: u32,
    /// Upgraded (WebSocket) connections among them.
    pub upgraded: u32,
    /// In-flight requests by upstream.
    #[serde(default)]
    pub by_upstream: BTreeMap<String, u32>,
    /// Requests answered since it started.
    pub requests: u64,
    /// Answers by the edge itself (refusals, failures) since it started.
    pub own_answers: u64,
}

/// What an edge instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeState {
    /// Accepts and forwards.
    Serving,
    /// Not ready; in-flight requests end.
    Draining,
    /// Nothing is in flight any more.
    Drained,
    /// A state this reader does not know yet.
    #[serde(other)]
    Unknown,
}
