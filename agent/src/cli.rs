//! The command line. Every verb takes `--config FILE`; every table has `--json`.

pub mod status;
pub mod table;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use dify_common::ids::{NodeId, ReleaseId};

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
    /// Configuration document; without it the VM's metadata attribute
    /// `dify-config`, or /etc/dify-agent/config.yaml where there is no metadata.
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
