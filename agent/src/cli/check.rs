//! `check`: every preflight line with its verdict and what to do.

use std::collections::BTreeSet;

use dify_common::chain::Chain;
use dify_common::gcp::token::Tokens;
use dify_common::settings::Environment;

use super::table::{json, say, table};
use super::{Output, Told, told};
use crate::backends::{self, CheckLine, Group, Verdict, machine};
use crate::config::Settings;
use crate::engine::Engine;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::ops::OpsClient;
use crate::prepare::{self, Prepared};
use crate::registry::{Reference, Registry, RegistryError};

/// Dify's images unpacked: about 10 GB for the full set (seen with 1.17).
const DOCKER_FREE: u64 = 10 << 30;
/// Our own files are small; room for Docker to write a log line matters more.
const STATE_FREE: u64 = 100 << 20;
/// Dify's own documentation asks for two.
const CORES: u32 = 2;

/// Probes everything, prints one table, ends with the worst line's code.
pub(super) async fn check(told: &Told, output: Output) -> Result<Exit, Failure> {
    let settings = told::settings(told).await?;
    let tokens = Tokens::find(&Environment).await.ok();
    let prepared = prepare::prepare(&settings, tokens).await?;
    let lines = lines(&settings, &prepared).await;
    if output.json {
        json(&lines);
    } else {
        say(render(&lines));
    }
    Ok(backends::exit(&lines))
}

async fn lines(settings: &Settings, prepared: &Prepared) -> Vec<CheckLine> {
    let Prepared { secrets, stack, tokens, .. } = prepared;
    let mut lines = machine_lines(settings, prepared).await;
    lines.extend(image_lines(settings, prepared).await);
    lines.extend(backends::check(settings, secrets, &stack.budget, tokens.as_ref()).await);
    lines
}

async fn machine_lines(settings: &Settings, prepared: &Prepared) -> Vec<CheckLine> {
    let (mut lines, docker_root) = match Engine::connect(&settings.paths.docker).await {
        Ok(engine) => {
            let found = format!("Docker {}", engine.version().engine);
            let root = engine.info().await.ok().map(|info| info.root);
            (vec![CheckLine::ok(Group::Machine, "docker", found)], root)
        }
        Err(error) => {
            let advice = "start Docker: systemctl start docker";
            (vec![CheckLine::fail(Group::Machine, "docker", error.to_string(), advice)], None)
        }
    };
    let listen = if ports_are_ours(settings).await { Vec::new() } else { vec![settings.paths.ops] };
    let docker_root = docker_root.unwrap_or_else(|| "/var/lib/docker".into());
    let places = machine::Places { docker_root, state: settings.paths.state.clone(), listen };
    let memory = prepared.stack.containers.iter().filter_map(|spec| spec.limits.memory).sum();
    let need =
        machine::Need { docker_free: DOCKER_FREE, state_free: STATE_FREE, memory, cores: CORES };
    lines.extend(machine::judge(&places, &machine::look(&places), &need));
    lines
}

/// An agent of this node runs and holds its own ports.
async fn ports_are_ours(settings: &Settings) -> bool {
    OpsClient::new(&settings.paths.run.join(told::OPS_SOCKET)).status().await.is_ok()
}

/// One line for the images that are here, one for each that has to be pulled.
async fn image_lines(settings: &Settings, prepared: &Prepared) -> Vec<CheckLine> {
    let images: BTreeSet<&str> = prepared.stack.images().collect();
    let engine = Engine::connect(&settings.paths.docker).await.ok();
    let (mut lines, mut here) = (Vec::new(), 0_usize);
    for image in images {
        let reference: Reference = match image.parse() {
            Ok(reference) => reference,
            Err(error) => {
                let advice = "correct the release's manifest or lock";
                lines.push(CheckLine::fail(Group::Registry, "image", format!("{error}"), advice));
                continue;
            }
        };
        if let Some(engine) = &engine
            && matches!(engine.image(&reference).await, Ok(Some(_)))
        {
            here += 1;
            continue;
        }
        lines.push(pullable(&reference, prepared).await);
    }
    let found = format!("{here} images are on this machine");
    lines.push(CheckLine::ok(Group::Registry, "present", found));
    lines
}

async fn pullable(image: &Reference, prepared: &Prepared) -> CheckLine {
    let resolved = match Registry::new(prepared.tokens.clone()) {
        Ok(registry) => registry.resolve(image).await,
        Err(error) => Err(error),
    };
    match resolved {
        Ok(resolved) => {
            CheckLine::ok(Group::Registry, "image", format!("{image}, {}", resolved.digest))
        }
        Err(error @ RegistryError::Unknown(_)) => {
            let advice = "lock the release again, or correct the mirror prefix";
            CheckLine::fail(Group::Registry, "image", Chain(&error).to_string(), advice)
        }
        Err(error) => {
            let advice = "it must be reachable from this VM, or the image baked in";
            CheckLine::fail(Group::Registry, "reach", Chain(&error).to_string(), advice)
        }
    }
}

/// The table, worst lines marked.
fn render(lines: &[CheckLine]) -> String {
    let mut out = table(&["", "what", "found", "what to do"]);
    for line in lines {
        let mark = match line.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let what = format!("{} {}", line.group, line.name);
        out.add_row([mark, &what, &line.found, line.advice.as_deref().unwrap_or_default()]);
    }
    let count = |verdict| lines.iter().filter(|line| line.verdict == verdict).count();
    let (fail, warn) = (count(Verdict::Fail), count(Verdict::Warn));
    format!("{out}\n\n{} lines, {fail} failed, {warn} warnings", lines.len())
}
