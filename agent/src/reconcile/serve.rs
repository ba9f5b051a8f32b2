//! The steady loop: observe, plan, act, probe, publish; woken by a period, by
//! the engine's events and by what comes back from actions and probes. Every
//! round reads everything anew; actions run beside it, one per container.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dify_common::chain::Chain;
use dify_common::wire::status::ContainerStatus;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{Instrument, info, info_span, warn};

use super::act::Actor;
use super::node::Node;
use super::part::{Answer, Record, Sight};
use super::plan::{Part, Seen, plan};
use crate::engine::Observed;
use crate::engine::spec::{ContainerSpec, Probe};

/// A round at least this often; probes that are due are asked then.
const PERIOD: Duration = Duration::from_millis(250);
/// The engine is asked at least this often, and at each of its events.
const OBSERVE: Duration = Duration::from_secs(2);

/// One look at the engine.
const OBSERVE_DEADLINE: Duration = Duration::from_secs(8);

/// What comes back from beside the loop.
#[derive(Debug)]
pub(super) enum Note {
    /// A probe of the run `of` heard something.
    Heard { service: String, of: String, answer: Answer },
    /// An action ended; an error is in words.
    Acted { service: String, result: Result<(), String> },
    /// The engine says something happened.
    Event,
}

/// Keeps the stack of one node running until its future is dropped or the
/// stack is to change.
pub(super) struct Serve {
    node: Arc<Node>,
    actor: Actor,
    records: BTreeMap<String, Record>,
    notes: mpsc::Sender<Note>,
    first: bool,
    observed: Option<Instant>,
    engine_away: Option<Instant>,
    slots: usize,
}

impl Serve {
    pub(super) fn new(node: Arc<Node>) -> (Self, mpsc::Receiver<Note>) {
        // More than every container probing and acting at once.
        let (notes, inbox) = mpsc::channel(256);
        let now = Instant::now();
        let records = node
            .stack
            .containers
            .iter()
            .map(|spec| (spec.service.clone(), Record::new(now)))
            .collect();
        let slots = usize::try_from(node.machine.cores).unwrap_or(1).max(1);
        let actor = Actor::new(node.clone());
        let (first, observed, engine_away) = (true, None, None);
        (Self { node, actor, records, notes, first, observed, engine_away, slots }, inbox)
    }

