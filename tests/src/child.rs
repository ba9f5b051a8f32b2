//! Processes the harness starts. Each one dies with the process that started
//! it, however that ends, and is only ever signalled by its own id.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child as Process, Command};
use tokio::time::timeout;

use crate::{Broken, Doing as _, Outcome};

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: Process,
    log: PathBuf,
}

/// How a program is started.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The program.
    pub program: &'a Path,
    /// User to run as, where we are root.
    pub user: Option<&'a str>,
    /// Signal the kernel sends it when we die.
    pub at_our_death: &'a str,
}

impl Launch<'_> {
    /// The command, to be given arguments.
    pub fn command(self) -> Command {
        let mut command = Command::new("setpriv");
        command.arg(format!("--pdeathsig={}", self.at_our_death));
        if let Some(user) = self.user.filter(|_| is_root()) {
            command.args([
                format!("--reuid={user}"),
                format!("--regid={user}"),
                "--clear-groups".into(),
            ]);
        }
        command.arg("--").arg(self.program);
        command.kill_on_drop(true).stdin(Stdio::null());
        command
    }
}

impl Child {
    /// Starts `command` with its output in `log`.
    pub fn start(name: &str, mut command: Command, log: PathBuf) -> Outcome<Self> {
        let file = File::create(&log).doing(|| format!("create {}", log.display()))?;
        let copy = file.try_clone().doing(|| format!("share {}", log.display()))?;
        let process =
            command.stdout(file).stderr(copy).spawn().doing(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), process, log })
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// An error with the end of its log once it has ended.
    pub fn check(&mut self) -> Result<(), String> {
        match self.process.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(format!("{} ended ({status}): {}", self.name, self.last_words()))
            }
            Err(error) => Err(format!("{}: {error}", self.name)),
        }
    }

    /// Sends `signal` and waits for its end, at most `patience`; then kills it.
    pub async fn stop(mut self, signal: &str, patience: Duration) -> Outcome<ExitStatus> {
        if let Some(pid) = self.process.id() {
            send(signal, pid).await?;
        }
        if let Ok(status) = timeout(patience, self.process.wait()).await {
            return status.doing(|| format!("wait for {}", self.name));
        }
        self.process.kill().await.doing(|| format!("kill {}", self.name))?;
        Err(Broken::new(format!("{} did not end within {patience:?} of SIG{signal}", self.name)))
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join(" | ")
    }
}

/// Sends a signal to one process. `unsafe` is forbidden here, so the shell's
/// built-in does it.
pub async fn send(signal: &str, pid: u32) -> Outcome {
    let script = r#"kill -s "$0" "$1""#;
    let status = Command::new("sh")
        .args(["-c", script, signal, &pid.to_string()])
        .stdin(Stdio::null())
        .status()
        .await
        .doing(|| "run sh".into())?;
    if status.success() {
        Ok(())
    } else {
        Err(Broken::new(format!("send SIG{signal} to process {pid}: {status}")))
    }
}

/// Runs a program to its end; its output when it succeeded.
pub async fn run(command: &mut Command) -> Outcome<String> {
    let what = command.as_std().get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output().await.doing(|| format!("run {what}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Broken::new(format!("{what} failed ({}): {}", output.status, stderr.trim())))
}

/// Whether this process is root: the owner of its own `/proc` entry.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// A free port of loopback. Another process may take it before it is used.
pub fn free_port() -> Outcome<u16> {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .doing(|| "find a free port".into())
}
