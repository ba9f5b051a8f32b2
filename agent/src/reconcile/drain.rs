//! How the node leaves service, as a pure function of what the edges carry and
//! how long it has been going on.
//!
//! Order: not ready -> the load balancer notices -> streams end -> (stop only)
//! containers stop, workers with time for their runs, the plugin daemon last.

use std::time::Duration;

use dify_common::wire::edge::{EdgeState, Report};

use crate::config::settings::DrainTimes;

/// Where a drain stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// New requests are still served until the load balancer noticed.
    Notice {
        /// Left of the notice time.
        left: Duration,
    },
    /// Streams are coming to their end.
    Streams {
        /// Requests in flight over all edges.
        in_flight: u32,
        /// Left of the bound; what remains then is cut by the edge.
        left: Duration,
    },
    /// Nothing is in flight, or the bound has passed with this much left.
    Drained {
        /// Requests that were cut.
        cut: u32,
    },
}

/// The stage after `elapsed` of draining with edges that say `edges`.
pub fn stage(times: DrainTimes, elapsed: Duration, edges: &[Report]) -> Stage {
    let in_flight = edges.iter().map(|edge| edge.in_flight).sum();
    if elapsed < times.notice {
        return Stage::Notice { left: times.notice.saturating_sub(elapsed) };
    }
    // An edge that has not taken the order yet may say 0 before its clients come.
    let obeyed =
        edges.iter().all(|edge| matches!(edge.state, EdgeState::Draining | EdgeState::Drained));
    if in_flight == 0 && obeyed {
        return Stage::Drained { cut: 0 };
    }
    let left = times.bound.saturating_sub(elapsed);
    if left.is_zero() {
        Stage::Drained { cut: in_flight }
    } else {
        Stage::Streams { in_flight, left }
    }
}

impl Stage {
    /// For `/status` and the log.
    pub fn reason(&self) -> String {
        match self {
            Self::Notice { left } => {
                format!("load balancer has {} s left to notice", left.as_secs())
            }
            Self::Streams { in_flight, left } => {
                format!("{in_flight} requests in flight, {} s left", left.as_secs())
            }
            Self::Drained { cut: 0 } => "nothing is in flight".to_owned(),
            Self::Drained { cut } => format!("{cut} requests were cut at the bound"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const TIMES: DrainTimes =
        DrainTimes { notice: Duration::from_secs(30), bound: Duration::from_mins(10) };

    fn edge(state: EdgeState, in_flight: u32) -> Report {
        Report {
            instance: "a".into(),
            pid: 1,
            version: "0".into(),
            sequence: 1,
            state,
            listen: None,
            in_flight,
            upgraded: 0,
            by_upstream: BTreeMap::new(),
            requests: 0,
            own_answers: 0,
        }
    }

    #[test]
    fn an_idle_node_still_gives_the_load_balancer_its_time() {
        let edges = [edge(EdgeState::Draining, 0)];
        let at = |seconds| stage(TIMES, Duration::from_secs(seconds), &edges);
        assert!(matches!(at(29), Stage::Notice { .. }));
        assert_eq!(at(30), Stage::Drained { cut: 0 });
    }

    #[test]
    fn streams_are_waited_for_within_the_bound() {
        let edges = [edge(EdgeState::Draining, 2), edge(EdgeState::Draining, 3)];
        let at = |seconds| stage(TIMES, Duration::from_secs(seconds), &edges);
        assert!(matches!(at(31), Stage::Streams { in_flight: 5, .. }));
        assert_eq!(at(600), Stage::Drained { cut: 5 });
    }

    #[test]
    fn an_edge_that_has_not_obeyed_yet_is_waited_for() {
        let found = stage(TIMES, Duration::from_secs(31), &[edge(EdgeState::Serving, 0)]);
        assert!(matches!(found, Stage::Streams { .. }));
    }

    #[test]
    fn without_any_edge_there_is_nothing_to_wait_for() {
        assert_eq!(stage(TIMES, Duration::from_secs(31), &[]), Stage::Drained { cut: 0 });
    }
}
