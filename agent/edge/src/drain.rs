//! Leaving service without losing a byte.
//!
//! ```text
//!            drain ordered / SIGTERM             notice over            nothing in flight
//!  Serving ───────────────────────► Notice ───────────────► Closing ─────────────────────► Drained
//!     ▲      /health 503, still       │        new: refused    │   bound: what remains is cut
//!     └──────────────────────────────┴── order withdrawn ──────┘
//! ```
//!
//! SIGTERM also ends the process once it is drained. SIGUSR1 (hand-over: another
//! instance accepts on the same socket) stops accepting at once and leaves `/health`
//! alone; open connections are served within the notice. What to do is a pure function of what was asked
//! and the time; the task around it logs each step with counts.

use std::sync::Arc;
use std::time::Duration;

use dify_common::wire::edge::{Drain, EdgeState};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::state::Shared;

/// Whether requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Stage {
    #[default]
    Serving,
    /// Still serves, but says on each answer that the connection ends.
    Notice,
    /// Lets what is in flight end.
    Closing,
}

/// What connections and threads go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) stage: Stage,
    pub(crate) accept: bool,
    /// This instance wants no traffic, whatever the orders say.
    pub(crate) unready: bool,
    /// Counts up each time everything in flight is to be cut.
    pub(crate) cuts: u64,
    pub(crate) state: EdgeState,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            stage: Stage::Serving,
            accept: true,
            unready: false,
            cuts: 0,
            state: EdgeState::Serving,
        }
    }
}

/// What the process is asked from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Drain and end; asked again: cut and end.
    Terminate(&'static str),
    /// Another instance has taken over: stop accepting, serve what is connected
    /// within the notice, finish, end.
    HandOver,
}

/// A departure under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leaving {
    cause: &'static str,
    since: Instant,
    notice: Duration,
    bound: Duration,
    /// Takes new connections within the notice: nobody else does.
    accepts: bool,
    /// Ends the process.
    exits: bool,
    /// Turns `/health` by itself.
    unready: bool,
}

/// What is right at one moment of a departure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    stage: Stage,
    accept: bool,
    cut: bool,
    drained: bool,
    /// When to look again, at the latest.
    wake: Option<Instant>,
}

fn plan(leaving: &Leaving, now: Instant, in_flight: u32) -> Step {
    let noticed = leaving.since + leaving.notice;
    let bound = leaving.since + leaving.bound.max(leaving.notice);
    if now < noticed {
        return Step {
            stage: Stage::Notice,
            accept: leaving.accepts,
            cut: false,
            drained: false,
            wake: Some(noticed),
        };
    }
    let drained = in_flight == 0;
    let cut = !drained && now >= bound;
    Step {
        stage: Stage::Closing,
        // A node that drains must still say so to who asks; a process that ends
        // must not take what it will not serve.
        accept: !leaving.exits,
        cut,
        drained,
        wake: (!drained && !cut).then_some(bound),
    }
}

/// Runs until a departure that ends the process is complete.
pub(crate) async fn run(shared: Arc<Shared>, mut asks: mpsc::UnboundedReceiver<Ask>) {
    let mut view = shared.view.subscribe();
    let mut ordered: Option<(Drain, Leaving)> = None;
    let mut exit: Option<Leaving> = None;
    let mut cut_for: Option<Instant> = None;
    loop {
        let order = view.borrow_and_update().table.as_ref().and_then(|t| t.orders.drain.clone());
        ordered = match (order, ordered.take()) {
            (None, None) => None,
            (None, Some(_)) => {
                info!("drain withdrawn");
                None
            }
            (Some(order), Some((before, leaving))) if order == before => Some((before, leaving)),
            (Some(order), before) => {
                let since = before.map_or_else(Instant::now, |(_, leaving)| leaving.since);
                let leaving = by_order(&order, since);
                Some((order, leaving))
            }
        };
        let leaving = exit.or_else(|| ordered.as_ref().map(|(_, leaving)| *leaving));
        let step = leaving.as_ref().map(|l| plan(l, Instant::now(), shared.counts.in_flight()));
        let cut_now = step.is_some_and(|s| s.cut) && cut_for != leaving.map(|l| l.since);
        if cut_now {
            cut_for = leaving.map(|l| l.since);
        }
        publish(&shared, leaving.as_ref(), step, cut_now);
        if exit.is_some() && step.is_some_and(|step| step.drained) {
            return;
        }
        let wake = step.and_then(|step| step.wake);
        tokio::select! {
            // cancel-safe: waits on a watch; its content is read anew above.
            _ = view.changed() => {}
            // cancel-safe: waits on a notification; the count is read anew above.
            () = shared.counts.idle(), if step.is_some() => {}
            // cancel-safe: a timer.
            () = at(wake) => {}
            // cancel-safe: `recv` loses no message when dropped.
            Some(ask) = asks.recv() => exit = Some(asked(&shared, ask, exit, ordered.as_ref())),
        }
    }
}

fn by_order(order: &Drain, since: Instant) -> Leaving {
    Leaving {
        cause: "drain ordered",
        since,
        notice: Duration::from_millis(order.notice_ms),
        bound: Duration::from_millis(order.bound_ms),
        accepts: true,
        exits: false,
        unready: false,
    }
}

