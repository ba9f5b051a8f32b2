//! HTTP servers of the stand-ins: a listener with a bound on connections, and answers.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::failure::Failure;
use crate::tasks;

/// A response body.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
/// A response.
pub(crate) type Answer = Response<Body>;

/// How a server treats its connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    /// Connections served at once; others wait unaccepted in the kernel's backlog.
    pub(crate) connections: usize,
    /// An idle connection is closed after this.
    pub(crate) keep_alive: Duration,
    /// How long open requests may go on after the stop signal.
    pub(crate) graceful: Duration,
}

impl Manners {
    /// A server without a limit of its own (Go, Node).
    pub(crate) const RELAXED: Self = Self {
        connections: 10_000,
        keep_alive: Duration::from_mins(1),
        graceful: Duration::from_secs(5),
    };
    /// The Go plugin daemon exits at once, without draining.
    pub(crate) const ABRUPT: Self = Self { graceful: Duration::ZERO, ..Self::RELAXED };
}

/// Binds now, so that connections are taken by the kernel long before anyone answers.
pub(crate) async fn listen(host: &str, port: u16) -> Result<TcpListener, Failure> {
    TcpListener::bind((host, port))
        .await
        .map_err(|e| Failure::from(e).while_doing(&format!("listen on {host}:{port}")))
}

/// Serves until `stop`, then until the open requests end or `graceful` is over.
pub(crate) async fn serve<H, F>(
    listener: TcpListener,
    manners: Manners,
    stop: CancellationToken,
    handler: H,
) where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(manners.connections.max(1)));
    let open = TaskTracker::new();
    loop {
        let slot = tokio::select! {
            slot = Arc::clone(&slots).acquire_owned() => slot,
            () = stop.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let Ok((stream, _)) = accepted else { continue };
        let _best_effort = stream.set_nodelay(true);
        let (handler, stop) = (handler.clone(), stop.clone());
        tasks::spawn(open.track_future(async move {
            let _slot = slot;
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(manners.keep_alive)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => Some(ended),
                () = stop.cancelled() => None,
            };
            if ended.is_none() {
                connection.as_mut().graceful_shutdown();
                let _cut = tokio::time::timeout(manners.graceful, connection).await;
            }
        }));
    }
    drop(listener);
    open.close();
    // The tasks bound themselves by the same time; the margin is for their last poll.
    let _cut =
        tokio::time::timeout(manners.graceful + Duration::from_millis(200), open.wait()).await;
}

/// JSON with a status.
pub(crate) fn json(status: u16, value: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(value).unwrap_or_else(|e| e.to_string().into_bytes());
    with_type(status, "application/json", body)
}

/// HTML or text with a status.
pub(crate) fn with_type(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer =
        Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Flask's answer to an unhandled exception; the log has the cause.
pub(crate) fn internal_error(place: &str, failure: &Failure) -> Answer {
    crate::log::error(place, &failure.to_string());
    json(
        500,
        &serde_json::json!({"code": "internal_server_error", "message": "Internal Server Error", "status": 500}),
    )
}

/// Flask-RESTX's error document.
pub(crate) fn error(status: u16, code: &str, message: &str) -> Answer {
    json(status, &serde_json::json!({"code": code, "message": message, "status": status}))
}

/// `text/event-stream` fed through a channel; ends when the sender is dropped.
///
/// Like Dify it sets neither `X-Accel-Buffering` nor `no-transform`.
pub(crate) fn event_stream(events: mpsc::Receiver<String>) -> Answer {
    let events = stream::unfold(events, |mut events| async move {
        events.recv().await.map(|event| (event, events))
    });
    let mut answer = streamed(events.map(|event| Ok(Bytes::from(event))));
    let headers = answer.headers_mut();
    headers
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

/// A body of unknown length.
pub(crate) fn streamed(
    chunks: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> Answer {
    Response::new(StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync())
}

/// The whole request body, at most 16 MiB.
pub(crate) async fn read_body(body: Incoming) -> Result<Bytes, Failure> {
    match Limited::new(body, 16 << 20).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(problem) => Err(Failure::new(format!("request body: {problem}"))),
    }
}

/// A JSON request body; an empty or broken one is an empty object.
pub(crate) async fn read_json(body: Incoming) -> serde_json::Value {
    let bytes = read_body(body).await.unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_else(|_| serde_json::json!({}))
}

/// One query parameter, decoded.
pub(crate) fn query(uri: &http::Uri, name: &str) -> Option<String> {
    let pairs = uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| {
        percent_encoding::percent_decode_str(&value.replace('+', " "))
            .decode_utf8_lossy()
            .into_owned()
    })
}

/// A header as text; empty if it is missing.
pub(crate) fn header_of<'a>(headers: &'a http::HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    /// A server of one connection that answers when `gate` opens; its address.
    async fn start(
        gate: CancellationToken,
        stop: CancellationToken,
        graceful: Duration,
    ) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = listen("127.0.0.1", 0).await.unwrap();
        let address = listener.local_addr().unwrap();
        let manners = Manners { connections: 1, graceful, ..Manners::RELAXED };
        let handler = move |_| {
            let gate = gate.clone();
            async move {
                gate.cancelled().await;
                with_type(200, "text/plain", "done")
            }
        };
        (address, tasks::spawn(serve(listener, manners, stop, handler)))
    }

    async fn ask(address: std::net::SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        stream
    }

    async fn answer(mut stream: TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_connection_over_the_limit_is_taken_by_the_kernel_and_served_later() {
        let gate = CancellationToken::new();
        let (address, _server) =
            start(gate.clone(), CancellationToken::new(), Duration::ZERO).await;
        let (first, mut second) = (ask(address).await, ask(address).await);
        let early = tokio::time::timeout(Duration::from_millis(100), second.read_u8()).await;
        assert!(early.is_err(), "the second is not answered while the first is open");
        gate.cancel();
        assert!(answer(first).await.ends_with("done"));
        assert!(answer(second).await.ends_with("done"));
    }

    #[tokio::test]
    async fn an_open_request_ends_well_within_the_graceful_time() {
        let (gate, stop) = (CancellationToken::new(), CancellationToken::new());
        let (address, server) = start(gate.clone(), stop.clone(), Duration::from_secs(20)).await;
        let mut open = ask(address).await;
        let waiting = tokio::time::timeout(Duration::from_millis(50), open.read_u8()).await;
        assert!(waiting.is_err());
        stop.cancel();
        gate.cancel();
        assert!(answer(open).await.ends_with("done"));
        server.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }

    #[tokio::test]
    async fn a_request_longer_than_the_graceful_time_is_cut() {
        let (gate, stop) = (CancellationToken::new(), CancellationToken::new());
        let (address, server) = start(gate, stop.clone(), Duration::from_millis(50)).await;
        let mut open = ask(address).await;
        let waiting = tokio::time::timeout(Duration::from_millis(50), open.read_u8()).await;
        assert!(waiting.is_err());
        stop.cancel();
        server.await.unwrap();
        assert_eq!(answer(open).await, "");
    }
}
