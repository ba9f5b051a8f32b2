//! `make demo`: one VM boots on the simulated Google Cloud before the eyes of a
//! person, with stand-ins in place of Dify's images or with those themselves.
//! Runs in a bed: `bed run -- demo`.

#[path = "../demo/boot.rs"]
mod boot;
#[path = "../demo/real.rs"]
mod real;
#[path = "../demo/screen.rs"]
mod screen;
#[path = "../demo/show.rs"]
mod show;
#[path = "../demo/vm.rs"]
mod vm;

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use real::Refusal;
use screen::{Screen, Tone, seconds};
use tests::bed::Endpoints;
use tests::docker::Engine;
use tests::{Broken, Doing as _, Outcome, catalog, node, program};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;
use vm::{Real, Vm};

/// With Dify's own images: some 10 GB to pull, and 90 s of Python.
const REAL_BOOT: Duration = Duration::from_mins(15);
/// What a shell says of a command ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// One VM on a simulated Google Cloud.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Cli {
    /// Dify release.
    #[arg(long, default_value = real::RELEASE, value_parser = PossibleValuesParser::new(catalog::RELEASES))]
    release: String,
    /// With Dify's own images.
    #[arg(long, conflicts_with = "release")]
    real: bool,
    /// Prefix of a registry that has Dify's own images; docker.io otherwise.
    #[arg(long, value_name = "PREFIX", requires = "real")]
    mirror: Option<String>,
    /// Keep the VM up until Enter or Ctrl-C.
    #[arg(long)]
    hold: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let screen = Screen::new();
    let began = Instant::now();
    let shown = match interruptible(&screen, &cli).await {
        Ok(shown) => shown,
        Err(broken) => Err(Refusal::Broken(broken)),
    };
    let code = match shown {
        Ok(Shown::All) => {
            let done = screen.paint(Tone::Good, "Done");
            let time = if cli.hold {
                String::new()
            } else {
                format!(" in {}", seconds(began.elapsed()).trim())
            };
            screen.line(format!("\n{done}{time}."));
            return ExitCode::SUCCESS;
        }
        Ok(Shown::Interrupted) => INTERRUPTED,
        Err(Refusal::Registry(code)) => code,
        Err(Refusal::Broken(broken)) => {
            screen.line(format!("\n{}: {broken:?}", screen.paint(Tone::Bad, "Failed")));
            1
        }
    };
    ExitCode::from(code)
}

#[derive(Debug)]
enum Shown {
    All,
    Interrupted,
}

/// Shows everything, or as much as there is time for before a signal; nothing
/// is left on the engine either way.
async fn interruptible(screen: &Screen, cli: &Cli) -> Outcome<Result<Shown, Refusal>> {
    let mut interrupt = signal(SignalKind::interrupt()).doing(|| "watch for SIGINT".into())?;
    let mut terminate = signal(SignalKind::terminate()).doing(|| "watch for SIGTERM".into())?;
    let bed = Endpoints::attach()?;
    let shown = tokio::select! {
        // cancel-safe: programs die with their handles; the engine is swept below.
        shown = Box::pin(demo(screen, cli, &bed)) => shown,
        // cancel-safe: a signal.
        _ = interrupt.recv() => Ok(Shown::Interrupted),
        // cancel-safe: a signal.
        _ = terminate.recv() => Ok(Shown::Interrupted),
    };
    if matches!(shown, Ok(Shown::All)) {
        return Ok(shown);
    }
    if matches!(shown, Ok(Shown::Interrupted)) {
        screen.heading("Interrupted", "");
    }
    let _cleaning = screen.moving("removing containers, networks, volumes");
    vm::sweep(&Engine::connect().await?, &bed.node_prefix()).await?;
    screen.row("cleaned up", "no container, network or volume is left");
    Ok(shown)
}

async fn demo(screen: &Screen, cli: &Cli, bed: &Endpoints) -> Result<Shown, Refusal> {
    let release = catalog::RELEASES.into_iter().find(|known| *known == cli.release);
    let release = release.ok_or_else(|| Broken::new(format!("no release {}", cli.release)))?;
    let images = if cli.real { "Dify's own images" } else { "stand-in images" };
    screen.heading(
        "Dify Fleet",
        &format!("one VM, Dify {release}, {images}, a simulated Google Cloud"),
    );
    let real =
        if cli.real { Some(real::lock(screen, bed, cli.mirror.as_deref()).await?) } else { None };
    let mut vm = Box::pin(set_up(screen, release, real.as_ref())).await?;
    let at_most = if cli.real { REAL_BOOT } else { node::BOOT };
    screen.heading("Boot", "dify-edge and dify-agent, started as systemd does");
    let mut shown = boot::show(screen, &mut vm, at_most).await.map(drop);
    if shown.is_ok() {
        shown = look(screen, &vm, cli.real).await;
    }
    alarms(screen, &vm);
    if let Err(broken) = &shown {
        screen.line(format!("\n  {}: {broken:?}", screen.paint(Tone::Bad, "failed")));
        last_words(screen, &vm).await;
    } else {
        next(screen, &vm, cli).await;
    }
    if cli.hold {
        screen.heading("Up", "until Enter (or Ctrl-C)");
        enter().await;
    }
    let cleaned = Box::pin(clean_up(screen, vm, cli.real)).await;
    shown.and(cleaned)?;
    Ok(Shown::All)
}

