//! `bed run -- COMMAND...`: the command with a test bed around it.
//! `bed clean`: clears away what crashed runs left.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tests::bed::{self, Bed};
use tests::child::Launch;
use tests::docker::Engine;
use tests::{Broken, Doing as _, Outcome, child};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout};

/// How long the command may take to end once it was told to.
const PATIENCE: Duration = Duration::from_mins(1);

/// The servers that tests share.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start the servers, run a command with them, stop them.
    Run {
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Clear away what crashed runs left.
    Clean,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Run { command } => run(command).await,
        Verb::Clean => clean().await,
    };
    done.unwrap_or_else(|broken| {
        say(&format!("{broken:?}"));
        ExitCode::FAILURE
    })
}

async fn clean() -> Outcome<ExitCode> {
    bed::clean(&Engine::connect().await?).await?;
    Ok(ExitCode::SUCCESS)
}

async fn run(command: Vec<OsString>) -> Outcome<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt()).doing(|| "watch for SIGINT".into())?;
    let mut terminate = signal(SignalKind::terminate()).doing(|| "watch for SIGTERM".into())?;
    let began = Instant::now();
    let bed = tokio::select! {
        // cancel-safe: what was started dies with us.
        bed = Bed::start() => bed?,
        // cancel-safe: a signal.
        _ = interrupt.recv() => return Err(Broken::new("interrupted")),
        // cancel-safe: a signal.
        _ = terminate.recv() => return Err(Broken::new("terminated")),
    };
    say(&format!(
        "up in {:.1} s: PostgreSQL, PostgreSQL with pgvector, registry",
        began.elapsed().as_secs_f64()
    ));
    let (program, arguments) = command.split_first().ok_or_else(|| Broken::new("no command"))?;
    // It goes with us, however we go.
    let launch = Launch { program: Path::new(program), user: None, at_our_death: "TERM" };
    let started = launch
        .command()
        .args(arguments)
        .env(bed::VARIABLE, bed.file())
        .spawn()
        .doing(|| format!("start {}", program.display()));
    let ended = match started {
        Err(broken) => Err(broken),
        Ok(mut process) => {
            let status = tokio::select! {
                // cancel-safe: can be awaited again.
                status = process.wait() => Some(status),
                // cancel-safe: a signal.
                _ = interrupt.recv() => None,
                // cancel-safe: a signal.
                _ = terminate.recv() => None,
            };
            match (status, process.id()) {
                (Some(status), _) => status.doing(|| "wait for the command".into()),
                (None, pid) => {
                    if let Some(pid) = pid {
                        child::send("TERM", pid).await?;
                    }
                    // Whatever comes of it, the command is killed when it is dropped.
                    let _ = timeout(PATIENCE, process.wait()).await;
                    Err(Broken::new("interrupted"))
                }
            }
        }
    };
    let stopped = bed.stop().await;
    let status = ended?;
    stopped?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

#[expect(clippy::print_stderr, reason = "a program for people")]
fn say(line: &str) {
    eprintln!("bed: {line}");
}
