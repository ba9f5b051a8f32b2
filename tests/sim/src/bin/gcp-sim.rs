//! Simulated Google Cloud for a person: reads a project from a file, prints where it listens, serves until interrupted.

use std::{
    error::Error,
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use serde_json::json;
use sim::{SimOptions, StateFile};

/// Simulated Google Cloud: metadata servers, token endpoint, Secret Manager, Cloud Storage.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The project, as YAML or JSON; an empty one when absent.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Address of the shared services; metadata servers take free ports of the same address.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Also write a service-account key for this address, its token endpoint here.
    #[arg(long, value_name = "EMAIL", requires = "key_file")]
    key_for: Option<String>,
    /// Where to write that key.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Let Cloud Storage take requests without a bearer.
    #[arg(long)]
    anonymous_storage: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut chain = format!("gcp-sim: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                chain = format!("{chain}: {cause}");
                source = cause.source();
            }
            // Nothing is left to do when the terminal is gone.
            let _ = writeln!(io::stderr(), "{chain}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let state = arguments.state.map(StateFile::read).transpose()?.unwrap_or_default();
    let options = SimOptions {
        bind: arguments.listen.ip(),
        port: arguments.listen.port(),
        anonymous_storage: arguments.anonymous_storage,
        ..SimOptions::default()
    };
    let (sim, instances) = state.start(options).await?;
    if let (Some(email), Some(file)) = (arguments.key_for, arguments.key_file) {
        std::fs::write(file, sim.service_account_key(&email).to_string())?;
    }
    let hosts: serde_json::Map<_, _> = instances
        .iter()
        .map(|(name, instance)| (name.clone(), instance.metadata_host().into()))
        .collect();
    // One line, for a person and for a script.
    let ready = json!({ "project": sim.project(), "urls": sim.urls(), "metadata_hosts": hosts });
    writeln!(io::stdout(), "{ready}")?;
    tokio::signal::ctrl_c().await?;
    sim.stop().await;
    Ok(())
}
