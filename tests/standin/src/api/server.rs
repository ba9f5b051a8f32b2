//! MODE=api: gunicorn with gevent workers.
//!
//! SERVER_WORKER_CONNECTIONS is the size of gevent's pool: by default one process
//! serves 10 connections, and every open stream takes one. The port is bound before
//! Python imports anything, so TCP connects at once and nothing answers for half a minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Settings, routes};
use crate::bucket::{self, Storage};
use crate::env::Env;
use crate::failure::Failure;
use crate::http::{Manners, listen, serve};
use crate::pool::Pool;
use crate::{Image, log, startup, tasks};

/// What a request handler can reach.
#[derive(Debug)]
pub(super) struct App {
    pub(super) image: Image,
    pub(super) settings: Settings,
    pub(super) pool: Pool,
    pub(super) storage: Storage,
    /// For calls to services of our own; ignores proxies, as Dify's client of the daemon does.
    pub(super) direct: reqwest::Client,
    /// Gates that tests close and open by name.
    holds: Mutex<HashMap<String, CancellationToken>>,
}

impl App {
    pub(super) fn env(&self) -> &Env {
        &self.image.env
    }

    /// The gate of that name; cancelled once released.
    pub(super) fn hold(&self, name: &str) -> CancellationToken {
        self.holds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name.to_owned())
            .or_default()
            .clone()
    }
}

/// Serves until SIGTERM, then for the graceful timeout.
pub(super) async fn run(image: Image) -> Result<(), Failure> {
    let stop = tasks::stop_signal()?;
    let settings = Settings::read(&image)?;
    let env = &image.env;
    let (host, port) = (env.or("DIFY_BIND_ADDRESS", "0.0.0.0"), env.number("DIFY_PORT", 5001));
    let listener = listen(host, port).await?;
    let class =
        env.or("SERVER_WORKER_CLASS", "geventwebsocket.gunicorn.workers.GeventWebSocketWorker");
    gunicorn("Starting gunicorn 25.3.0");
    gunicorn(&format!("Listening at: http://{host}:{port} ({})", std::process::id()));
    gunicorn(&format!("Using worker: {class}"));
    tokio::select! {
        paid = startup::pay(&image.baked, startup::API) => paid?,
        () = stop.cancelled() => return Ok(()),
    }
    let processes = env.number("SERVER_WORKER_AMOUNT", 1_usize).max(1);
    let manners = Manners {
        connections: processes * env.number("SERVER_WORKER_CONNECTIONS", 10_usize),
        keep_alive: Duration::from_secs(2),
        graceful: graceful_timeout(env.or("GUNICORN_CMD_ARGS", "")),
    };
    let app = Arc::new(App {
        pool: Pool::new(settings.main.clone(), env, processes),
        storage: Storage::of_api(env).await?,
        direct: bucket::client(None)?,
        holds: Mutex::default(),
        settings,
        image: image.clone(),
    });
    gunicorn(&format!("Booting worker with pid: {}", std::process::id() + 1));
    let handler = move |request| {
        let app = Arc::clone(&app);
        async move { Box::pin(routes::answer(app, request)).await }
    };
    serve(listener, manners, stop, handler).await;
    gunicorn("Shutting down: Master");
    Ok(())
}

fn gunicorn(text: &str) {
    log::line(&format!("[{}] [INFO] {text}", std::process::id()));
}

/// `--graceful-timeout N` or `--graceful-timeout=N`; gunicorn's default is 30 s.
fn graceful_timeout(args: &str) -> Duration {
    let mut words = args.split([' ', '=']).filter(|word| !word.is_empty());
    let seconds =
        words.by_ref().find(|word| *word == "--graceful-timeout").and_then(|_| words.next());
    Duration::from_secs(seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or(30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graceful_timeout_in_both_spellings() {
        for (args, seconds) in [
            ("", 30),
            ("--graceful-timeout 600", 600),
            ("--log-level=debug --graceful-timeout=5", 5),
            ("--graceful-timeout", 30),
        ] {
            assert_eq!(graceful_timeout(args), Duration::from_secs(seconds), "{args}");
        }
    }
}
