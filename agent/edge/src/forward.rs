//! What to do with a request: health, refusal, or a walk to an upstream and back.
//! Everything about bytes lives elsewhere ([`crate::guard`], [`crate::body`]).

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response, StatusCode, request};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use tracing::debug;

use crate::access::Exchange;
use crate::answer::{self, Failure};
use crate::body::{EdgeBody, Relay, RequestBody, Upload};
use crate::drain::Stage;
use crate::guard::Client;
use crate::headers::{self, Leg};
use crate::health;
use crate::route::Decision;
use crate::upgrade;
use crate::upstream::Upstream;
use crate::upstream::connect::Link;
use crate::worker::Worker;

/// Answers one request; never fails, an error is an answer too.
pub(crate) async fn handle(
    worker: Arc<Worker>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<EdgeBody>, Infallible> {
    let shared = &worker.shared;
    let mut exchange = Exchange::new(&client, &request);
    if let Some(violation) = client.refused() {
        return Ok(fail(&worker, exchange, Failure::Refused(violation)));
    }
    let stage = shared.stage();
    if let Some(answer) = health::answer(request.method(), request.uri().path(), shared) {
        exchange.answered(answer.status());
        return Ok(own(answer, exchange, stage != Stage::Serving));
    }
    if client.surplus {
        return Ok(fail(&worker, exchange, Failure::Connections));
    }
    let Some(table) = shared.table() else {
        return Ok(fail(&worker, exchange, Failure::NoOrders));
    };
    let (upstream, hook_url) = match table.decide(request.uri().path()) {
        Err(violation) => return Ok(fail(&worker, exchange, Failure::Refused(violation))),
        Ok(Decision::NoRoute) => return Ok(fail(&worker, exchange, Failure::NoRoute)),
        Ok(Decision::Refuse(refusal)) => {
            shared.counts.own_answer();
            let answer = answer::refusal(refusal.status, &refusal.message);
            exchange.answered(answer.status());
            return Ok(own(answer, exchange, stage != Stage::Serving));
        }
        Ok(Decision::Forward(target)) => match &target.upstream {
            Some(upstream) => (Arc::clone(upstream), target.hook_url),
            None => return Ok(fail(&worker, exchange, Failure::NoUpstream)),
        },
    };
    if stage == Stage::Closing {
        return Ok(fail(&worker, exchange, Failure::Draining));
    }
    exchange.hold(shared.counts.request());
    exchange.goes_to(&upstream);
    let walk = Walk { worker: &worker, client: &client, upstream: &upstream, hook_url };
    match walk.go(request, exchange).await {
        Ok(response) => Ok(response),
        Err((failure, exchange)) => Ok(fail(&worker, exchange, failure)),
    }
}

/// One request's way to its upstream and back.
struct Walk<'a> {
    worker: &'a Arc<Worker>,
    client: &'a Arc<Client>,
    upstream: &'a Arc<Upstream>,
    hook_url: bool,
}

