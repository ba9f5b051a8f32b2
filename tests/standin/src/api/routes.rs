//! Which request does what.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderValue, Method, Request};
use http_body_util::{BodyDataStream, BodyExt as _};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

use super::server::App;
use super::{console, files, links, streams};
use crate::http::{Answer, error, header_of, json, query, streamed};
use crate::websocket;

/// Prefixes the front door sends to the api; under them an unknown path is echoed.
const ECHOED: [&str; 6] = ["/console/api/", "/api/", "/v1/", "/openapi/", "/mcp", "/triggers/"];

/// Answers one request.
pub(super) async fn answer(app: Arc<App>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let (post, get) = (request.method() == Method::POST, request.method() == Method::GET);
    let release = app.image.baked.release.clone();
    let mut answer = match path.as_str() {
        "/health" if get => {
            json(200, &json!({"pid": std::process::id(), "status": "ok", "version": release}))
        }
        "/console/api/ping" if get => json(200, &json!({"result": "pong"})),
        "/console/api/setup" if get => console::setup_state(&app).await,
        "/console/api/setup" if post => console::setup(&app, request).await,
        "/console/api/init" if get => console::init_state(&app, &request),
        "/console/api/init" if post => console::init(&app, request).await,
        "/v1/chat-messages" | "/api/chat-messages" if post => streams::chat(&app, request).await,
        "/v1/workflows/run" | "/api/workflows/run" if post => {
            streams::workflow(&app, request).await
        }
        "/files/upload" | "/v1/files/upload" | "/console/api/files/upload" if post => {
            files::upload(&app, request).await
        }
        "/v1/_echo" => echo(&app, request).await,
        "/v1/_mirror" if post => mirror(request),
        "/v1/_bytes" if get => {
            bytes(query(request.uri(), "n").and_then(|n| n.parse().ok()).unwrap_or(0))
        }
        "/v1/_slow" => {
            let millis = query(request.uri(), "ms").and_then(|ms| ms.parse().ok()).unwrap_or(1000);
            tokio::time::sleep(Duration::from_millis(millis)).await;
            json(200, &json!({"slept_ms": millis}))
        }
        "/v1/_release" => {
            app.hold(&query(request.uri(), "hold").unwrap_or_default()).cancel();
            json(200, &json!({"result": "released"}))
        }
        "/v1/_plugin" => links::plugin(&app).await,
        "/v1/_code" if post => links::code(&app, request).await,
        "/v1/_http" => links::http_node(&app, &request).await,
        "/v1/_vector" if post => links::vector(&app, request).await,
        inner if inner.starts_with("/inner/api/") => inner_api(&app, request).await,
        file if get && file.starts_with("/files/") => files::download(&app, file).await,
        socket if socket.starts_with("/socket.io/") => {
            if app.env().or("SERVER_WORKER_CLASS", "geventwebsocket").contains("geventwebsocket") {
                websocket::upgrade(request)
            } else {
                error(400, "bad_request", "this worker class has no WebSocket")
            }
        }
        "/v1/" | "/v1" => error(404, "not_found", "The requested URL was not found on the server."),
        other if ECHOED.iter().any(|prefix| other.starts_with(prefix)) => echo(&app, request).await,
        _ => error(404, "not_found", "The requested URL was not found on the server."),
    };
    let headers = answer.headers_mut();
    headers.insert("x-env", HeaderValue::from_static("PRODUCTION"));
    if let Ok(release) = HeaderValue::from_str(&release) {
        headers.insert("x-version", release);
    }
    answer
}

/// Says what arrived: for tests of headers, paths and bodies.
async fn echo(app: &App, request: Request<Incoming>) -> Answer {
    let (head, mut body) = request.into_parts();
    let mut headers = Map::new();
    for name in head.headers.keys() {
        let values: Vec<_> = head
            .headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        headers.insert(name.to_string(), Value::String(values.join(", ")));
    }
    let mut length = 0_usize;
    while let Some(Ok(frame)) = body.frame().await {
        length += frame.data_ref().map_or(0, Bytes::len);
    }
    json(
        200,
        &json!({
            "service": "api", "release": app.image.baked.release, "host": app.env().or("HOSTNAME", ""),
            "method": head.method.as_str(), "path": head.uri.path(), "query": head.uri.query(), "headers": headers, "body_bytes": length,
        }),
    )
}

/// Sends the body back while it arrives.
fn mirror(request: Request<Incoming>) -> Answer {
    streamed(
        BodyDataStream::new(request.into_body()).map(|chunk| chunk.map_err(std::io::Error::other)),
    )
}

/// So many bytes, without a length announced.
fn bytes(count: usize) -> Answer {
    const CHUNK: &[u8] = &[b'x'; 64 * 1024];
    streamed(stream::unfold(count, |left| async move {
        let now = left.min(CHUNK.len());
        (now > 0).then(|| (Ok(Bytes::from_static(&CHUNK[..now])), left - now))
    }))
}

/// The daemon's way back; key-protected, never routed from outside.
async fn inner_api(app: &App, request: Request<Incoming>) -> Answer {
    match app.env().get("INNER_API_KEY_FOR_PLUGIN") {
        Some(key) if header_of(request.headers(), "x-inner-api-key") == key => {
            echo(app, request).await
        }
        _ => error(401, "unauthorized", "invalid inner api key"),
    }
}
