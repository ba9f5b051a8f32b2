//! The node's life: boot, serve, and again whenever what it is told changes;
//! on a failure it reports, watches, and tries again.

use std::sync::Arc;
use std::time::Duration;

use dify_common::chain::Chain;
use dify_common::wire::status::Phase;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

use super::boot::boot;
use super::context::Context;
use super::node::Node;
use super::serve::Serve;
use super::stop;
use crate::config::Settings;
use crate::engine::Engine;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::intent::Want;

/// A failure that may pass is tried again after this.
const SOON: Duration = Duration::from_secs(5);
/// One that needs somebody's hand: a secret that was added, a migration that
/// was cleared and a lock that was written show only on another try.
const LATER: Duration = Duration::from_secs(30);
/// An engine that restarts is waited for this long before giving up on a clean stop.
const ENGINE_BACK: Duration = Duration::from_secs(30);
/// Beyond the drain's own bound, for containers that stop late.
const STOP_MARGIN: Duration = Duration::from_mins(1);

/// Runs until the intent is to stop and everything is stopped.
pub async fn run(
    ctx: &Context,
    mut told: watch::Receiver<Arc<Settings>>,
    mut drained: watch::Receiver<bool>,
) {
    let mut node: Option<Arc<Node>> = None;
    loop {
        let settings = told.borrow_and_update().clone();
        // What this life starts ends with it.
        let ctx = &Context { tasks: ctx.tasks.child(), ..ctx.clone() };
        let over = async {
            // A node that never served has nothing to drain.
            let mut wants = ctx.intent.watch();
            let _ = wants.wait_for(|want| *want == Want::Stop).await;
            let _ = drained.wait_for(|drained| *drained).await;
            // A migration is let come to its end, within reason.
            let _ = timeout(settings.drain.bound, ctx.not_leading()).await;
        };
        tokio::select! {
            // cancel-safe: containers go on; the next life starts from what it sees.
            () = one_life(ctx, &settings, &mut node) => {}
            // cancel-safe: a watch can be waited for again.
            () = changed(ctx, &mut told) => info!("what this node is told has changed"),
            // cancel-safe: as above.
            () = over => {
                ctx.tasks.dismiss();
                break;
            }
        }
        ctx.tasks.dismiss();
        if node.is_some() {
            // What runs goes on serving while the next life looks at it.
            ctx.board.amend(|view| view.adopting = true);
        }
    }
    let settings = told.borrow().clone();
    stop_everything(ctx, &settings, node.as_deref()).await;
}

/// A change is taken up at once, but never in the middle of a migration.
async fn changed(ctx: &Context, told: &mut watch::Receiver<Arc<Settings>>) {
    let _ = told.changed().await;
    ctx.not_leading().await;
}

/// Boots and serves; comes back when it is time to boot again.
async fn one_life(ctx: &Context, settings: &Settings, present: &mut Option<Arc<Node>>) {
    match Box::pin(boot(ctx, settings)).await {
        Ok(node) => {
            *present = Some(node.clone());
            ctx.board.amend(|view| {
                view.failure = None;
                view.front = Arc::new(node.front(node.refusals()));
            });
            node.watch_setup();
            let (serve, inbox) = Serve::new(node);
            serve.run(inbox).await;
        }
        Err(failure) => {
            failed(ctx, &failure);
            sleep(if failure.permanent { LATER } else { SOON }).await;
        }
    }
}

fn failed(ctx: &Context, failure: &Failure) {
    let wire = failure.to_wire();
    if ctx.board.view().failure.as_ref() != Some(&wire) {
        error!(kind = wire.kind, error = wire.message, "cannot go on");
    }
    ctx.board.enter(Phase::Failed);
    ctx.board.amend(|view| {
        // On another schema even what runs must not go on serving.
        view.adopting &= failure.exit != Exit::Migration;
        view.missing = std::iter::once(wire.kind.clone()).collect();
        view.failure = Some(wire);
    });
}

async fn stop_everything(ctx: &Context, settings: &Settings, node: Option<&Node>) {
    let bound = settings.drain.bound + STOP_MARGIN;
    crate::notify::stopping(bound);
    let give_up = Instant::now() + ENGINE_BACK;
    let engine = loop {
        match Engine::connect(&settings.paths.docker).await {
            Ok(engine) => break Some(engine),
            Err(error) if Instant::now() >= give_up => {
                warn!(error = %Chain(&error), "cannot stop containers");
                break None;
            }
            Err(_) => sleep(SOON).await,
        }
    };
    if let Some(engine) = engine {
        let stack = node.map(|node| &node.stack);
        stop::stop_all(&engine, &settings.node, stack, bound).await;
    }
    ctx.board.enter(Phase::Stopped);
    info!("stopped");
}
