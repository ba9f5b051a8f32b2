//! One exchange from its first to its last byte, and the line that is logged of
//! it when it ends, however it ends.

use std::sync::Arc;
use std::time::Duration;

use dify_common::chain::Chain;
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::answer::Failure;
use crate::body::BodyError;
use crate::guard::Client;
use crate::inflight::Held;
use crate::upstream::{Slot, Upstream};

/// An exchange in progress. Dropping it ends it: slot and counts are given
/// back, the client's next request may pass, the line is written.
#[derive(Debug)]
pub(crate) struct Exchange {
    client: Arc<Client>,
    started: Instant,
    method: Method,
    target: Option<PathAndQuery>,
    upstream: Option<Arc<Upstream>>,
    status: Option<StatusCode>,
    /// Kind of the edge's own answer.
    own: Option<&'static str>,
    /// Until the response head.
    first: Duration,
    sent: u64,
    complete: bool,
    broken: Option<String>,
    slot: Option<Slot>,
    held: Option<Held>,
}

impl Exchange {
    /// Begins with a request's head.
    pub(crate) fn new(client: &Arc<Client>, request: &http::Request<Incoming>) -> Self {
        Self {
            client: Arc::clone(client),
            started: Instant::now(),
            method: request.method().clone(),
            target: request.uri().path_and_query().cloned(),
            upstream: None,
            status: None,
            own: None,
            first: Duration::ZERO,
            sent: 0,
            complete: false,
            broken: None,
            slot: None,
            held: None,
        }
    }

    /// Counts as in flight from here on.
    pub(crate) fn hold(&mut self, held: Held) {
        self.held = Some(held);
    }

    /// Goes to an upstream.
    pub(crate) fn goes_to(&mut self, upstream: &Arc<Upstream>) {
        self.upstream = Some(Arc::clone(upstream));
    }

    /// Has its place there.
    pub(crate) fn has(&mut self, slot: Slot) {
        self.slot = Some(slot);
    }

    /// The response head is known.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.first = self.started.elapsed();
    }

    /// The answer is the edge's own.
    pub(crate) fn failed(&mut self, failure: Failure) {
        self.own = Some(failure.kind());
        // What waits at the upstream's door must not hold its slot.
        self.slot = None;
        self.answered(failure.status());
    }

    /// So many bytes of body went out.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// The body ended as it should.
    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }

    /// The body broke off on the upstream's side.
    pub(crate) fn broke(&mut self, error: &BodyError) {
        self.broken = Some(Chain(error).to_string());
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.client.finished();
        // The query may hold tokens; it is never logged.
        let path = self.target.as_ref().map_or("", PathAndQuery::path);
        let status = self.status.map_or(0, |status| status.as_u16());
        let ended = match (&self.broken, self.complete) {
            (Some(why), _) => why.as_str(),
            (None, true) => "complete",
            (None, false) => "client left or was cut",
        };
        let upstream = self.upstream.as_ref().map_or("", |upstream| &upstream.name);
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    method = %self.method, path, status, upstream, ended,
                    own = self.own.unwrap_or(""),
                    client = %self.client.address,
                    bytes = self.sent,
                    first_ms = millis(self.first),
                    total_ms = millis(self.started.elapsed()),
                    "request"
                )
            };
        }
        if self.own.is_some() && status >= 500 {
            line!(info);
        } else {
            line!(debug);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
