//! The programs under test, and how one node's are started. What the agent's
//! or the edge's command line changes, changes here.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::child::Launch;
use crate::{Broken, Doing as _, Outcome};

/// A program built beside this one.
pub fn path(name: &str) -> Outcome<PathBuf> {
    let own = std::env::current_exe().doing(|| "find our own program".into())?;
    // Tests lie one folder below programs.
    let beside = own.parent().map(|folder| folder.join(name));
    let above = own.parent().and_then(Path::parent).map(|folder| folder.join(name));
    [beside, above]
        .into_iter()
        .flatten()
        .find(|path| path.is_file())
        .ok_or_else(|| Broken::new(format!("{name} is not built: run `make build`")))
}

/// What both programs of a node are told.
#[derive(Clone, Debug)]
pub struct Told {
    /// Value of `GCE_METADATA_HOST`.
    pub metadata_host: String,
    /// The agent's run folder, with its sockets.
    pub run: PathBuf,
    /// The edge's own state folder.
    pub edge_state: PathBuf,
    /// `NOTIFY_SOCKET` of whom.
    pub notify: PathBuf,
    /// Network namespace the programs live in, if it is not the machine's.
    pub namespace: Option<String>,
    /// `WATCHDOG_USEC`.
    pub watchdog_usec: u64,
}

/// `dify-agent VERB...` as systemd starts it on a VM.
pub fn agent(told: &Told, verb: &[&str]) -> Outcome<Command> {
    let program = path("dify-agent")?;
    let mut command = launch(told, &program);
    command.args(verb);
    environment(&mut command, told);
    Ok(command)
}

/// `dify-edge` with its listener handed over as systemd does (`sd_listen_fds(3)`):
/// the socket is put on descriptor 3 by a shell, which also is the process
/// `LISTEN_PID` names.
pub fn edge(told: &Told, instance: &str, listener: OwnedFd) -> Outcome<Command> {
    let program = path("dify-edge")?;
    let script = r#"LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http exec "$0" "$@" 3<&0 </dev/null"#;
    let mut command = launch(told, Path::new("sh"));
    command.args(["-c", script]).arg(program);
    command.args([
        "--instance",
        instance,
        "--log-mode",
        "json",
        "--drain-notice",
        "1s",
        "--drain-bound",
        "60s",
    ]);
    command.arg("--agent-socket").arg(told.run.join("edge.sock"));
    command.arg("--state-dir").arg(&told.edge_state);
    environment(&mut command, told);
    command.stdin(Stdio::from(listener));
    Ok(command)
}

fn launch(told: &Told, program: &Path) -> Command {
    let launch = |program| Launch { program, user: None, at_our_death: "KILL" };
    match &told.namespace {
        None => launch(program).command(),
        Some(name) => {
            let mut command = launch(Path::new("nsenter")).command();
            command.arg(format!("--net=/run/netns/{name}")).arg("--").arg(program);
            command
        }
    }
}

fn environment(command: &mut Command, told: &Told) {
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("GCE_METADATA_HOST", &told.metadata_host)
        .env("RUNTIME_DIRECTORY", &told.run)
        .env("NOTIFY_SOCKET", &told.notify)
        .env("WATCHDOG_USEC", told.watchdog_usec.to_string());
}
