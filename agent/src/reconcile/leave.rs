//! Leaves service and comes back, as the intent asks; says when nothing is in
//! flight any more. Stopping the containers is the life's part, once this says so.

use std::time::Duration;

use dify_common::tasks::Tasks;
use dify_common::wire::edge::Drain;
use dify_common::wire::status::Phase;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, info_span};

use super::drain::{Stage, stage};
use crate::board::{Board, millis};
use crate::config::settings::DrainTimes;
use crate::intent::{Intent, Want};

/// The stage is judged this often; edges report each second and on change.
const PERIOD: Duration = Duration::from_millis(200);

/// Follows the intent. The answer turns true while the node is drained.
pub fn spawn(
    times: watch::Receiver<DrainTimes>,
    board: Board,
    intent: &Intent,
    tasks: &Tasks,
) -> watch::Receiver<bool> {
    let (drained, answer) = watch::channel(false);
    let (mut wants, stopping) = (intent.watch(), tasks.stopping());
    tasks.spawn_essential("drain", info_span!("drain"), async move {
        loop {
            let in_service = async {
                let _ = wants.wait_for(|want| *want != Want::Serve).await;
            };
            tokio::select! {
                // cancel-safe: a watch can be waited for again.
                () = in_service => {}
                // cancel-safe: a token can be awaited again.
                () = stopping.cancelled() => return,
            }
            let back = async {
                let _ = wants.wait_for(|want| *want == Want::Serve).await;
            };
            let times = *times.borrow();
            tokio::select! {
                // cancel-safe: leaving only reads and says.
                () = leave(times, &board, &drained) => {}
                // cancel-safe: a watch can be waited for again.
                () = back => {}
                // cancel-safe: a token can be awaited again.
                () = stopping.cancelled() => return,
            }
            info!("back into service");
            drained.send_replace(false);
            board.amend(|view| {
                view.drain = None;
                view.drained = false;
            });
        }
    });
    answer
}

/// Never returns: a drained node stays so until it is called back.
async fn leave(times: DrainTimes, board: &Board, drained: &watch::Sender<bool>) {
    let started = Instant::now();
    let drain = Drain { notice_ms: millis(times.notice), bound_ms: millis(times.bound) };
    board.amend(|view| view.drain = Some(drain));
    board.enter(Phase::Draining);
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        period.tick().await;
        let now = stage(times, started.elapsed(), &board.edges());
        board.amend(|view| view.waiting_on = vec![now.reason()]);
        let kind = std::mem::discriminant(&now);
        if last != Some(kind) {
            info!(stage = now.reason(), "draining");
            last = Some(kind);
        }
        if matches!(now, Stage::Drained { .. }) {
            drained.send_replace(true);
            board.amend(|view| view.drained = true);
        }
    }
}
