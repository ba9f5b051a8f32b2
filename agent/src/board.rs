//! What this node knows of itself, in one place: written by the reconciler,
//! read by the edge link, the operator endpoints and the systemd notifier.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dify_common::clock;
use dify_common::ids::{NodeId, ReleaseId};
use dify_common::wire::edge::{Drain, Orders, Refusal, Report, Route, Upstream};
use dify_common::wire::status::{AgentStatus, ContainerStatus, Failure, Finding, Phase, PhaseTime};
use tokio::sync::watch;
use tracing::info;

/// Agent silence after which an edge judges by its own probes: two missed
/// heartbeats and a margin.
const STALE_AFTER: Duration = Duration::from_secs(4);

/// What the front door needs of the stack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Front {
    /// Containers by name.
    pub upstreams: BTreeMap<String, Upstream>,
    /// Prefix routes.
    pub routes: Vec<Route>,
    /// Paths the edge answers itself.
    pub refusals: Vec<Refusal>,
}

/// The node as it stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// This VM.
    pub node: NodeId,
    /// Release wanted here, once known.
    pub release: Option<ReleaseId>,
    /// Where the node stands.
    pub phase: Phase,
    /// Since when.
    pub since: SystemTime,
    /// Kinds of what serving needs and lacks.
    pub missing: BTreeSet<String>,
    /// Node-local faults that outlasted our own repair.
    pub faults: BTreeSet<String>,
    /// What the present phase waits for, in words.
    pub waiting_on: Vec<String>,
    /// Why the node cannot go on.
    pub failure: Option<Failure>,
    /// Our containers.
    pub containers: Vec<ContainerStatus>,
    /// What an operator should know.
    pub findings: Vec<Finding>,
    /// Phases that ended in this life of the agent.
    pub timeline: Vec<PhaseTime>,
    /// Present while draining.
    pub drain: Option<Drain>,
    /// Nothing is in flight any more, or what was has been cut.
    pub drained: bool,
    /// What the edge forwards to.
    pub front: Arc<Front>,
    /// Taking over running containers: the edges go on by their last routes and
    /// their own probes until this node knows better.
    pub adopting: bool,
    /// Agent silence after which an edge fails `/health/live`.
    pub silent_fault_after: Duration,
}

impl View {
    /// What `/health` says.
    pub fn ready(&self) -> bool {
        self.phase == Phase::Serving && self.missing.is_empty() && self.drain.is_none()
    }

    /// Orders for the edges.
    pub fn orders(&self, sequence: u64) -> Orders {
        Orders {
            node: self.node.to_string(),
            sequence,
            release: self.release.as_ref().map(ToString::to_string),
            phase: self.phase,
            adopting: self.adopting,
            ready: self.ready(),
            missing: self.missing.iter().cloned().collect(),
            live: self.faults.is_empty(),
            faults: self.faults.iter().cloned().collect(),
            drain: self.drain.clone(),
            upstreams: self.front.upstreams.clone(),
            routes: self.front.routes.clone(),
            refusals: self.front.refusals.clone(),
            stale_after_ms: millis(STALE_AFTER),
            silent_fault_after_ms: millis(self.silent_fault_after),
        }
    }

    /// The status document.
    pub fn status(&self, edges: Vec<Report>) -> AgentStatus {
        AgentStatus {
            node: self.node.to_string(),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            release: self.release.as_ref().map(ToString::to_string),
            phase: self.phase,
            since: clock::rfc3339(self.since),
            ready: self.ready(),
            missing: self.missing.iter().cloned().collect(),
            live: self.faults.is_empty(),
            faults: self.faults.iter().cloned().collect(),
            waiting_on: self.waiting_on.clone(),
            drained: self.drained,
            failure: self.failure.clone(),
            containers: self.containers.clone(),
            findings: self.findings.clone(),
            edges,
            timeline: self.timeline.clone(),
        }
    }
}

/// What serving lacks by the phase alone; the later phases know better.
fn lacking(phase: Phase) -> Option<&'static str> {
    match phase {
        Phase::Booting => Some("booting"),
        Phase::Preflight => Some("preflight"),
        Phase::Pulling => Some("images"),
        Phase::Gating => Some("migration"),
        Phase::Starting
        | Phase::Serving
        | Phase::Degraded
        | Phase::Draining
        | Phase::Stopped
        | Phase::Failed
        | Phase::Unknown => None,
    }
}

/// Milliseconds as the wire has them.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The shared board. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Board {
    view: watch::Sender<View>,
    edges: watch::Sender<BTreeMap<u64, Report>>,
}