async fn set_up(screen: &Screen, release: &'static str, real: Option<&Real>) -> Outcome<Vm> {
    let began = Instant::now();
    let moving = screen.moving("databases, Redis, images, simulated Google Cloud");
    let vm = Box::pin(Vm::new(release, real)).await?;
    drop(moving);
    let fleet = &vm.fleet;
    screen.heading("Set up", &format!("in {}", seconds(began.elapsed()).trim()));
    let host = fleet.host();
    let google = fleet.sim.urls().googleapis;
    let google = google.trim_start_matches("http://");
    let links = &fleet.links;
    let rows = [
        ("Google Cloud", google.to_owned(), "simulated: metadata, tokens, Secret Manager, bucket"),
        ("PostgreSQL", format!("{host}:{}", links.main.port()), "main database, TLS"),
        (
            "pgvector",
            format!("{host}:{}", links.vector.port()),
            "another server, TLS by another CA",
        ),
        (
            "Redis",
            format!("{host}:{}", links.redis.port()),
            "AUTH, TLS, no command that Memorystore refuses",
        ),
    ];
    for (label, address, what) in rows {
        screen.row(label, format!("{address:21}  {}", screen.paint(Tone::Quiet, what)));
    }
    let (registry, what) = match real {
        None => {
            let what = format!("{} stand-in images of Dify {release}", fleet.images.len());
            (format!("127.0.0.1:{}", links.registry.port()), what)
        }
        Some(real) => {
            let registry = real.mirror.clone().unwrap_or_else(|| "docker.io".into());
            (registry, format!("Dify's own images of {release}, by digest"))
        }
    };
    screen.row("registry", format!("{registry:21}  {}", screen.paint(Tone::Quiet, &what)));
    let front = vm.node.front.to_string();
    let why =
        if vm.node.front.port() == 1080 { "front door" } else { "front door (port 1080 is taken)" };
    screen.row("VM", format!("{front:21}  {}", screen.paint(Tone::Quiet, why)));
    Ok(vm)
}

async fn look(screen: &Screen, vm: &Vm, real: bool) -> Outcome {
    screen.heading("Health", "answered by dify-edge");
    show::health(screen, vm).await?;
    if !real {
        screen.heading("Stream", "through the front door, each event when it arrives");
        show::chat(screen, vm).await?;
    }
    screen.heading("Check", "everything this VM depends on, probed now");
    show::check(screen, vm).await?;
    screen.heading("Containers", "and what an operator should know");
    let ready = show::all_ready(screen, vm).await;
    show::verb(screen, vm, "status").await?;
    ready?;
    screen.heading("Dify", "its first page through the front door");
    show::install_page(screen, vm).await
}

/// What an operator would have been called for.
fn alarms(screen: &Screen, vm: &Vm) {
    let alarms = vm.alarms();
    if alarms.is_empty() {
        return;
    }
    screen.heading("Warnings", "of the agent and the edge");
    for line in alarms {
        screen.line(format!("  {line}"));
    }
}

/// The end of the log of every container that is not ready.
async fn last_words(screen: &Screen, vm: &Vm) {
    let Ok(status) = vm.node.status().await else { return };
    for container in status.containers.iter().filter(|container| !container.ready) {
        let Ok(log) = vm.fleet.engine.logs(&container.container).await else { continue };
        screen.heading(&container.service, &format!("is {}; the end of its log", container.state));
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..]
            .iter()
            .for_each(|line| screen.line(format!("  {line}")));
    }
}

async fn next(screen: &Screen, vm: &Vm, cli: &Cli) {
    let aside =
        if cli.hold { "in another terminal" } else { "while `make demo HOLD=1` keeps the VM up" };
    screen.heading("What to try", aside);
    screen.command(&format!("curl {}", vm.node.url("/health")));
    if !cli.real {
        let chat = vm.node.url("/v1/chat-messages");
        screen.command(&format!("curl -N -d '{}' {chat}", r#"{"response_mode":"streaming"}"#));
    }
    let status = vm.node.status().await.ok();
    let mut containers = status.iter().flat_map(|status| &status.containers);
    if let Some(api) = containers.find(|container| container.service == "api") {
        let api = if cli.hold { &api.container } else { "NAME-api" };
        screen.command(&format!(
            "docker kill {api}   # /health says what is missing until it is back"
        ));
    }
    if let (true, Ok(agent)) = (cli.hold, program::path("dify-agent")) {
        let folder = agent.parent().unwrap_or(&agent).display().to_string();
        let host = vm.metadata_host();
        screen.command(&format!("export GCE_METADATA_HOST={host} PATH=$PATH:{folder}"));
    }
    screen.command("dify-agent plan; dify-agent logs api; dify-agent status --watch");
    screen.command("dify-agent drain; dify-agent undrain");
}

/// Waits for Enter on the terminal; for ever where there is none.
async fn enter() {
    let (pressed, heard) = oneshot::channel();
    // A thread of its own: the runtime would wait for one of its own at its end.
    std::thread::spawn(move || {
        // Our standard input is nobody's; the terminal may be there all the same.
        let Ok(mut terminal) = std::fs::File::open("/dev/tty") else { return };
        if terminal.read(&mut [0; 1]).is_ok_and(|count| count > 0) {
            let _ = pressed.send(());
        }
    });
    if heard.await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn clean_up(screen: &Screen, vm: Vm, real: bool) -> Outcome {
    screen.heading("Clean-up", "");
    let began = Instant::now();
    let moving = screen.moving("draining, stopping containers in order");
    vm.end().await?;
    drop(moving);
    screen.row(
        "VM",
        format!("drained, containers stopped in order, in {}", seconds(began.elapsed()).trim()),
    );
    screen.row(
        "left behind",
        "no container, network or volume; no secret found where it must not be",
    );
    if real {
        screen.row("kept", "Dify's images on the Docker engine, for the next time");
    }
    Ok(())
}
