//! `logs`, `job`, `retry-migration`: verbs that need the engine, not the agent.

use std::pin::pin;

use dify_common::gcp::token::Tokens;
use dify_common::settings::Environment;
use futures_util::StreamExt;

use super::table::{complain, say};
use super::{Told, told};
use crate::engine::{Ended, Engine, EngineError};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::prepare;
use crate::reconcile::shots::Shots;

fn engine_failed(error: EngineError) -> Failure {
    Failure::passing(Exit::Dependency, &error)
}

/// `logs SERVICE`.
pub(super) async fn logs(
    told: &Told,
    service: &str,
    tail: u32,
    follow: bool,
) -> Result<Exit, Failure> {
    let settings = told::settings(told).await?;
    let engine = Engine::connect(&settings.paths.docker).await.map_err(engine_failed)?;
    let observed = engine.observe(&settings.node).await.map_err(engine_failed)?;
    let Some((name, _)) = observed.containers.iter().find(|(_, seen)| seen.service == service)
    else {
        let known: Vec<&str> =
            observed.containers.values().map(|seen| seen.service.as_str()).collect();
        let message =
            format!("no container of service {service:?}; there are: {}", known.join(", "));
        return Err(Failure::said(Exit::Configuration, message));
    };
    let mut lines = pin!(engine.logs(name, Some(tail), follow));
    while let Some(line) = lines.next().await {
        say(line.map_err(engine_failed)?.text);
    }
    Ok(Exit::Done)
}

/// `job -- FLASK ARGS`: its output as it comes, its exit code as ours (0 or 1).
pub(super) async fn job(told: &Told, args: Vec<String>) -> Result<Exit, Failure> {
    let settings = told::settings(told).await?;
    let tokens = Tokens::find(&Environment).await.ok();
    let prepared = prepare::prepare(&settings, tokens).await?;
    let engine = Engine::connect(&settings.paths.docker).await.map_err(engine_failed)?;
    let site = prepare::site(&settings)?;
    let shots = Shots::new(engine, site, prepared.stack.migration, prepared.stack.job);
    let secrets = prepared.secrets;
    let finished = shots.flask(&args, |line| say(secrets.scrub(line))).await;
    match finished.map_err(engine_failed)?.ended {
        Ended::Exited(0) => Ok(Exit::Done),
        Ended::Exited(code) => {
            complain(&format!("flask {} exited {code}", args.join(" ")));
            Ok(Exit::Failed)
        }
        Ended::OutOfMemory => {
            complain("the job was killed for want of memory");
            Ok(Exit::Failed)
        }
        Ended::Deadline(after) => {
            complain(&format!("the job did not end within {after:?} and was killed"));
            Ok(Exit::Deadline)
        }
    }
}

/// `retry-migration`: forgets the failure on record, for the whole fleet.
pub(super) async fn retry_migration(told: &Told) -> Result<Exit, Failure> {
    let settings = told::settings(told).await?;
    let tokens = Tokens::find(&Environment).await.ok();
    let prepared = prepare::prepare(&settings, tokens).await?;
    let engine = Engine::connect(&settings.paths.docker).await.map_err(engine_failed)?;
    let site = prepare::site(&settings)?;
    let gate = prepare::gate(&settings, &prepared, &engine, &site).await?;
    let cleared = gate.clear().await.map_err(|error| Failure::passing(error.exit(), &error))?;
    match cleared {
        Some(outcome) => say(format!(
            "cleared the {} migration to {}; the next node that looks tries it again",
            outcome.as_str(),
            settings.release
        )),
        None => say(format!("no failed migration to {} is on record", settings.release)),
    }
    Ok(Exit::Done)
}
