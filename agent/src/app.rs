//! `run`: binds what must be bound, starts what must run, ends in order.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dify_common::chain::Chain;
use dify_common::shutdown;
use dify_common::tasks::Tasks;
use dify_common::telemetry;
use dify_common::wire::status::{Finding, Phase};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{error, info, info_span, warn};

use crate::board::Board;
use crate::cli::{EDGE_SOCKET, OPS_SOCKET, Told, refused, stranded_run, watcher};
use crate::config::{LoadError, Settings, Watcher};
use crate::engine::Engine;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::front::EdgeLink;
use crate::intent::{Intent, Want};
use crate::notify;
use crate::ops::Ops;
use crate::reconcile::context::Context;
use crate::reconcile::local::{self, Disk};
use crate::reconcile::marker::{self, Marker};
use crate::reconcile::{leave, life};

/// Tasks are waiting, mostly; this long at most to notice the end.
const WIND_DOWN: Duration = Duration::from_secs(5);
/// The first look at the engine: it decides only whether to be careful.
const LOOK: Duration = Duration::from_secs(10);
/// Code of the finding about a document that cannot be used.
const REFUSED: &str = "configuration-refused";

/// Runs the node until it is stopped.
pub async fn run(told: &Told) -> Result<Exit, Failure> {
    let mut watcher = watcher(told);
    let settings = match watcher.load().await {
        Ok(settings) => settings,
        Err(error) if told.config.is_some() => return Err(refused(&error)),
        Err(error) => Box::pin(stranded(&mut watcher, error)).await?,
    };
    telemetry::init(settings.logs.mode, &settings.logs.filter);
    let run = &settings.paths.run;
    let _lock = only_one(run)?;
    let adopting = adopting(&settings).await;
    let board = Board::new(settings.node.clone(), adopting);
    let (tasks, intent) = (Tasks::default(), Intent::default());
    if marker::is_set(run, Marker::Drained) {
        intent.drain("it was out of service before this agent started");
    }
    let link = EdgeLink::bind(&run.join(EDGE_SOCKET)).map_err(|error| start_failed(&error))?;
    let ops = Ops::bind(&run.join(OPS_SOCKET), Some(settings.paths.ops)).await;
    let ops = ops.map_err(|error| start_failed(&error))?;
    make_state(&settings.paths.state).map_err(|error| Failure {
        exit: Exit::Disk,
        message: format!("make {}: {error}", settings.paths.state.display()),
        permanent: true,
    })?;
    info!(node = %settings.node, release = %settings.release, adopting, "dify-agent runs");

    tasks.spawn_essential("edge-link", info_span!("front"), link.run(board.clone(), tasks.clone()));
    ops.spawn(board.clone(), intent.clone(), &tasks);
    let disk = Disk::new(&settings.paths.state);
    remember(run.clone(), &intent, &tasks);
    let (times, times_now) = watch::channel(settings.drain);
    let drained = leave::spawn(times_now, board.clone(), &intent, &tasks);
    let (settings_now, told_now) = watch::channel(Arc::new(settings));
    local::spawn(told_now.clone(), disk, board.clone(), &tasks);
    follow(watcher, settings_now, times, board.clone(), &tasks);
    notify::spawn(board.clone(), &tasks);

    let leading = watch::Sender::new(false);
    let ctx = Context { board, intent: intent.clone(), tasks: tasks.clone(), leading };
    let mut hand_over =
        signal(SignalKind::user_defined1()).map_err(|error| start_failed(&error))?;
    let ended = {
        let life = life::run(&ctx, told_now, drained);
        let asked = async {
            if let Ok(name) = shutdown::requested().await {
                info!(signal = name, "asked to stop");
                intent.stop("a signal asked");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // cancel-safe: it ends this process either way.
            () = life => Exit::Done,
            // cancel-safe: never resolves.
            () = asked => Exit::Done,
            // cancel-safe: as above. The next agent takes over what runs.
            () = async { hand_over.recv().await; ctx.not_leading().await } => {
                info!("handing over: containers and edge go on");
                Exit::Done
            }
            // cancel-safe: as above.
            name = tasks.died() => {
                error!(task = name, "an essential task died");
                Exit::Bug
            }
        }
    };
    tasks.stop(WIND_DOWN).await;
    Ok(ended)
}

/// Containers of ours run already: the edges keep serving by what they know
/// until this agent knows better.
async fn adopting(settings: &Settings) -> bool {
    let look = async {
        let engine = Engine::connect(&settings.paths.docker).await.ok()?;
        let observed = engine.observe(&settings.node).await.ok()?;
        Some(observed.containers.values().any(|seen| seen.state.is_running()))
    };
    // An engine that does not answer now may still have what served before.
    let marked = marker::is_set(&settings.paths.run, Marker::Serving);
    timeout(LOOK, look).await.ok().flatten().unwrap_or(marked)
}

/// One agent a node: a second one would take the sockets from the first.
fn only_one(run: &Path) -> Result<File, Failure> {
    let path = run.join("agent.lock");
    let locked = std::fs::create_dir_all(run).and_then(|()| {
        let file = File::create(&path)?;
        file.try_lock().map_err(std::io::Error::from)?;
        Ok(file)
    });
    locked.map_err(|error| {
        let place = path.display();
        Failure::said(
            Exit::Failed,
            format!("lock {place}: {error}; is another agent of this node running?"),
        )
    })
}

/// Keeps over restarts of the agent that an operator took the node out of service.
fn remember(run: PathBuf, intent: &Intent, tasks: &Tasks) {
    let mut wants = intent.watch();
    tasks.spawn("remember", info_span!("remember"), async move {
        while wants.changed().await.is_ok() {
            match *wants.borrow_and_update() {
                Want::Serve => marker::clear(&run, Marker::Drained),
                Want::Drain => marker::set(&run, Marker::Drained),
                Want::Stop => {}
            }
        }
    });
}

fn make_state(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

/// A VM with a document that cannot be used says so and waits for a better one:
/// exiting would only make systemd ask again, and an edge that hears nothing
/// would have the VM recreated for a mistake in a document.
async fn stranded(watcher: &mut Watcher, mut error: LoadError) -> Result<Settings, Failure> {
    telemetry::init(telemetry::LogMode::Auto, "info");
    let node = watcher.machine().unwrap_or_else(|| "unnamed".parse().expect("a node id"));
    let (run, tasks) = (stranded_run(), Tasks::default());
    let board = Board::new(node, marker::is_set(&run, Marker::Serving));
    let _lock = only_one(&run)?;
    let link = EdgeLink::bind(&run.join(EDGE_SOCKET)).map_err(|error| start_failed(&error))?;
    let ops = Ops::bind(&run.join(OPS_SOCKET), None).await.map_err(|error| start_failed(&error))?;
    tasks.spawn_essential("edge-link", info_span!("front"), link.run(board.clone(), tasks.clone()));
    ops.spawn(board.clone(), Intent::default(), &tasks);
    notify::spawn(board.clone(), &tasks);
    let settings = loop {
        let failure = refused(&error);
        error!(error = failure.message, "no usable configuration; waiting for another");
        board.enter(Phase::Failed);
        board.amend(|view| {
            view.missing = std::iter::once(failure.exit.kind().to_owned()).collect();
            view.failure = Some(failure.to_wire());
        });
        let next = tokio::select! {
            // cancel-safe: what was not handed out is found again.
            next = watcher.changed() => next,
            // cancel-safe: nothing runs that would have to be stopped.
            _ = shutdown::requested() => return Err(failure),
        };
        match next {
            Ok(settings) => break settings,
            Err(next) => error = next,
        }
    };
    tasks.stop(WIND_DOWN).await;
    Ok(settings)
}

fn start_failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::passing(Exit::Failed, error)
}

/// Later documents: a valid one is taken up, another is a finding.
fn follow(
    mut watcher: Watcher,
    settings: watch::Sender<Arc<Settings>>,
    times: watch::Sender<crate::config::settings::DrainTimes>,
    board: Board,
    tasks: &Tasks,
) {
    let stopping = tasks.stopping();
    tasks.spawn_essential("told", info_span!("told"), async move {
        loop {
            let next = tokio::select! {
                // cancel-safe: what was not handed out is found again.
                next = watcher.changed() => next,
                // cancel-safe: a token can be awaited again.
                () = stopping.cancelled() => return,
            };
            match next {
                Ok(next) => {
                    let present = settings.borrow().clone();
                    if (&next.node, &next.paths) != (&present.node, &present.paths) {
                        let message = "node and paths cannot change while the agent runs: restart it";
                        let (code, message) = (REFUSED.to_owned(), message.to_owned());
                        board.finding(Finding { code, message });
                        continue;
                    }
                    board.amend(|view| view.findings.retain(|finding| finding.code != REFUSED));
                    times.send_replace(next.drain);
                    settings.send_if_modified(|present| {
                        let anew = needs_another_life(present, &next);
                        *present = Arc::new(next);
                        anew
                    });
                }
                Err(error) => {
                    warn!(error = %Chain(&error), "a new configuration is refused; going on with the old");
                    let message = format!("going on with the last valid one: {}", Chain(&error));
                    board.finding(Finding { code: REFUSED.to_owned(), message });
                }
            }
        }
    });
}

/// Drain and liveness times are read where they are used; anything else changes
/// what runs.
fn needs_another_life(present: &Settings, next: &Settings) -> bool {
    let (drain, liveness) = (next.drain, next.liveness);
    Settings { drain, liveness, ..present.clone() } != *next
}
