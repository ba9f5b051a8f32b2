//! `plan`: what `run` would start or change, and why; nothing is touched.

use std::fmt::Write;

use dify_common::gcp::token::Tokens;
use dify_common::settings::Environment;
use serde::Serialize;

use super::status::short;
use super::table::{json, say, table};
use super::{Output, Told, told};
use crate::dify::explain::{Explained, explain};
use crate::engine::spec::ContainerSpec;
use crate::engine::{Engine, Observed, Site};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::prepare;

/// What would happen to one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Change {
    service: String,
    step: &'static str,
    why: String,
}

#[derive(Debug, Serialize)]
struct Document {
    changes: Vec<Change>,
    stack: Explained,
}

/// Exit 0 when nothing would change, 2 when something would.
pub(super) async fn plan(told: &Told, output: Output) -> Result<Exit, Failure> {
    let settings = told::settings(told).await?;
    let tokens = Tokens::find(&Environment).await.ok();
    let prepared = prepare::prepare(&settings, tokens).await?;
    let failed = |error| Failure::passing(Exit::Dependency, &error);
    let engine = Engine::connect(&settings.paths.docker).await.map_err(failed)?;
    let site = prepare::site(&settings)?;
    let observed = engine.observe(&settings.node).await.map_err(failed)?;
    let changes = changes(&prepared.stack.containers, &observed, &site);
    let settled = changes.iter().all(|change| change.step == "keep");
    let stack = explain(&prepared.stack);
    if output.json {
        json(&Document { changes, stack });
    } else {
        say(render(&changes, &stack));
    }
    Ok(if settled { Exit::Done } else { Exit::StillGoing })
}

fn changes(wanted: &[ContainerSpec], observed: &Observed, site: &Site) -> Vec<Change> {
    let mut changes: Vec<Change> = wanted
        .iter()
        .map(|spec| {
            let (step, why) = match observed.containers.get(&spec.name) {
                None => ("create", "there is none".to_owned()),
                Some(seen) if seen.spec != site.hash(spec).as_str() => {
                    let why = if seen.image == spec.image {
                        "its settings changed".to_owned()
                    } else {
                        format!("runs {}", seen.image)
                    };
                    ("replace", why)
                }
                Some(seen) if seen.state.is_running() => ("keep", "runs as wanted".to_owned()),
                Some(_) => ("start", "is stopped".to_owned()),
            };
            Change { service: spec.service.clone(), step, why }
        })
        .collect();
    let unknown = observed
        .containers
        .iter()
        .filter(|(name, _)| !wanted.iter().any(|spec| spec.name == **name))
        .map(|(_, seen)| Change {
            service: seen.service.clone(),
            step: "remove",
            why: "this release has no such service".to_owned(),
        });
    changes.extend(unknown);
    changes
}

fn render(changes: &[Change], stack: &Explained) -> String {
    let mut out = table(&["step", "service", "why", "image"]);
    for change in changes {
        let wanted = stack.containers.iter().find(|spec| spec.service == change.service);
        let image = wanted.map_or_else(String::new, |spec| short(&spec.image));
        out.add_row([change.step, &change.service, &change.why, &image]);
    }
    let mut text = format!("Dify {}\n\n{out}\n", stack.release);
    for network in &stack.networks {
        let _ = write!(text, "\nnetwork {network}");
    }
    let _ = write!(
        text,
        "\n\nconnections, main database: {}\nconnections, vector database: {}",
        stack.database_connections, stack.vector_connections
    );
    for finding in &stack.findings {
        let _ = write!(text, "\n\nfinding {}: {}", finding.code, finding.message);
    }
    text.push_str("\n\nEnvironment, files and limits of each container, secrets masked: --json");
    text
}
