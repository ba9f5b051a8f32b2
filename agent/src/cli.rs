//! The command line. Every verb takes `--config FILE`; every table has `--json`.

mod check;
mod containers;
mod plan;
mod releases;
pub mod status;
pub mod table;
mod told;

pub(crate) use told::{EDGE_SOCKET, OPS_SOCKET, refused, stranded_run, watcher};

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use dify_common::ids::{NodeId, ReleaseId};
use dify_common::telemetry::{self, LogMode};

use crate::app;
use crate::exit::Exit;
use crate::failure::Failure;

/// Takes a bare VM to a serving Dify and keeps it there.
#[derive(Debug, Parser)]
#[command(name = "dify-agent", version, about, propagate_version = true)]
pub struct Cli {
    /// Where settings come from.
    #[command(flatten)]
    pub told: Told,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Where settings come from, for every verb.
#[derive(Debug, Clone, Args)]
pub struct Told {
    /// Configuration document; without it /etc/dify-agent/config.yaml where that
    /// exists, else the VM's metadata attribute `dify-config`.
    #[arg(long, global = true, value_name = "FILE", env = "DIFY_AGENT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Release to use in place of the configured one.
    #[arg(long, global = true, value_name = "ID")]
    pub release: Option<ReleaseId>,
    /// Node id in place of the instance name.
    #[arg(long, global = true, value_name = "ID")]
    pub node: Option<NodeId>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Bring this VM to serving and keep it there (what systemd runs).
    Run,
    /// Probe everything this node depends on; one line and a verdict each.
    Check(Output),
    /// Show what `run` would start or change, and why.
    Plan(Output),
    /// Show where the node stands.
    Status {
        /// Output form.
        #[command(flatten)]
        output: Output,
        /// Redraw every second until interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// Leave service: `/health` turns 503, streams end, containers keep running.
    Drain {
        /// Return only when nothing is in flight any more.
        #[arg(long)]
        wait: bool,
    },
    /// Back into service.
    Undrain,
    /// Show a container's log.
    Logs {
        /// Dify's service name, such as `api`.
        service: String,
        /// Lines from the end.
        #[arg(long, default_value_t = 100)]
        tail: u32,
        /// Keep following.
        #[arg(long, short)]
        follow: bool,
    },
    /// Run a flask command of Dify in a container of its own (MODE=job).
    Job {
        /// Arguments of `flask`, such as `reset-password --email ...`.
        #[arg(last = true, required = true)]
        args: Vec<String>,
    },
    /// Forget a failed migration, so that it is tried again.
    RetryMigration,
    /// Show the effective configuration; it holds references, never secrets.
    Config(Output),
    /// List, show or lock Dify releases.
    #[command(subcommand)]
    Releases(ReleasesVerb),
    /// Print a shell completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

/// What to do with releases.
#[derive(Debug, Subcommand)]
pub enum ReleasesVerb {
    /// Known releases, and whether each is locked.
    List(Output),
    /// One manifest's images and services.
    Show {
        /// The release.
        id: ReleaseId,
        /// Output form.
        #[command(flatten)]
        output: Output,
    },
    /// Resolve every image of a release to a digest and write `<ID>.lock.yaml`.
    Lock {
        /// The release.
        id: ReleaseId,
        /// Prefix put before each repository, such as a mirror.
        #[arg(long)]
        mirror: Option<String>,
        /// Folder for the lock file.
        #[arg(long, default_value = "/etc/dify-agent/releases")]
        out: PathBuf,
    },
}

/// Output form.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// One JSON document in place of the table.
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb and says on stderr why it failed, when it did.
pub async fn run(cli: Cli) -> Exit {
    // Boxed: the verbs together make a large future.
    match Box::pin(verb(cli)).await {
        Ok(exit) => exit,
        Err(failure) => {
            table::complain(&failure.message);
            failure.exit
        }
    }
}

async fn verb(cli: Cli) -> Result<Exit, Failure> {
    let told = &cli.told;
    // `run` starts logging with its settings; the others talk to a person.
    if !matches!(cli.verb, Verb::Run) {
        // gcp_auth warns of each try where there is no Google.
        telemetry::init(LogMode::Text, "warn,gcp_auth=error");
    }
    match cli.verb {
        Verb::Run => Box::pin(app::run(told)).await,
        Verb::Check(output) => Box::pin(check::check(told, output)).await,
        Verb::Plan(output) => plan::plan(told, output).await,
        Verb::Status { output, watch } => {
            status::status(&told::ops_socket(told).await, output.json, watch).await
        }
        Verb::Drain { wait } => status::drain(&told::ops_socket(told).await, wait).await,
        Verb::Undrain => status::undrain(&told::ops_socket(told).await).await,
        Verb::Logs { service, tail, follow } => {
            containers::logs(told, &service, tail, follow).await
        }
        Verb::Job { args } => containers::job(told, args).await,
        Verb::RetryMigration => containers::retry_migration(told).await,
        Verb::Config(output) => told::show(told, output).await,
        Verb::Releases(verb) => releases::releases(told, verb).await,
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dify-agent", &mut script);
            table::say(String::from_utf8_lossy(&script));
            Ok(Exit::Done)
        }
        Verb::Man => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
            rendered.map_err(|error| Failure::passing(Exit::Bug, &error))?;
            table::say(String::from_utf8_lossy(&page));
            Ok(Exit::Done)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
