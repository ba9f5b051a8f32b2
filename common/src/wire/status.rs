//! What an agent says of its node: `GET /status` on port 1081.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading what the VM is told: metadata, configuration, secrets.
    Booting,
    /// Probing the managed services and this machine.
    Preflight,
    /// Fetching images.
    Pulling,
    /// Waiting for, or running, the one migration of the fleet.
    Gating,
    /// Starting containers in order.
    Starting,
    /// Everything serving needs is there.
    Serving,
    /// Was serving; something serving needs is away (see `missing`).
    Degraded,
    /// Not ready on purpose: streams end, workers finish.
    Draining,
    /// Drained; our containers are stopped.
    Stopped,
    /// Cannot go on (see `failure`); what can change is watched.
    Failed,
    /// A state this reader does not know yet.
    #[serde(other)]
    Unknown,
}

impl Phase {
    /// The word used on the wire and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Preflight => "preflight",
            Self::Pulling => "pulling",
            Self::Gating => "gating",
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a node cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Short, of bounded cardinality: `configuration`, `manifest`, `dependency`,
    /// `bug`, `disk`, `deadline`, `migration`, `secret`.
    pub kind: String,
    /// One sentence for a person: what was tried, what was found, what to do.
    pub message: String,
}

/// One of our containers as last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Dify's service name, such as `worker_beat`.
    pub service: String,
    /// Name on the Docker engine.
    pub container: String,
    /// Docker's word: `created`, `running`, `exited`, ..., or `absent`.
    pub state: String,
    /// Answers its readiness probe.
    pub ready: bool,
    /// Starts again by this agent since it took over.
    #[serde(default)]
    pub restarts: u32,
    /// Image reference it runs.
    pub image: String,
    /// Why it is not ready, when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Something an operator should know although the node works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Short and stable, such as `known-vulnerabilities`.
    pub code: String,
    /// One sentence, with what to do.
    pub message: String,
}

/// What this node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The node.
    pub node: String,
    /// Version of the agent.
    pub agent: String,
    /// Dify release that is wanted here.
    #[serde(default)]
    pub release: Option<String>,
    /// Where the node stands.
    pub phase: Phase,
    /// RFC 3339: since when.
    pub since: String,
    /// What `/health` answers: take traffic.
    pub ready: bool,
    /// Kinds of things serving needs that are away: `database`, `redis`, `api`, ...
    #[serde(default)]
    pub missing: Vec<String>,
    /// What `/health/live` answers: do not recreate me.
    pub live: bool,
    /// Node-local faults that outlasted our own repair.
    #[serde(default)]
    pub faults: Vec<String>,
    /// What the present phase waits for, in words.
    #[serde(default)]
    pub waiting_on: Vec<String>,
    /// Out of service, with nothing in flight any more.
    #[serde(default)]
    pub drained: bool,
    /// Why the node cannot go on, when it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Our containers.
    #[serde(default)]
    pub containers: Vec<ContainerStatus>,
    /// What an operator should know.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Edges connected to this agent, with what they carry.
    #[serde(default)]
    pub edges: Vec<super::edge::Report>,
    /// How long each phase took, in milliseconds, in the order they ended.
    #[serde(default)]
    pub timeline: Vec<PhaseTime>,
}

/// A phase that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// How long, in milliseconds.
    pub millis: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The status of the first release: must parse for ever.
    const FIRST: &str = r#"{"node":"dify-x7f2","agent":"0.1.0","release":"1.14.2",
        "phase":"serving","since":"2026-11-22T00:00:00.000Z","ready":true,"live":true,
        "a_field_of_tomorrow":1}"#;

    #[test]
    fn an_old_status_parses_and_unknown_fields_pass() {
        let status: AgentStatus = serde_json::from_str(FIRST).expect("parses");
        assert_eq!(status.phase, Phase::Serving);
        assert!(status.containers.is_empty());
    }

    #[test]
    fn a_phase_of_tomorrow_is_unknown_not_an_error() {
        let phase: Phase = serde_json::from_str("\"hibernating\"").expect("parses");
        assert_eq!(phase, Phase::Unknown);
    }
}
