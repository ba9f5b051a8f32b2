//! `/health` (send me traffic) and `/health/live` (do not recreate me): two
//! questions for two askers, answered from what is known, never by asking.
//! The verdict is a pure function of facts and durations.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dify_common::wire::edge::Orders;
use http::header::{ALLOW, HeaderValue};
use http::{Method, Response, StatusCode};
use serde_json::json;

use crate::answer;
use crate::probe::Probe;
use crate::state::Shared;

/// Silence that makes liveness fail when no orders ever said how long: several
/// times what systemd needs to bring an agent back.
const SILENT_FAULT: Duration = Duration::from_mins(5);

/// What the verdict is made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) orders: Option<&'a Orders>,
    /// Since the agent last spoke; `None`: never in this life.
    pub(crate) heard: Option<Duration>,
    pub(crate) up: Duration,
    /// This instance is leaving and wants no more traffic.
    pub(crate) leaving: bool,
    pub(crate) probes: &'a BTreeMap<String, Probe>,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) ready: bool,
    pub(crate) live: bool,
    /// Judged without the agent.
    pub(crate) stale: bool,
    pub(crate) draining: bool,
    pub(crate) missing: Vec<String>,
    pub(crate) faults: Vec<String>,
}

/// The agent has been silent so long, or is so new, that the edge judges for itself.
pub(crate) fn is_stale(orders: &Orders, heard: Option<Duration>) -> bool {
    orders.adopting || heard.is_none_or(|ago| ago > Duration::from_millis(orders.stale_after_ms))
}

/// The verdict.
pub(crate) fn judge(facts: Facts<'_>) -> Verdict {
    let silence = facts.heard.unwrap_or(facts.up);
    let Some(orders) = facts.orders else {
        let gone = silence > SILENT_FAULT;
        return Verdict {
            ready: false,
            live: !gone,
            stale: false,
            draining: facts.leaving,
            missing: vec!["agent".to_owned()],
            faults: gone.then(|| "agent".to_owned()).into_iter().collect(),
        };
    };
    let stale = is_stale(orders, facts.heard);
    let draining = facts.leaving || orders.drain.is_some();
    let mut missing = orders.missing.clone();
    if stale {
        let required = orders.upstreams.iter().filter(|(_, spec)| spec.required);
        for (name, _) in required {
            // Before the first result: an agent that spoke in this life vouches.
            let answers =
                facts.probes.get(name).map_or(facts.heard.is_some(), |probe| probe.answers());
            if !answers && !missing.contains(name) {
                missing.push(name.clone());
            }
        }
    }
    let mut faults = orders.faults.clone();
    let gone = silence > Duration::from_millis(orders.silent_fault_after_ms);
    if gone {
        faults.push("agent".to_owned());
    }
    Verdict {
        ready: orders.ready && !draining && (!stale || missing.is_empty()),
        live: orders.live && !gone,
        stale,
        draining,
        missing,
        faults,
    }
}

/// The answer, when the path is one of the two.
pub(crate) fn answer(method: &Method, path: &str, shared: &Shared) -> Option<Response<Bytes>> {
    let ready = match path {
        "/health" => true,
        "/health/live" => false,
        _ => return None,
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut refused = answer::refusal(405, "health is read with GET or HEAD");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(refused);
    }
    let view = shared.view.borrow().clone();
    let orders = view.table.as_ref().map(|table| &table.orders);
    let verdict = judge(Facts {
        orders,
        heard: view.heard.map(|at| at.elapsed()),
        up: shared.started.elapsed(),
        leaving: shared.life.borrow().unready,
        probes: &view.probes,
    });
    Some(if ready { readiness(&verdict, orders) } else { liveness(&verdict, orders) })
}

fn readiness(verdict: &Verdict, orders: Option<&Orders>) -> Response<Bytes> {
    let body = json!({
        "status": if verdict.ready { "ok" } else { "unavailable" },
        "node": orders.map(|orders| &orders.node),
        "release": orders.and_then(|orders| orders.release.as_ref()),
        "phase": orders.map(|orders| orders.phase.as_str()),
        "draining": verdict.draining,
        "missing": verdict.missing,
        "stale": verdict.stale,
    });
    answer::json(status(verdict.ready), &body)
}

