//! The node's life: boot, serve, and again whenever what it is told changes;
//! on a failure it reports, watches, and tries again.

use std::sync::Arc;
use std::time::Duration;

use dify_common::chain::Chain;
use dify_common::wire::status::Phase;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::boot::boot;
use super::context::Context;
use super::node::Node;
use super::serve::Serve;
use super::stop;
use crate::config::Settings;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::intent::Want;

/// A failure that may pass is tried again after this.
const SOON: Duration = Duration::from_secs(5);
/// One that needs somebody's hand: a secret that was added, a migration that
/// was cleared and a lock that was written show only on another try.
const LATER: Duration = Duration::from_secs(30);
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
        };
        tokio::select! {
            // cancel-safe: containers go on; the next life starts from what it sees.
            () = one_life(ctx, &settings, &mut node) => {}
            // cancel-safe: a watch can be waited for again.
            () = changed(ctx, &mut told) => info!("what this node is told has changed"),
            // cancel-safe: as above.
            () = over => break,
        }
        ctx.tasks.dismiss();
    }
    let settings = told.borrow().clone();
    stop_everything(ctx, &settings, node.as_deref()).await;
}

/// A change is taken up at once, but never in the middle of a migration.
async fn changed(ctx: &Context, told: &mut watch::Receiver<Arc<Settings>>) {
    let _ = told.changed().await;
    let mut views = ctx.board.watch();
    let _ = views.wait_for(|view| view.phase != Phase::Gating).await;
}

/// Boots and serves; comes back when it is time to boot again.
async fn one_life(ctx: &Context, settings: &Settings, present: &mut Option<Arc<Node>>) {
    match boot(ctx, settings).await {
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
        view.missing = std::iter::once(wire.kind.clone()).collect();
        view.failure = Some(wire);
    });
}

async fn stop_everything(ctx: &Context, settings: &Settings, node: Option<&Node>) {
    let bound = settings.drain.bound + STOP_MARGIN;
    crate::notify::stopping(bound);
    match Engine::connect(&settings.paths.docker).await {
        Ok(engine) => {
            let stack = node.map(|node| &node.stack);
            stop::stop_all(&engine, &settings.node, stack, bound).await;
        }
        Err(error) => warn!(error = %Chain(&error), "cannot stop containers"),
    }
    ctx.board.enter(Phase::Stopped);
    info!("stopped");
}