    /// The loop. Never returns on its own.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Note>) {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.listen_for_events();
        loop {
            tokio::select! {
                // cancel-safe: a tick is not lost.
                _ = period.tick() => {}
                // cancel-safe: `recv` takes nothing before it resolves.
                Some(note) = inbox.recv() => self.note(note),
            }
            while let Ok(note) = inbox.try_recv() {
                self.note(note);
            }
            self.round().await;
        }
    }

    fn listen_for_events(&self) {
        let (node, notes) = (self.node.clone(), self.notes.clone());
        self.node.tasks.spawn("engine-events", info_span!("events"), async move {
            while !notes.is_closed() {
                let mut events = pin!(node.engine.events(&node.settings.node));
                while let Some(Ok(())) = events.next().await {
                    // Full means that a round is due anyway.
                    let _ = notes.try_send(Note::Event);
                }
                // The engine is away; the rounds find out when it is back.
                sleep(OBSERVE).await;
            }
        });
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Heard { service, of, answer } => {
                let saturated = self.saturated(&service);
                if let Some(record) = self.records.get_mut(&service) {
                    record.heard(&of, answer, saturated, Instant::now());
                }
            }
            Note::Acted { service, result } => {
                self.observed = None;
                if let Some(record) = self.records.get_mut(&service) {
                    record.busy = false;
                    if let Err(error) = result {
                        record.failed(error, Instant::now());
                    }
                }
            }
            Note::Event => self.observed = None,
        }
    }

    /// Every slot of the upstream is taken, as the edges count.
    fn saturated(&self, service: &str) -> bool {
        let Some(upstream) = self.node.stack.upstreams.get(service) else { return false };
        let edges = self.node.board.edges();
        let in_flight: u32 = edges.iter().filter_map(|edge| edge.by_upstream.get(service)).sum();
        in_flight >= upstream.max_in_flight
    }

    async fn round(&mut self) {
        let now = Instant::now();
        if self.observed.is_none_or(|at| now.duration_since(at) >= OBSERVE) {
            self.observe(now).await;
        }
        if !self.first && self.engine_away.is_none() {
            self.act(now);
        }
        self.ask(now);
        self.publish();
    }

    async fn observe(&mut self, now: Instant) {
        self.observed = Some(now);
        // Bounded tightly: notes and probes wait meanwhile.
        let asked = timeout(OBSERVE_DEADLINE, self.node.engine.observe(&self.node.settings.node));
        match asked.await {
            Ok(Ok(observed)) => {
                if self.engine_away.take().is_some() {
                    info!("containers can be seen again");
                }
                self.saw(&observed, now);
                self.first = false;
            }
            Ok(Err(error)) => self.engine_failed(&Chain(&error).to_string(), now),
            Err(_) => self.engine_failed("no answer in time", now),
        }
    }

    fn engine_failed(&mut self, error: &str, now: Instant) {
        if self.engine_away.is_none() {
            warn!(error, "containers cannot be seen");
            self.engine_away = Some(now);
        }
    }

    fn saw(&mut self, observed: &Observed, now: Instant) {
        for spec in &self.node.stack.containers {
            let Some(record) = self.records.get_mut(&spec.service) else { continue };
            let found = observed.containers.get(&spec.name);
            let sight = found.map_or(Sight::Absent, |seen| self.node.sight(spec, seen));
            if self.first {
                record.saw_first(sight, now);
            } else {
                record.saw(sight, now);
            }
        }
    }

    fn act(&mut self, now: Instant) {
        let parts: Vec<Part> = self
            .node
            .stack
            .containers
            .iter()
            .map(|spec| {
                let record = &self.records[&spec.service];
                let (failures, ago) = record.failures(now);
                let (service, after) = (spec.service.clone(), spec.after.clone());
                Part { service, after, seen: record.seen(Instant::now()), failures, ago }
            })
            .collect();
        let plan = plan(&parts, self.slots);
        for step in plan.moves {
            let service = step.service().to_owned();
            let Some(spec) = self.node.spec(&service).cloned() else { continue };
            if let Some(record) = self.records.get_mut(&service) {
                record.busy = true;
                record.starts += 1;
            }
            let (actor, notes) = (self.actor.clone(), self.notes.clone());
            let span = info_span!("act", service);
            self.node.tasks.spawn("act", span, async move {
                let result = actor.carry_out(&step, &spec).await;
                let _ = notes.send(Note::Acted { service, result }).await;
            });
        }
        // A draining node waits for its streams; that is said by who drains it.
        if self.node.board.view().drain.is_none() {
            let reasons = plan.waiting_on.iter().map(ToString::to_string).collect();
            self.node.board.waiting_on(reasons);
        }
    }

    fn ask(&mut self, now: Instant) {
        for spec in &self.node.stack.containers {
            let Some(record) = self.records.get_mut(&spec.service) else { continue };
            // Starting a Python for each answer costs seconds of CPU: once is enough.
            let once = matches!(spec.probe, Probe::Exec { .. } | Probe::Running { .. });
            let Some(of) = record.due(once, now) else { continue };
            let (node, spec, notes) = (self.node.clone(), spec.clone(), self.notes.clone());
            let asking = async move {
                let answer = node.prober.ask(&spec, &node.engine, now).await;
                let answer = answer.scrubbed(|text| node.secrets.scrub(text));
                let _ = notes.send(Note::Heard { service: spec.service, of, answer }).await;
            };
            self.node.tasks.spawn("probe", tracing::Span::none(), asking.in_current_span());
        }
    }

    fn publish(&self) {
        let mut missing = self.node.away();
        let mut containers = Vec::with_capacity(self.records.len());
        for spec in &self.node.stack.containers {
            let record = &self.records[&spec.service];
            let ready = matches!(record.seen(Instant::now()), Seen::Ready);
            if spec.serving && !ready {
                missing.insert(spec.service.clone());
            }
            containers.push(status_of(spec, record, ready));
        }
        self.node.publish(missing, containers);
    }
}

fn status_of(spec: &ContainerSpec, record: &Record, ready: bool) -> ContainerStatus {
    ContainerStatus {
        service: spec.service.clone(),
        container: spec.name.clone(),
        state: record.state().to_owned(),
        ready,
        restarts: record.starts.saturating_sub(1),
        image: spec.image.clone(),
        detail: if ready { None } else { record.detail.clone() },
    }
}
