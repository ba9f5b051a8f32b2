//! One static program that stands in for every image of a Dify release.
//!
//! It speaks the real protocols (PostgreSQL, Redis, Cloud Storage's JSON API,
//! HTTP, WebSocket), reads the same environment the real programs read, and is
//! wrong in the same places: whoever wires it wrongly sees the failure the real
//! image would show. What it does for its users (models, documents) is make-believe.
//!
//! Dispatch is by name, as busybox does it, since tests and probes run the
//! paths of the real images inside the container:
//!
//! | path in the image | role |
//! |---|---|
//! | `/bin/bash /entrypoint.sh ARGS` | api image: MODE chooses api, worker, beat, job, migration |
//! | `/usr/local/bin/flask ARGS` | `flask db heads`, `db current`, `upgrade-db` |
//! | `/usr/local/bin/celery ARGS` | `celery ... inspect ping -d celery@HOST` |
//! | `/standin ROLE` | `web`, `plugin_daemon`, `sandbox`, `squid`, `agent_backend`, `local_sandbox` |
//!
//! `README.md` beside this crate lists what an image bakes in and what is simplified.

mod agent_services;
mod api;
mod baked;
mod beat;
mod bucket;
mod bus;
mod cache;
mod celery;
mod daemon;
mod env;
mod failure;
mod http;
mod log;
mod pool;
mod postgres;
mod sandbox;
mod sha1;
mod squid;
mod startup;
mod tasks;
mod tls;
mod web;
mod websocket;
mod worker;

use std::process::ExitCode;

use baked::Baked;
use env::Env;
use failure::Failure;

/// What every role gets: the wired environment and what the image baked in.
#[derive(Clone, Debug)]
struct Image {
    env: Env,
    baked: Baked,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let env = Env::of_process();
    let image = match Baked::read(&env) {
        Ok(baked) => Image { env, baked },
        Err(problem) => {
            log::line(&format!("standin: {problem}"));
            return ExitCode::from(64);
        }
    };
    tls::install_provider();
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(problem) => {
                log::line(&format!("standin: no runtime: {problem}"));
                return ExitCode::from(71);
            }
        };
    let code = runtime.block_on(Box::pin(run(&args, image)));
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// Chooses the role; the number is the process's exit status.
async fn run(args: &[String], image: Image) -> u8 {
    let called = args.first().map_or("", String::as_str);
    let name = called.rsplit('/').next().unwrap_or(called);
    let first = args.get(1).map_or("", String::as_str);
    let ended = match (name, first) {
        ("bash", script) if script.ends_with("entrypoint.sh") => {
            return api::entrypoint(image, &args[2..]).await;
        }
        ("flask", _) => return api::flask(image, &args[1..]).await,
        ("celery", _) => return celery::command(image, &args[1..]).await,
        (_, "web") => web::run(image).await,
        (_, "plugin_daemon") => daemon::run(image).await,
        (_, "sandbox") => sandbox::run(image).await,
        (_, "squid") => squid::run(image).await,
        (_, "agent_backend") => agent_services::backend(image).await,
        (_, "local_sandbox") => agent_services::local_sandbox(image).await,
        (_, role) => Err(Failure::new(format!("no role \"{role}\" under the name \"{name}\""))),
    };
    match ended {
        Ok(()) => 0,
        Err(failure) => {
            log::line(&failure.to_string());
            failure.status()
        }
    }
}