fn liveness(verdict: &Verdict, orders: Option<&Orders>) -> Response<Bytes> {
    let body = json!({
        "status": if verdict.live { "ok" } else { "faulty" },
        "node": orders.map(|orders| &orders.node),
        "faults": verdict.faults,
    });
    answer::json(status(verdict.live), &body)
}

fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::tests::dify;
    use dify_common::wire::edge::Drain;

    const SECOND: Duration = Duration::from_secs(1);

    fn judged(
        orders: &Orders,
        heard: Option<u64>,
        answering: &[&str],
        failing: &[&str],
    ) -> Verdict {
        let mut probes = BTreeMap::new();
        for name in answering {
            probes.insert((*name).to_owned(), Probe::default().after(true));
        }
        for name in failing {
            probes.insert((*name).to_owned(), Probe::default().after(false).after(false));
        }
        judge(Facts {
            orders: Some(orders),
            heard: heard.map(|seconds| SECOND * u32::try_from(seconds).expect("small")),
            up: SECOND * 1000,
            leaving: false,
            probes: &probes,
        })
    }

    #[test]
    fn an_adopting_agent_is_alive_and_the_containers_are_asked() {
        let orders = Orders { adopting: true, ..dify() };
        let verdict = judged(&orders, Some(1), &["api", "web"], &[]);
        assert!(verdict.ready && verdict.stale && verdict.live);
        assert!(!judged(&orders, Some(1), &["web"], &["api"]).ready);
    }

    #[test]
    fn a_talking_agent_is_believed() {
        let verdict = judged(&dify(), Some(1), &[], &["api"]);
        assert!(verdict.ready && verdict.live && !verdict.stale && verdict.missing.is_empty());
        let mut orders = dify();
        orders.ready = false;
        orders.missing = vec!["database".to_owned()];
        let verdict = judged(&orders, Some(1), &[], &[]);
        assert!(!verdict.ready && verdict.live);
        assert_eq!(verdict.missing, ["database"]);
    }

    #[test]
    fn a_silent_agent_leaves_readiness_to_the_containers() {
        let all = ["api", "web", "plugin_daemon"];
        let verdict = judged(&dify(), Some(6), &all, &[]);
        assert!(verdict.ready && verdict.stale && verdict.live);
        let verdict = judged(&dify(), Some(6), &["web", "plugin_daemon"], &["api"]);
        assert!(!verdict.ready && verdict.stale);
        assert_eq!(verdict.missing, ["api"]);
        // Silence never makes a node ready that was not.
        let mut orders = dify();
        orders.ready = false;
        assert!(!judged(&orders, Some(6), &all, &[]).ready);
    }

    #[test]
    fn orders_from_disk_count_only_once_the_containers_answered() {
        let verdict = judged(&dify(), None, &[], &[]);
        assert!(!verdict.ready && verdict.stale);
        assert_eq!(verdict.missing, ["api", "plugin_daemon", "web"]);
        assert!(judged(&dify(), None, &["api", "web", "plugin_daemon"], &[]).ready);
    }

    #[test]
    fn long_silence_is_a_fault_of_this_node_and_nothing_else_is() {
        let verdict = judged(&dify(), Some(61), &["api", "web", "plugin_daemon"], &[]);
        assert!(verdict.ready && !verdict.live);
        assert_eq!(verdict.faults, ["agent"]);
        let verdict = judged(&dify(), Some(59), &[], &["api", "web"]);
        assert!(verdict.live && verdict.faults.is_empty());
        let mut orders = dify();
        orders.live = false;
        orders.faults = vec!["docker".to_owned()];
        assert!(!judged(&orders, Some(1), &[], &[]).live);
    }

    #[test]
    fn no_orders_is_not_ready_and_not_dead_for_a_while() {
        let probes = BTreeMap::new();
        let facts = |up| Facts { orders: None, heard: None, up, leaving: false, probes: &probes };
        let verdict = judge(facts(SECOND));
        assert!(!verdict.ready && verdict.live);
        assert!(!judge(facts(SILENT_FAULT + SECOND)).live);
    }

    #[test]
    fn a_drain_is_unready_and_alive() {
        let mut orders = dify();
        orders.drain = Some(Drain { notice_ms: 1, bound_ms: 1 });
        let verdict = judged(&orders, Some(1), &[], &[]);
        assert!(!verdict.ready && verdict.live && verdict.draining);
    }
}
