//! agent_backend and local_sandbox (Dify 1.16 and later).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;
use hyper::body::Incoming;
use serde_json::json;

use crate::failure::Failure;
use crate::http::{Manners, error, header_of, json, listen, serve};
use crate::{Image, cache, log, startup, tasks};

/// Port 5050; runs get 30 s at the end.
pub(crate) async fn backend(image: Image) -> Result<(), Failure> {
    let stop = tasks::stop_signal()?;
    let key = image.env.or("DIFY_AGENT_SERVER_SECRET_KEY", "");
    if !is_32_bytes(key) {
        return Err(Failure::new(
            "ValueError: DIFY_AGENT_SERVER_SECRET_KEY must be exactly 32 bytes as unpadded base64url",
        ));
    }
    tokio::select! {
        paid = startup::pay(&image.baked, startup::AGENT) => paid?,
        () = stop.cancelled() => return Ok(()),
    }
    if let Some(url) = image.env.get("DIFY_AGENT_REDIS_URL") {
        // from_url: TLS options only by the query string, as for the event bus.
        let (target, _) = cache::parse_url(url)?;
        if let Err(failure) = target.connect().await {
            log::error("redis.py", &failure.to_string());
        }
    }
    let token = image.env.get("DIFY_AGENT_API_TOKEN").map(str::to_owned);
    let graceful = image.env.seconds("DIFY_AGENT_SHUTDOWN_GRACE_SECONDS", 30);
    keyed(image, 5050, "/standin/none", token, graceful, stop).await
}

/// Port 5004, `GET /healthz`.
pub(crate) async fn local_sandbox(image: Image) -> Result<(), Failure> {
    let stop = tasks::stop_signal()?;
    tokio::select! {
        paid = startup::pay(&image.baked, startup::SANDBOX) => paid?,
        () = stop.cancelled() => return Ok(()),
    }
    let token = image.env.get("SHELLCTL_AUTH_TOKEN").map(str::to_owned);
    keyed(image, 5004, "/healthz", token, Duration::from_secs(5), stop).await
}

/// One open path, everything else behind a bearer token.
async fn keyed(
    image: Image,
    port: u16,
    open: &'static str,
    token: Option<String>,
    graceful: Duration,
    stop: tokio_util::sync::CancellationToken,
) -> Result<(), Failure> {
    let listener = listen("0.0.0.0", port).await?;
    log::line(&format!("INFO:     Uvicorn running on http://0.0.0.0:{port}"));
    let expected = token.map(|token| format!("Bearer {token}"));
    let host = image.env.or("HOSTNAME", "").to_owned();
    let handler = move |request: Request<Incoming>| {
        let answer = if request.uri().path() == open {
            json(200, &json!({"status": "ok"}))
        } else if expected
            .as_deref()
            .is_none_or(|expected| header_of(request.headers(), "authorization") == expected)
        {
            json(200, &json!({"host": host, "path": request.uri().path()}))
        } else {
            error(401, "unauthorized", "invalid token")
        };
        async move { answer }
    };
    serve(listener, Manners { graceful, ..Manners::RELAXED }, stop, handler).await;
    Ok(())
}

fn is_32_bytes(key: &str) -> bool {
    URL_SAFE_NO_PAD.decode(key).is_ok_and(|bytes| bytes.len() == 32)
}

#[cfg(test)]
mod tests {
    use super::is_32_bytes;

    #[test]
    fn the_secret_key_is_32_bytes_without_padding() {
        assert!(is_32_bytes(&"A".repeat(43)));
        assert!(!is_32_bytes(&format!("{}=", "A".repeat(43))));
        assert!(!is_32_bytes(&"A".repeat(42)) && !is_32_bytes(""));
    }
}
