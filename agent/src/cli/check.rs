//! `check`: every preflight line with its verdict and what to do.

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
use crate::registry::{Reference, Registry};

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
    lines.push(registry_line(prepared).await);
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

async fn registry_line(prepared: &Prepared) -> CheckLine {
    let image = &prepared.stack.migration.image;
    let asked = async {
        let reference: Reference = image.parse().map_err(|error| format!("{error}"))?;
        let registry = Registry::new(prepared.tokens.clone()).map_err(|error| error.to_string())?;
        registry.ping(&reference).await.map_err(|error| error.to_string())?;
        Ok::<_, String>(reference.host().to_owned())
    };
    match asked.await {
        Ok(host) => CheckLine::ok(Group::Registry, "reach", host),
        Err(found) => {
            let advice = "needed for images that are not on this machine yet";
            CheckLine::warn(Group::Registry, "reach", found, advice)
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
