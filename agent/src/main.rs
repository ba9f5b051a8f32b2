//! `dify-agent`: reads the command line, runs one verb, ends with its exit code.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;
use dify_agent::cli::{self, Cli};
use dify_agent::exit::Exit;

/// Given to blocking threads at the end.
const STUCK_THREADS: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let asked = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion].contains(&error.kind());
            return if asked { Exit::Done } else { Exit::Configuration }.into();
        }
    };
    // Two threads carry the whole control plane; its work is waiting.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let exit = runtime.block_on(cli::run(cli));
            // A thread stuck on a dead disk must not keep the process.
            runtime.shutdown_timeout(STUCK_THREADS);
            exit.into()
        }
        Err(error) => {
            cli::table::complain(&format!("start the async runtime: {error}"));
            Exit::Failed.into()
        }
    }
}
