//! Settings for a verb, and where the running agent listens.

use std::path::PathBuf;

use dify_common::chain::Chain;
use dify_common::settings::Environment;

use super::table::{json, say};
use super::{Output, Told};
use crate::config::{LoadError, Overrides, Settings, Source, Watcher};
use crate::exit::Exit;
use crate::failure::Failure;

/// File name of the operator socket in the run directory.
pub(crate) const OPS_SOCKET: &str = "ops.sock";
/// File name of the edge link's socket in the run directory.
pub(crate) const EDGE_SOCKET: &str = "edge.sock";

/// Watches what this VM is told, with the command line over it.
pub(crate) fn watcher(told: &Told) -> Watcher {
    let source = Source::choose(told.config.as_deref(), &Environment);
    let (release, node) = (told.release.clone(), told.node.clone());
    Watcher::new(source, Overrides { release, node, ..Overrides::default() })
}

/// The settings now.
pub(crate) async fn settings(told: &Told) -> Result<Settings, Failure> {
    watcher(told).load().await.map_err(|error| refused(&error))
}

/// Why there are no settings; the mistakes one to a line.
pub(crate) fn refused(error: &LoadError) -> Failure {
    Failure { exit: error.exit(), message: Chain(error).to_string(), permanent: true }
}

/// Socket of the agent that runs by these settings; where they cannot be used,
/// the one it is stranded with.
pub(super) async fn ops_socket(told: &Told) -> PathBuf {
    let run = match settings(told).await {
        Ok(settings) => settings.paths.run,
        Err(_) => stranded_run(),
    };
    run.join(OPS_SOCKET)
}

/// Run directory of an agent without usable settings: the one systemd made.
pub(crate) fn stranded_run() -> PathBuf {
    use dify_common::settings::Source as _;
    let made = Environment.get("RUNTIME_DIRECTORY");
    made.map_or_else(|| PathBuf::from("/run/dify-agent"), PathBuf::from)
}

/// `config`: the effective document.
pub(super) async fn show(told: &Told, output: Output) -> Result<Exit, Failure> {
    let yaml = settings(told).await?.to_yaml();
    if output.json {
        let document: serde_json::Value =
            serde_yaml::from_str(&yaml).map_err(|error| Failure::passing(Exit::Bug, &error))?;
        json(&document);
    } else {
        say(yaml.trim_end());
    }
    Ok(Exit::Done)
}
