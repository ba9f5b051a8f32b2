//! `dify-edge`: reads settings, starts logging, runs one instance, and says by
//! its exit code how that ended: 0 drained, 1 did not start, 64 usage, 70 a part
//! of it died.

use std::process::ExitCode;

use clap::Parser;
use dify_common::chain::Chain;
use dify_common::telemetry;
use dify_edge::{Edge, Exit, Settings, StartError};
use tracing::error;

const NOT_STARTED: u8 = 1;
const USAGE: u8 = 64;
const DIED: u8 = 70;

fn main() -> ExitCode {
    let settings = match Settings::try_parse() {
        Ok(settings) => settings,
        Err(error) => {
            // Nobody is left to tell when the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    telemetry::init(settings.log_mode, &settings.log);
    std::panic::set_hook(Box::new(|panic| error!(%panic, "bug: a task panicked")));
    match serve(settings) {
        Ok(Exit::Drained) => ExitCode::SUCCESS,
        Ok(Exit::Died(part)) => {
            error!(part, "a part that must run for ever ended");
            DIED.into()
        }
        Err(start) => {
            error!(error = %Chain(&start), "did not start");
            NOT_STARTED.into()
        }
    }
}

fn serve(settings: Settings) -> Result<Exit, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Thread)?;
    runtime.block_on(async {
        let edge = Edge::build(settings)?;
        let handle = edge.handle();
        tokio::select! {
            // cancel-safe: whichever ends ends the process.
            exit = edge.run() => exit,
            // cancel-safe: as above.
            refused = dify_edge::pass_on(handle) => match refused {
                Ok(never) => match never {},
                Err(error) => Err(StartError::Thread(error)),
            },
        }
    })
}
