//! `make bench`: how long a node takes from images present to answering, beside
//! `docker-compose` on the same images, databases, Redis and bucket; and what
//! agent and edge weigh at rest. A measurement, not a test: nothing is asserted
//! but that both get there.

mod compose;
mod figures;
mod memory;
mod page;
mod plot;
mod rounds;
mod table;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::tests::fleet::{Fleet, Options};
use ::tests::images::Behaviour;
use ::tests::{Broken, Doing as _, Outcome};
use clap::Parser;

use figures::{Figures, Machine, State};

/// Boot times beside docker-compose, and memory at rest.
#[derive(Debug, Parser)]
struct Cli {
    /// Boots of each contender in each state.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Factor on the start-up times of Dify's images: 0.2 makes the api's 28 s of start 5.6 s.
    #[arg(long, default_value_t = 0.2)]
    scale: f64,
    /// Also write the figures into docs/benchmarks.md and docs/benchmarks.svg.
    #[arg(long)]
    record: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(run(&Cli::parse())).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(broken) => {
            say(&format!("{broken:?}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> Outcome {
    if !(cli.scale > 0.0 && cli.scale <= 1.0) {
        return Err(Broken::new(format!("--scale is {}: expected above 0, at most 1", cli.scale)));
    }
    let behaviour = Behaviour { scale: cli.scale, ..Behaviour::default() };
    let options = Options { behaviour, ..Options::default() };
    let release = options.release;
    say(&format!("Dify {release}, stand-in images at {} of real start-up times", cli.scale));
    let fleet = Fleet::start(options).await?;
    let compose = rounds::warm_up(&fleet).await?;
    let mut all = Vec::new();
    for state in State::ALL {
        rounds::arrange(&fleet, state).await?;
        for number in 1..=cli.rounds {
            let lap = format!("{}, round {number}/{}", state.words(), cli.rounds);
            all.push(rounds::agent(&fleet, &compose, state, number, &lap).await?);
            all.push(rounds::compose(&fleet, &compose, state, number, &lap).await?);
        }
    }
    let memory = rounds::rest(&fleet).await?;
    let figures =
        Figures { machine: Machine::here(), release, scale: cli.scale, rounds: all, memory };
    publish(&figures, cli.record)?;
    if let Err(broken) = fleet.close(Vec::new(), &[]).await {
        say(&format!("note: {broken:?}"));
    }
    Ok(())
}

/// To the terminal, to target/bench, and where asked for into the documentation.
fn publish(figures: &Figures, record: bool) -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = root.join("target/bench");
    std::fs::create_dir_all(&folder).doing(|| format!("create {}", folder.display()))?;
    let json = serde_json::to_string_pretty(&figures.json()).doing(|| "write JSON".into())?;
    let svg = plot::svg(figures);
    write(&folder.join("boot.json"), &json)?;
    write(&folder.join("boot.svg"), &svg)?;
    print(&table::text(figures));
    if record {
        let page = root.join("docs/benchmarks.md");
        let old = std::fs::read_to_string(&page).doing(|| format!("read {}", page.display()))?;
        write(&page, &page::refresh(&old, figures)?)?;
        write(&root.join("docs/benchmarks.svg"), &svg)?;
    }
    say("figures are in target/bench/boot.json, the plot in target/bench/boot.svg");
    Ok(())
}

fn write(path: &PathBuf, text: &str) -> Outcome {
    std::fs::write(path, text).doing(|| format!("write {}", path.display()))
}

#[expect(clippy::print_stdout, reason = "a program for people")]
fn print(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "a program for people")]
fn say(line: &str) {
    eprintln!("bench: {line}");
}
