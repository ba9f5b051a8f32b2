//! Carries out one move. Each reads the live state first: already so is done,
//! as expected is acted on, anything else is an error that the next round's
//! plan starts from.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use dify_common::chain::Chain;
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use super::node::Node;
use super::part::Answer;
use super::plan::Move;
use crate::dify::PLUGIN_DAEMON;
use crate::engine::spec::ContainerSpec;
use crate::engine::{EngineError, EngineErrorKind};

/// The plugin daemon migrates its schema before it answers; this long at most
/// are the other nodes' daemons held back.
const DAEMON_START: Duration = Duration::from_mins(2);
/// Waits this long for its turn: some nodes' starts.
const DAEMON_TURN: Duration = Duration::from_mins(10);
/// Asked this often whether it answers.
const EVERY: Duration = Duration::from_millis(250);

/// Carries out moves. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Actor {
    node: Arc<Node>,
}

impl Actor {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// One move on one container; an error is in words.
    pub(super) async fn carry_out(&self, step: &Move, spec: &ContainerSpec) -> Result<(), String> {
        info!(service = spec.service, step = step.verb(), "act");
        if spec.service != PLUGIN_DAEMON {
            return self.engine(step, spec).await.map_err(|error| Chain(&error).to_string());
        }
        // Upstream migrates the daemon's schema at every start and holds no
        // lock (AutoMigrate in dify-plugin-daemon's `internal/db`).
        let (this, step, spec) = (self.clone(), step.clone(), spec.clone());
        // Boxed: the compiler cannot see through the gate that it is `Send`.
        let start: Pin<Box<dyn Future<Output = Result<(), String>> + Send>> =
            Box::pin(async move {
                this.engine(&step, &spec).await.map_err(|error| Chain(&error).to_string())?;
                match timeout(DAEMON_START, this.answers(&spec)).await {
                    Ok(alive) => alive,
                    // It runs and is slow; the others need not wait for it.
                    Err(_) => Ok(()),
                }
            });
        let turn = self.node.gate.start_daemon(&|_| {}, DAEMON_TURN, start).await;
        turn.map_err(|error| Chain(&error).to_string())?
    }

    /// Waits until it answers; an error when it does not even run any more.
    async fn answers(&self, spec: &ContainerSpec) -> Result<(), String> {
        let (engine, node) = (&self.node.engine, &self.node.settings.node);
        let since = Instant::now();
        while self.node.prober.ask(spec, engine, since).await != Answer::Ready {
            let observed = engine.observe(node).await.map_err(|error| Chain(&error).to_string())?;
            let runs = observed.containers.get(&spec.name).is_some_and(|c| c.state.is_running());
            if !runs {
                return Err(format!("{} ended before it answered", spec.service));
            }
            sleep(EVERY).await;
        }
        Ok(())
    }

    async fn engine(&self, step: &Move, spec: &ContainerSpec) -> Result<(), EngineError> {
        let engine = &self.node.engine;
        match step {
            Move::Start(_) => engine.start(&spec.name).await,
            Move::Create(_) => self.create(spec).await,
            Move::Replace(_) => {
                engine.stop(&spec.name, spec.stop_signal.as_deref(), spec.stop_timeout).await?;
                engine.remove(&spec.name).await?;
                self.create(spec).await
            }
        }
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), EngineError> {
        let (engine, site) = (&self.node.engine, &self.node.site);
        match engine.create(spec, site).await {
            // Somebody pruned it, or the disk was changed under Docker.
            Err(error) if error.kind() == EngineErrorKind::BadImage => {
                self.node.pull(&spec.image).await?;
                engine.create(spec, site).await?;
            }
            other => drop(other?),
        }
        engine.start(&spec.name).await
    }
}
