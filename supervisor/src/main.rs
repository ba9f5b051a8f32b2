//! `dify-supervisor`: says its version, and that it does nothing else yet.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Rolls Dify releases across a managed instance group (not implemented yet).
#[derive(Debug, Parser)]
#[command(
    name = "dify-supervisor",
    version,
    arg_required_else_help = true,
    after_help = "Rollouts, autoscaling hints and rollback are not implemented yet. \
                  Until they are, roll a group with Google's own updater: docs/operating.md."
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Verb {
    /// Print the version
    Version,
}

/// Usage errors end with 64, as everywhere in this project.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nobody is left to tell when the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    match arguments.verb {
        Verb::Version => {
            let line = format!("dify-supervisor {}\n", dify_supervisor::VERSION);
            match io::stdout().write_all(line.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
    }
}