impl Board {
    /// A node that just woke up. `adopting`: containers of ours were found running.
    pub fn new(node: NodeId, adopting: bool) -> Self {
        let view = View {
            node,
            release: None,
            phase: Phase::Booting,
            since: clock::now(),
            missing: BTreeSet::from(["booting".to_owned()]),
            faults: BTreeSet::new(),
            waiting_on: Vec::new(),
            failure: None,
            containers: Vec::new(),
            findings: Vec::new(),
            timeline: Vec::new(),
            drain: None,
            drained: false,
            front: Arc::default(),
            adopting,
            silent_fault_after: Duration::from_mins(5),
        };
        Self { view: watch::Sender::new(view), edges: watch::Sender::new(BTreeMap::new()) }
    }

    /// The view now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Wakes when the view changed.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Wakes when what an edge carries changed.
    pub fn watch_edges(&self) -> watch::Receiver<BTreeMap<u64, Report>> {
        self.edges.subscribe()
    }

    /// Reports of the connected edges.
    pub fn edges(&self) -> Vec<Report> {
        self.edges.borrow().values().cloned().collect()
    }

    /// The status document now.
    pub fn status(&self) -> AgentStatus {
        self.view.borrow().status(self.edges())
    }

    /// An edge on connection `id` said this; `None`: it is gone.
    pub fn edge(&self, id: u64, report: Option<Report>) {
        self.edges.send_if_modified(|edges| match report {
            Some(report) => edges.insert(id, report.clone()) != Some(report),
            None => edges.remove(&id).is_some(),
        });
    }

    /// Changes the view in place.
    pub fn update(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(change);
    }

    /// Changes the view in place and wakes the readers only if it differs then.
    pub fn amend(&self, change: impl FnOnce(&mut View)) {
        self.view.send_if_modified(|view| {
            let before = view.clone();
            change(view);
            *view != before
        });
    }

    /// Enters a phase, logs it, and notes how long the last one took. The
    /// present phase again is no change.
    pub fn enter(&self, phase: Phase) {
        self.view.send_if_modified(|view| {
            // A node that leaves service says so until it is called back.
            let held = view.drain.is_some() && !matches!(phase, Phase::Stopped | Phase::Failed);
            let phase = if held { Phase::Draining } else { phase };
            if view.phase == phase {
                return false;
            }
            let now = clock::now();
            let took = now.duration_since(view.since).unwrap_or_default();
            info!(from = %view.phase, to = %phase, took_ms = millis(took), "phase");
            view.timeline.push(PhaseTime { phase: view.phase, millis: millis(took) });
            // A flapping node must not grow its own status without bound.
            let excess = view.timeline.len().saturating_sub(64);
            view.timeline.drain(..excess);
            view.phase = phase;
            view.since = now;
            view.waiting_on.clear();
            if let Some(kind) = lacking(phase) {
                view.missing = BTreeSet::from([kind.to_owned()]);
            }
            true
        });
    }

    /// Says what the present phase waits for; logged when it changes.
    pub fn waiting_on(&self, reasons: Vec<String>) {
        self.view.send_if_modified(|view| {
            if view.waiting_on == reasons {
                return false;
            }
            if !reasons.is_empty() {
                info!(phase = %view.phase, reasons = reasons.join("; "), "waiting");
            }
            view.waiting_on = reasons;
            true
        });
    }

    /// Replaces the finding with the same code, or adds it.
    pub fn finding(&self, finding: Finding) {
        self.view.send_if_modified(|view| {
            if view.findings.contains(&finding) {
                return false;
            }
            view.findings.retain(|other| other.code != finding.code);
            view.findings.push(finding);
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(adopting: bool) -> Board {
        Board::new("n1".parse().expect("valid"), adopting)
    }

    #[test]
    fn ready_needs_phase_parts_and_no_drain() {
        let board = board(false);
        assert!(!board.view().ready());
        board.enter(Phase::Serving);
        board.update(|view| view.missing.clear());
        assert!(board.view().ready());
        board.update(|view| {
            view.drain = Some(Drain { notice_ms: 1, bound_ms: 2 });
        });
        assert!(!board.view().ready());
    }

    #[test]
    fn adopting_is_said_and_is_not_readiness() {
        assert!(board(true).view().orders(1).adopting);
        let orders = board(false).view().orders(1);
        assert!(!orders.adopting && !orders.ready);
    }

    #[test]
    fn the_timeline_stays_bounded() {
        let board = board(false);
        for _ in 0..100 {
            board.enter(Phase::Serving);
            board.enter(Phase::Degraded);
        }
        assert_eq!(board.view().timeline.len(), 64);
    }
}
