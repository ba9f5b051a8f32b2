//! One node with one stack: what the steady loop, its actions and its probes share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dify_common::tasks::Tasks;
use dify_common::wire::status::{ContainerStatus, Phase};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::marker::{self, Marker};
use super::part::Sight;
use super::probe::Prober;
use super::setup::Setup;
use super::shots::Shots;
use crate::backends::Group;
use crate::backends::probes::Services;
use crate::board::{Board, Front};
use crate::config::Settings;
use crate::dify::stack::{Machine, Stack};
use crate::engine::pull::pull_all;
use crate::engine::spec::ContainerSpec;
use crate::engine::{
    Engine, EngineError, EngineErrorKind, ObservedContainer, RunState, Site, SpecHash,
};
use crate::gate::Gate;
use crate::registry::{InvalidReference, Reference};
use crate::secrets::Secrets;
use dify_common::gcp::token::Tokens;
use std::num::NonZeroU32;

/// An agent that took over running containers says what it sees after this
/// long at the latest: the worker's probe starts a Python on busy cores.
const ADOPTION: Duration = Duration::from_mins(1);

/// The gate over this node's engine.
pub type NodeGate = Gate<Shots>;

/// One node with one stack.
#[derive(Debug)]
pub struct Node {
    /// What the VM is told.
    pub settings: Settings,
    /// What it runs.
    pub stack: Stack,
    /// What it runs on.
    pub machine: Machine,
    /// The container engine.
    pub engine: Engine,
    /// Whose containers these are.
    pub site: Site,
    /// The migration gate, for the plugin daemon's own migration.
    pub gate: NodeGate,
    /// Where everything is said.
    pub board: Board,
    /// Who owns what runs beside the loop.
    pub tasks: Tasks,
    /// Asks containers.
    pub prober: Prober,
    /// Health of the shared services.
    pub services: watch::Receiver<Services>,
    /// Whether Dify's first setup is finished.
    pub setup: Setup,
    /// Kept out of what containers print.
    pub secrets: Secrets,
    guarded: bool,
    google: Option<Tokens>,
    hashes: BTreeMap<String, SpecHash>,
    served: AtomicBool,
    since: Instant,
}

/// What a [`Node`] is made of.
#[derive(Debug)]
#[expect(missing_docs, reason = "the same fields, documented on Node")]
pub struct Parts {
    pub settings: Settings,
    pub stack: Stack,
    pub machine: Machine,
    pub engine: Engine,
    pub site: Site,
    pub gate: NodeGate,
    pub board: Board,
    pub tasks: Tasks,
    pub services: watch::Receiver<Services>,
    pub setup: Setup,
    pub secrets: Secrets,
    pub guarded: bool,
    pub google: Option<Tokens>,
}

