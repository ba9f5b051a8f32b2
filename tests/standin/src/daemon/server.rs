//! The daemon's HTTP: health, metrics, endpoints, and the key-protected plugin API.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::Request;
use hyper::body::Incoming;
use serde_json::json;

use super::Daemon;
use crate::failure::Failure;
use crate::http::{Answer, header_of, json, with_type};

/// Answers one request.
pub(super) async fn answer(daemon: Arc<Daemon>, request: Request<Incoming>) -> Answer {
    daemon.active.fetch_add(1, Ordering::Relaxed);
    let answer = route(&daemon, &request).await;
    daemon.active.fetch_sub(1, Ordering::Relaxed);
    answer
}

async fn route(daemon: &Daemon, request: &Request<Incoming>) -> Answer {
    let env = &daemon.image.env;
    match request.uri().path() {
        "/health/check" => json(
            200,
            &json!({
                "status": "ok", "pool_status": {"free": 10_000, "busy": 0, "total": 10_000}, "version": daemon.image.baked.release,
                "build_time": "2026-01-01T00:00:00", "platform": env.or("PLATFORM", "local"),
                "active_requests": daemon.active.load(Ordering::Relaxed), "active_dispatch_requests": 0,
            }),
        ),
        "/metrics/" | "/metrics" if env.flag("PROMETHEUS_ENABLED", true) => {
            let running = daemon.plugins.running().len();
            with_type(
                200,
                "text/plain; version=0.0.4",
                format!(
                    "# TYPE standin_plugin_runtimes gauge\nstandin_plugin_runtimes {running}\n"
                ),
            )
        }
        hook if hook.starts_with("/e/") => json(
            200,
            &json!({
                "service": "plugin_daemon", "host": env.or("HOSTNAME", ""), "method": request.method().as_str(), "path": hook,
                "hook_url": header_of(request.headers(), "dify-hook-url"), "host_header": header_of(request.headers(), "host"),
                "forwarded_proto": header_of(request.headers(), "x-forwarded-proto"), "forwarded_for": header_of(request.headers(), "x-forwarded-for"),
            }),
        ),
        api if api.starts_with("/plugin/") => {
            if header_of(request.headers(), "x-api-key") == env.or("SERVER_KEY", "") {
                json(
                    200,
                    &json!({"code": 0, "host": env.or("HOSTNAME", ""), "plugins": daemon.plugins.running(), "inner_status": inner(daemon).await}),
                )
            } else {
                json(401, &json!({"code": -401, "message": "unauthorized"}))
            }
        }
        _ => with_type(404, "text/plain", "404 page not found"),
    }
}

/// The way back to the api: the status of a call with DIFY_INNER_API_KEY, or the error.
async fn inner(daemon: &Daemon) -> serde_json::Value {
    let env = &daemon.image.env;
    let url = format!(
        "{}/inner/api/invoke/standin",
        env.or("DIFY_INNER_API_URL", "").trim_end_matches('/')
    );
    match daemon
        .http
        .post(url)
        .header("X-Inner-Api-Key", env.or("DIFY_INNER_API_KEY", ""))
        .send()
        .await
    {
        Ok(response) => json!(response.status().as_u16()),
        Err(problem) => json!(Failure::from(problem).to_string()),
    }
}
