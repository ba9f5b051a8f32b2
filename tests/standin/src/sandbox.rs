//! The code sandbox: its "code" is a few commands that show what a user's code could reach.
//!
//! One command a line: `connect HOST PORT` (a bare TCP connection), `get URL`
//! (through HTTP_PROXY), `direct URL` (without it), `env` (names of the
//! variables, no values), `sleep MS`; anything else is printed as it is.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use hyper::body::Incoming;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::bucket;
use crate::env::Env;
use crate::failure::Failure;
use crate::http::{Answer, Manners, header_of, json, listen, read_json, serve};
use crate::{Image, log, startup, tasks};

/// Serves on port 8194; panics like the Go program without its configuration file.
pub(crate) async fn run(image: Image) -> Result<(), Failure> {
    let stop = tasks::stop_signal()?;
    if let Err(problem) = std::fs::read_to_string("/conf/config.yaml") {
        return Err(Failure::new(format!(
            "panic: failed to init config: open conf/config.yaml: {problem}"
        ))
        .with_status(2));
    }
    tokio::select! {
        paid = startup::pay(&image.baked, startup::SANDBOX) => paid?,
        () = stop.cancelled() => return Ok(()),
    }
    let listener = listen("0.0.0.0", image.env.number("SANDBOX_PORT", 8194)).await?;
    log::line("setting up sandbox server\n[GIN-debug] Listening and serving HTTP on :8194");
    let sandbox = Arc::new(Sandbox {
        requests: Semaphore::new(image.env.number("MAX_REQUESTS", 50)),
        workers: Semaphore::new(image.env.number("MAX_WORKERS", 4_usize).max(1)),
        env: image.env,
    });
    let handler = move |request| {
        let sandbox = Arc::clone(&sandbox);
        async move { sandbox.answer(request).await }
    };
    serve(listener, Manners::RELAXED, stop, handler).await;
    Ok(())
}

struct Sandbox {
    env: Env,
    requests: Semaphore,
    workers: Semaphore,
}

impl Sandbox {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/health") => json(200, &"ok"),
            (&Method::POST, "/v1/sandbox/run") => {
                if header_of(request.headers(), "x-api-key")
                    != self.env.or("API_KEY", "dify-sandbox")
                {
                    return json(
                        401,
                        &json!({"code": -401, "message": "unauthorized", "data": null}),
                    );
                }
                let (Ok(_request), Ok(_worker)) =
                    (self.requests.try_acquire(), self.workers.acquire().await)
                else {
                    return json(
                        503,
                        &json!({"code": -503, "message": "Too many requests", "data": null}),
                    );
                };
                let body = read_json(request.into_body()).await;
                let limit = self.env.seconds("WORKER_TIMEOUT", 5);
                let mut stdout = String::new();
                let running = self.execute(body["code"].as_str().unwrap_or(""), &mut stdout);
                let ended = tokio::time::timeout(limit, running).await;
                let error = if ended.is_ok() { "" } else { "error: timeout" };
                json(
                    200,
                    &json!({"code": 0, "message": "success", "data": {"stdout": stdout, "error": error}}),
                )
            }
            _ => json(404, &json!({"code": -404, "message": "not found", "data": null})),
        }
    }

    async fn execute(&self, code: &str, output: &mut String) {
        for line in code.lines().filter(|line| !line.trim().is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let said = match words.as_slice() {
                ["connect", host, port] => connect(host, port.parse().unwrap_or(0)).await,
                ["get", url] => {
                    get(
                        url,
                        self.env.get(if url.starts_with("https:") {
                            "HTTPS_PROXY"
                        } else {
                            "HTTP_PROXY"
                        }),
                    )
                    .await
                }
                ["direct", url] => get(url, None).await,
                ["env"] => format!("{:?}", self.env),
                ["sleep", millis] => {
                    tokio::time::sleep(Duration::from_millis(millis.parse().unwrap_or(0))).await;
                    "slept".to_owned()
                }
                _ => line.to_owned(),
            };
            output.push_str(&said);
            output.push('\n');
        }
    }
}

async fn connect(host: &str, port: u16) -> String {
    match tokio::time::timeout(Duration::from_secs(2), TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => format!("connected {host}:{port}"),
        Ok(Err(problem)) => format!("failed {host}:{port}: {problem}"),
        Err(_) => format!("failed {host}:{port}: timeout"),
    }
}

async fn get(url: &str, proxy: Option<&str>) -> String {
    let asked = async {
        let response =
            bucket::client(proxy)?.get(url).timeout(Duration::from_secs(3)).send().await?;
        let status = response.status().as_u16();
        Ok::<_, Failure>(format!(
            "{status} {}",
            response.text().await?.chars().take(2000).collect::<String>()
        ))
    };
    asked.await.unwrap_or_else(|failure| format!("failed {url}: {failure}"))
}