impl Node {
    /// A node; hashes every spec once.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            settings,
            stack,
            machine,
            engine,
            site,
            gate,
            board,
            tasks,
            services,
            setup,
            secrets,
            guarded,
            google,
        } = parts;
        let hashes =
            stack.containers.iter().map(|spec| (spec.name.clone(), site.hash(spec))).collect();
        Arc::new(Self {
            settings,
            stack,
            machine,
            engine,
            site,
            gate,
            board,
            tasks,
            prober: Prober::default(),
            services,
            setup,
            secrets,
            guarded,
            google,
            hashes,
            served: AtomicBool::new(false),
            since: Instant::now(),
        })
    }

    /// The spec of a service.
    pub fn spec(&self, service: &str) -> Option<&ContainerSpec> {
        self.stack.containers.iter().find(|spec| spec.service == service)
    }

    /// What the engine's word on a container means for its record.
    pub(super) fn sight(&self, spec: &ContainerSpec, seen: &ObservedContainer) -> Sight {
        // A create that was cut off leaves a container with the right label and
        // without its further networks.
        let legs: BTreeMap<_, _> =
            spec.networks.iter().map(|leg| (leg.network.clone(), leg.address)).collect();
        let whole = legs == seen.addresses && !matches!(seen.state, RunState::Odd(_));
        if !whole || self.hashes.get(&spec.name).is_none_or(|hash| hash.as_str() != seen.spec) {
            return Sight::Outdated;
        }
        match &seen.state {
            RunState::Running { since, .. } => Sight::Running(since.clone()),
            RunState::Created => Sight::Stopped { ran: false, how: "never started".to_owned() },
            RunState::Exited { code, oom: true, at } => Sight::Stopped {
                ran: true,
                how: format!("killed for want of memory at {at} (exit code {code})"),
            },
            RunState::Exited { code, oom: false, at } => {
                Sight::Stopped { ran: true, how: format!("exit code {code} at {at}") }
            }
            RunState::Odd(state) => Sight::Stopped { ran: true, how: format!("state {state}") },
        }
    }

    /// Tells the board what a round found.
    pub(super) fn publish(&self, mut missing: BTreeSet<String>, containers: Vec<ContainerStatus>) {
        let refusals = self.refusals();
        if missing.is_empty() && !self.served.swap(true, Ordering::Relaxed) {
            marker::set(&self.settings.paths.run, Marker::Serving);
        }
        let phase = match (missing.is_empty(), self.served.load(Ordering::Relaxed)) {
            (true, _) => Phase::Serving,
            (false, true) => Phase::Degraded,
            (false, false) => Phase::Starting,
        };
        self.board.enter(phase);
        let settled = missing.is_empty() || self.since.elapsed() >= ADOPTION;
        self.board.amend(|view| {
            view.missing = std::mem::take(&mut missing);
            view.containers.clone_from(&containers);
            if *view.front.refusals != refusals {
                view.front = Arc::new(self.front(refusals.clone()));
            }
            view.adopting &= !settled;
        });
    }

    /// Kinds of shared services that are away or were not heard of yet.
    pub(super) fn away(&self) -> BTreeSet<String> {
        let services = self.services.borrow();
        let unheard = [Group::Database, Group::Redis].into_iter();
        let unheard = unheard.filter(|kind| !services.contains_key(kind));
        let away = services.values().filter(|health| !health.ok).map(|health| health.kind);
        away.chain(unheard).map(|kind| kind.as_str().to_owned()).collect()
    }

    /// Has an image here again that somebody removed.
    pub(super) async fn pull(&self, image: &str) -> Result<(), EngineError> {
        let doing = "read image reference";
        let reference: Reference = image.parse().map_err(|error: InvalidReference| {
            EngineError::new(EngineErrorKind::BadImage, doing, image, error.to_string())
        })?;
        // Nobody reads the progress of a repair.
        let (news, _) = mpsc::channel(1);
        let one = NonZeroU32::MIN;
        let pulled = pull_all(&self.engine, &[reference], one, self.google.as_ref(), &news).await;
        pulled.map(drop).map_err(|errors| errors.worst().clone())
    }

    /// Starts asking whether setup is finished.
    pub fn watch_setup(&self) {
        if let Some(api) = self.stack.upstreams.get("api") {
            let base = format!("http://{}", api.address);
            self.setup.spawn(base, self.guarded, self.board.clone(), &self.tasks);
        }
    }

    /// What the edge forwards to and what it refuses now.
    pub fn front(&self, refusals: Vec<dify_common::wire::edge::Refusal>) -> Front {
        let Stack { upstreams, routes, .. } = &self.stack;
        Front { upstreams: upstreams.clone(), routes: routes.clone(), refusals }
    }

    /// What the edge refuses now.
    pub fn refusals(&self) -> Vec<dify_common::wire::edge::Refusal> {
        let mut refusals = self.stack.refusals.clone();
        if !self.setup.finished() {
            refusals.extend(self.stack.setup_refusals.iter().cloned());
        }
        refusals
    }
}
