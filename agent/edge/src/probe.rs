//! While the agent is silent, the edge asks the containers itself, once a second.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderValue};
use http::{Request, StatusCode};
use tracing::{info, warn};

use crate::body::RequestBody;
use crate::health;
use crate::state::{Shared, View};
use crate::upstream::connect::Link;

/// How often.
const PERIOD: Duration = Duration::from_secs(1);
/// How long an answer may take; a busy container answers late, not never.
const BOUND: Duration = Duration::from_secs(5);
/// Failures in a row that count as gone: one may be a restart of the container's
/// worker.
const FAILURES: u8 = 2;

/// What is known of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Probe {
    answered: bool,
    failures: u8,
}

impl Probe {
    /// It counts as there.
    pub(crate) fn answers(self) -> bool {
        self.answered
    }

    /// With one more result. The first one counts at once, later failures only
    /// in a row.
    #[must_use]
    pub(crate) fn after(self, answered: bool) -> Self {
        let failures = if answered { 0 } else { self.failures.saturating_add(1) };
        Self { answered: answered || (self.answered && failures < FAILURES), failures }
    }
}

/// Runs for the life of the process.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut was_stale = false;
    loop {
        tokio::time::sleep(PERIOD).await;
        let view = shared.view.borrow().clone();
        let stale = view.table.as_ref().is_some_and(|table| {
            health::is_stale(&table.orders, view.heard.map(|at| at.elapsed()))
        });
        if stale && !was_stale {
            warn!("agent is silent, judging readiness by the containers");
        } else if was_stale && !stale {
            info!("agent speaks again");
        }
        was_stale = stale;
        let probes = if stale { round(&view).await } else { BTreeMap::new() };
        shared.view.send_if_modified(|view| {
            let changed = *view.probes != probes;
            if changed {
                view.probes = Arc::new(probes);
            }
            changed
        });
    }
}

async fn round(view: &View) -> BTreeMap<String, Probe> {
    let Some(table) = &view.table else {
        return BTreeMap::new();
    };
    let asked = table.required().map(|(name, address, path)| async move {
        // An agent that spoke in this life vouches for what it ordered.
        let vouched = Probe { answered: view.heard.is_some(), failures: 0 };
        let before = view.probes.get(name).copied().unwrap_or(vouched);
        let answered = tokio::time::timeout(BOUND, ask(address, path)).await;
        (name.to_owned(), before.after(answered.unwrap_or(false)))
    });
    futures_util::future::join_all(asked).await.into_iter().collect()
}

async fn ask(address: SocketAddr, path: Option<&str>) -> bool {
    let Ok(mut link) = Link::open(address).await else {
        return false;
    };
    let Some(path) = path else {
        return true;
    };
    let mut request = Request::new(RequestBody::Empty);
    let Ok(uri) = path.parse() else {
        return false;
    };
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let answer = link.sender.send_request(request).await;
    answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_is_forgiven_to_who_answered_before() {
        let there = Probe::default().after(true);
        assert!(there.answers() && there.after(false).answers());
        assert!(!there.after(false).after(false).answers());
        assert!(there.after(false).after(true).after(false).answers());
        assert!(!Probe::default().after(false).answers());
    }
}
