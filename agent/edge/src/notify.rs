//! What the service manager is told: ready, alive, stopping.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tracing::{info, warn};

use crate::state::Shared;
use crate::worker::BEAT;

/// Longest wait for orders before we are called ready without: `/health` says
/// 503 by itself then, and the agent may need the edge's unit to be up.
const WITHOUT_ORDERS: Duration = Duration::from_secs(5);
/// A thread that has not shown itself for so long does not run.
const STUCK: Duration = Duration::from_secs(10);

/// Runs for the life of the process.
pub(crate) async fn run(shared: Arc<Shared>, beats: Vec<Arc<AtomicU64>>) {
    let mut view = shared.view.subscribe();
    let orders = view.wait_for(|view| view.table.is_some());
    let ordered = tokio::time::timeout(WITHOUT_ORDERS, orders).await.is_ok();
    tell(&[NotifyState::Ready]);
    info!(ordered, "ready");
    let period = sd_notify::watchdog_enabled().map_or(BEAT, |bound| (bound / 4).min(BEAT));
    let mut life = shared.life.subscribe();
    let mut stopping = false;
    let mut all_ran = true;
    loop {
        tokio::select! {
            // cancel-safe: a timer.
            () = tokio::time::sleep(period) => {}
            // cancel-safe: waits on a watch, read anew.
            _ = life.changed() => {}
        }
        if !stopping && !life.borrow_and_update().accept {
            stopping = true;
            tell(&[NotifyState::Stopping]);
        }
        let run = running(&shared, &beats);
        if run {
            tell(&[NotifyState::Watchdog]);
        } else if all_ran {
            warn!("a serving thread does not run, the watchdog is not fed");
        }
        all_ran = run;
    }
}

fn running(shared: &Shared, beats: &[Arc<AtomicU64>]) -> bool {
    let up = shared.started.elapsed();
    beats.iter().all(|beat| {
        let shown = Duration::from_millis(beat.load(Ordering::Relaxed));
        up.saturating_sub(shown) < STUCK
    })
}

fn tell(states: &[NotifyState<'_>]) {
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(states);
}
