//! What systemd is told: ready once the loops run (not once Dify serves, which
//! takes minutes), the phase as status text, and the watchdog's heartbeat.

use std::time::Duration;

use dify_common::tasks::Tasks;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info_span};

use crate::board::Board;

/// Heartbeat when systemd asked for none: only the status text is refreshed.
const QUIET: Duration = Duration::from_mins(1);

/// Says that the agent runs and keeps saying so. Outside systemd a no-op.
pub fn spawn(board: Board, tasks: &Tasks) {
    say(&[NotifyState::Ready]);
    // Half the limit, as sd_watchdog_enabled(3) advises.
    let every = sd_notify::watchdog_enabled().map_or(QUIET, |limit| limit / 2);
    let stopping = tasks.stopping();
    tasks.spawn_essential("notify", info_span!("notify"), async move {
        let mut beat = interval(every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut views = board.watch();
        loop {
            tokio::select! {
                // cancel-safe: a tick is not lost.
                _ = beat.tick() => say(&[NotifyState::Watchdog]),
                // cancel-safe: `changed` marks nothing as seen until it resolves.
                changed = views.changed() => if changed.is_err() { return },
                // cancel-safe: a token can be awaited again.
                () = stopping.cancelled() => return,
            }
            let view = views.borrow_and_update().clone();
            let missing: Vec<&str> = view.missing.iter().map(String::as_str).collect();
            let what = if missing.is_empty() {
                view.phase.to_string()
            } else {
                format!("{}, missing: {}", view.phase, missing.join(", "))
            };
            say(&[NotifyState::Status(&what)]);
        }
    });
}

/// Says that the process winds down and may need `more` time for it.
pub fn stopping(more: Duration) {
    let micros = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
    say(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "systemd does not listen");
    }
}