fn asked(
    shared: &Shared,
    ask: Ask,
    before: Option<Leaving>,
    ordered: Option<&(Drain, Leaving)>,
) -> Leaving {
    let settings = &shared.settings;
    let fresh = |cause| Leaving {
        cause,
        since: Instant::now(),
        notice: settings.drain_notice,
        bound: settings.drain_bound,
        accepts: true,
        exits: true,
        unready: true,
    };
    match ask {
        // Who has just connected here may send its request yet.
        Ask::HandOver => Leaving { accepts: false, unready: false, ..fresh("handed over") },
        Ask::Terminate(signal) => match (before, ordered) {
            (Some(before), _) => Leaving {
                cause: signal,
                notice: Duration::ZERO,
                bound: if before.unready { Duration::ZERO } else { before.bound },
                unready: true,
                ..before
            },
            // The load balancer has been told since the order.
            (None, Some((_, leaving))) => {
                Leaving { cause: signal, exits: true, unready: true, ..*leaving }
            }
            (None, None) => fresh(signal),
        },
    }
}

async fn at(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

fn publish(shared: &Shared, leaving: Option<&Leaving>, step: Option<Step>, cut: bool) {
    let before = *shared.life.borrow();
    let state = match step {
        None => EdgeState::Serving,
        Some(step) if step.drained => EdgeState::Drained,
        Some(_) => EdgeState::Draining,
    };
    let now = Life {
        stage: step.map_or(Stage::Serving, |step| step.stage),
        accept: step.is_none_or(|step| step.accept),
        unready: leaving.is_some_and(|leaving| leaving.unready),
        cuts: before.cuts + u64::from(cut),
        state,
    };
    if now == before {
        return;
    }
    let counts = shared.counts.snapshot();
    let (in_flight, upgraded) = (counts.in_flight, counts.upgraded);
    let connections = shared.counts.connections();
    let cause = leaving.map_or("", |leaving| leaving.cause);
    let after = leaving.map_or(Duration::ZERO, |leaving| leaving.since.elapsed());
    if cut {
        warn!(cause, in_flight, upgraded, ?after, "drain bound reached, cutting what remains");
    }
    if now.stage != before.stage || now.state != before.state {
        let (stage, state) = (now.stage, now.state);
        info!(cause, ?stage, ?state, in_flight, upgraded, connections, ?after, "drain step");
    }
    shared.life.send_replace(now);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaving(exits: bool) -> Leaving {
        Leaving {
            cause: "test",
            since: Instant::now(),
            notice: Duration::from_secs(30),
            bound: Duration::from_mins(10),
            accepts: true,
            exits,
            unready: exits,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn notice_then_closing_then_cut() {
        let node = leaving(false);
        let at = |seconds| node.since + Duration::from_secs(seconds);
        let early = plan(&node, at(0), 0);
        assert_eq!((early.stage, early.accept, early.drained), (Stage::Notice, true, false));
        assert_eq!(early.wake, Some(at(30)));
        let later = plan(&node, at(30), 3);
        assert_eq!((later.stage, later.accept, later.cut), (Stage::Closing, true, false));
        assert_eq!(later.wake, Some(at(600)));
        assert!(plan(&node, at(31), 0).drained);
        assert!(plan(&node, at(600), 3).cut);
        assert!(!plan(&node, at(600), 0).cut);
        assert!(!plan(&leaving(true), at(30), 3).accept);
    }

    fn shared() -> Arc<Shared> {
        use clap::Parser;
        let settings = crate::settings::Settings::try_parse_from(["dify-edge"]).expect("valid");
        Arc::new(Shared::new(settings))
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_in_an_ordered_drain_does_not_begin_the_notice_again() {
        let shared = shared();
        let ordered = leaving(false);
        let order = Drain { notice_ms: 30_000, bound_ms: 600_000 };
        let exit = asked(&shared, Ask::Terminate("SIGTERM"), None, Some(&(order, ordered)));
        assert_eq!((exit.since, exit.exits, exit.unready), (ordered.since, true, true));
        let again = asked(&shared, Ask::Terminate("SIGTERM"), Some(exit), None);
        assert!(plan(&again, Instant::now(), 1).cut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hand_over_stops_accepting_at_once_and_leaves_health_alone() {
        let shared = shared();
        let exit = asked(&shared, Ask::HandOver, None, None);
        let step = plan(&exit, Instant::now(), 1);
        let seen = (step.stage, step.accept, exit.unready);
        assert_eq!(seen, (Stage::Notice, false, false));
        let later = plan(&exit, Instant::now() + exit.notice, 1);
        assert_eq!((later.stage, later.accept), (Stage::Closing, false));
    }

    #[tokio::test(start_paused = true)]
    async fn the_process_may_end_when_nothing_is_in_flight_or_all_was_cut() {
        let shared = shared();
        let (asks, inbox) = mpsc::unbounded_channel();
        asks.send(Ask::Terminate("SIGTERM")).expect("open");
        let begun = Instant::now();
        let held = shared.counts.request();
        let mut life = shared.life.subscribe();
        let cutter = async {
            life.wait_for(|life| life.cuts == 1).await.expect("open");
            drop(held);
        };
        tokio::join!(run(Arc::clone(&shared), inbox), cutter);
        assert_eq!(begun.elapsed().as_secs(), 25 * 60);
    }
}