impl Walk<'_> {
    async fn go(
        &self,
        mut request: Request<Incoming>,
        mut exchange: Exchange,
    ) -> Result<Response<EdgeBody>, (Failure, Exchange)> {
        match self.upstream.slot().await {
            Ok(slot) => exchange.has(slot),
            Err(failure) => return Err((failure, exchange)),
        }
        let client_upgrade = hyper::upgrade::on(&mut request);
        let (mut head, body) = request.into_parts();
        let settings = &self.worker.shared.settings;
        let leg = Leg {
            peer: self.client.address,
            trust: &settings.trust,
            hook_url: self.hook_url,
            keep: self.upstream.spec.pooled,
        };
        let wanted = headers::towards_upstream(&mut head, leg);
        let upload = Upload::default();
        let body = if body.is_end_stream() {
            RequestBody::Empty
        } else {
            RequestBody::Client(body, upload.clone())
        };
        let (mut response, link) = match self.ask(head, body, &upload).await {
            Ok(answered) => answered,
            Err(failure) => return Err((failure, exchange)),
        };
        let status = response.status();
        exchange.answered(status);
        let closing = self.worker.shared.stage() != Stage::Serving;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            if wanted.is_none() {
                // Nobody asked; the bytes after it would be anyone's.
                return Err((Failure::Protocol, exchange));
            }
            return Ok(self.switch(client_upgrade, &mut response, link, exchange));
        }
        let (mut head, incoming) = response.into_parts();
        headers::towards_client(status, &mut head.headers, closing);
        let (upstream, worker) = (Arc::clone(self.upstream), Arc::clone(self.worker));
        let relay = Relay::new(incoming, link, upstream, worker);
        head.version = http::Version::HTTP_11;
        Ok(Response::from_parts(head, EdgeBody::relay(relay, exchange)))
    }

    /// Sends the request, once more if a connection that had lain idle proves
    /// dead before anything was answered and nothing of a body was spent.
    async fn ask(
        &self,
        head: request::Parts,
        body: RequestBody,
        upload: &Upload,
    ) -> Result<(Response<Incoming>, Link), Failure> {
        let address = self.upstream.spec.address;
        let idle = self.upstream.spec.pooled.then(|| self.worker.pool.take(address)).flatten();
        let Some(link) = idle else {
            return self
                .send(Link::open(address).await?, Request::from_parts(head, body), upload)
                .await
                .map_err(|lost| lost.failure);
        };
        let repeatable = matches!(body, RequestBody::Empty)
            && matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let spare = repeatable.then(|| copy(&head));
        match self.send(link, Request::from_parts(head, body), upload).await {
            Ok(answered) => Ok(answered),
            Err(Lost { failure, unsent }) => {
                let spare = spare.map(|head| Request::from_parts(head, RequestBody::Empty));
                let again = unsent.or(spare.filter(|_| failure == Failure::Closed));
                let Some(request) = again else {
                    return Err(failure);
                };
                debug!(upstream = self.upstream.name, "idle connection was dead, asking again");
                let link = Link::open(address).await?;
                self.send(link, request, upload).await.map_err(|lost| lost.failure)
            }
        }
    }

    async fn send(
        &self,
        mut link: Link,
        request: Request<RequestBody>,
        upload: &Upload,
    ) -> Result<(Response<Incoming>, Link), Lost> {
        let bound = self.worker.shared.settings.timeouts.response;
        let answer = link.sender.try_send_request(request);
        match tokio::time::timeout(bound, answer).await {
            Ok(Ok(response)) => Ok((response, link)),
            Err(_) => Err(Lost::from(Failure::HeadTimeout)),
            Ok(Err(mut error)) => {
                let unsent = error.take_message();
                let error = error.into_error();
                let failure = if upload.failed() {
                    Failure::ClientBody
                } else if error.is_parse() || error.is_parse_too_large() {
                    Failure::Protocol
                } else {
                    Failure::Closed
                };
                debug!(upstream = self.upstream.name, %error, "no answer from upstream");
                Err(Lost { failure, unsent })
            }
        }
    }

    fn switch(
        &self,
        client: OnUpgrade,
        response: &mut Response<Incoming>,
        link: Link,
        exchange: Exchange,
    ) -> Response<EdgeBody> {
        let mut answer = Response::new(EdgeBody::own(Bytes::new(), None));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        std::mem::swap(answer.headers_mut(), response.headers_mut());
        headers::towards_client(StatusCode::SWITCHING_PROTOCOLS, answer.headers_mut(), false);
        let upstream = hyper::upgrade::on(response);
        let websocket = answer.headers().get(http::header::UPGRADE);
        let websocket = websocket.is_some_and(|p| p.as_bytes().eq_ignore_ascii_case(b"websocket"));
        upgrade::start(self.worker, client, upstream, link, exchange, websocket);
        answer
    }
}

/// A request that got no answer, and the request itself if it never left.
struct Lost {
    failure: Failure,
    unsent: Option<Request<RequestBody>>,
}

impl From<Failure> for Lost {
    fn from(failure: Failure) -> Self {
        Self { failure, unsent: None }
    }
}

fn copy(head: &request::Parts) -> request::Parts {
    let (mut copy, ()) = Request::new(()).into_parts();
    copy.method = head.method.clone();
    copy.uri = head.uri.clone();
    copy.headers = head.headers.clone();
    copy
}

fn fail(worker: &Worker, mut exchange: Exchange, failure: Failure) -> Response<EdgeBody> {
    worker.shared.counts.own_answer();
    exchange.failed(failure);
    let broken =
        matches!(failure, Failure::Refused(_) | Failure::ClientBody | Failure::Connections);
    own(failure.answer(), exchange, broken || worker.shared.stage() != Stage::Serving)
}

fn own(answer: Response<Bytes>, exchange: Exchange, close: bool) -> Response<EdgeBody> {
    let mut response = answer.map(|bytes| EdgeBody::own(bytes, Some(exchange)));
    if close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
