//! From nothing to a node that may start its containers: each phase hands the
//! next what it needs, so none can be entered early.

use std::sync::Arc;
use std::time::Duration;

use dify_common::chain::Chain;
use dify_common::gcp::token::Tokens;
use dify_common::retry::{Backoff, Retryable};
use dify_common::settings::Environment;
use dify_common::wire::status::{Finding, Phase};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::context::Context;
use super::node::{Node, Parts};
use super::setup::Setup;
use crate::backends::probes::{self, Pace};
use crate::backends::{self, CheckLine, Verdict};
use crate::config::Settings;
use crate::config::settings::SecretName;
use crate::dify::stack::Stack;
use crate::engine::execute::Wanted;
use crate::engine::firewall::{self as filter, Firewall, Rule};
use crate::engine::observed::Subnet;
use crate::engine::plan::{Step, plan};
use crate::engine::progress::{self, Show};
use crate::engine::pull::pull_all;
use crate::engine::spec::FirewallRule;
use crate::engine::{Engine, EngineError};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::gate::{GateError, Progress};
use crate::prepare::{self, Prepared};
use crate::registry::Reference;
use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use tokio::sync::{mpsc, watch};

/// A service that is down at boot is asked again this often.
const AGAIN: Duration = Duration::from_secs(3);
/// Preflight that does not pass for this long starts over with fresh secrets.
const REFETCH: Duration = Duration::from_mins(1);
/// Docker is started by systemd beside us; a cold start with many containers
/// takes tens of seconds.
const ENGINE: Duration = Duration::from_mins(2);

/// One boot.
pub(super) async fn boot(ctx: &Context, settings: &Settings) -> Result<Arc<Node>, Failure> {
    let board = &ctx.board;
    board.enter(Phase::Booting);
    board.amend(|view| {
        view.release = Some(settings.release.clone());
        view.silent_fault_after = settings.liveness.agent_after;
    });
    let (prepared, engine) = ready(ctx, settings).await?;

    board.enter(Phase::Pulling);
    let site = prepare::site(settings)?;
    pull(&engine, &prepared, settings).await?;
    arrange(&engine, &site, &prepared, Which::Networks).await.map_err(|e| engine_failure(&e))?;

    board.enter(Phase::Gating);
    let gate = prepare::gate(settings, &prepared, &engine, &site).await?;
    pass(ctx, &gate).await?;
    // Only now: a release that is refused has changed nothing.
    arrange(&engine, &site, &prepared, Which::All).await.map_err(|e| engine_failure(&e))?;

    board.enter(Phase::Starting);
    let setup = Setup::default();
    let Prepared { stack, machine, secrets, tokens, .. } = prepared;
    let (board, tasks) = (ctx.board.clone(), ctx.tasks.clone());
    let services = probes::spawn(settings, &secrets, tokens.as_ref(), Pace::default(), &tasks)
        .map_err(|error| Failure::lasting(Exit::Configuration, &error))?;
    Ok(Node::new(Parts {
        settings: settings.clone(),
        stack,
        machine,
        engine,
        site,
        gate,
        board,
        tasks,
        services,
        setup,
        google: tokens,
        secrets: secrets.clone(),
        guarded: secrets.get(SecretName::InitPassword).is_some(),
    }))
}

/// Prepared and preflighted. A service that refuses for a minute may refuse the
/// very password that was fetched: everything is fetched anew then.
async fn ready(ctx: &Context, settings: &Settings) -> Result<(Prepared, Engine), Failure> {
    loop {
        ctx.board.enter(Phase::Booting);
        let prepared = prepared(ctx, settings).await?;
        let findings = prepared.stack.findings.iter().chain(prepared.secrets.findings());
        let findings: Vec<Finding> = findings.cloned().collect();
        ctx.board.amend(|view| view.findings = findings);
        ctx.board.enter(Phase::Preflight);
        let engine = engine(ctx, settings).await?;
        if let Ok(passed) = timeout(REFETCH, preflight(ctx, settings, &prepared)).await {
            return passed.map(|()| (prepared, engine));
        }
        info!("preflight does not pass; preparing anew");
    }
}

/// Secrets and stack; what may pass is waited out, for Secret Manager and the
/// metadata server are services too.
async fn prepared(ctx: &Context, settings: &Settings) -> Result<Prepared, Failure> {
    let mut failed = 0;
    loop {
        let attempt = async {
            let tokens = match Tokens::find(&Environment).await {
                Ok(tokens) => Some(tokens),
                Err(error) if prepare::needs_google(settings) => {
                    return Err(Failure::passing(Exit::Secret, &error));
                }
                Err(_) => None,
            };
            prepare::prepare(settings, tokens).await
        };
        match attempt.await {
            Ok(prepared) => return Ok(prepared),
            Err(failure) if failure.permanent => return Err(failure),
            Err(failure) => {
                warn!(error = failure.message, failed, "cannot prepare yet");
                ctx.board.waiting_on(vec![failure.message]);
                sleep(Backoff::NEARBY.wait(failed)).await;
                failed = failed.saturating_add(1);
            }
        }
    }
}

async fn engine(ctx: &Context, settings: &Settings) -> Result<Engine, Failure> {
    let give_up = Instant::now() + ENGINE;
    loop {
        match Engine::connect(&settings.paths.docker).await {
            Ok(engine) => {
                info!(version = engine.version().engine, "Docker answers");
                return Ok(engine);
            }
            Err(error) if error.is_permanent() || Instant::now() >= give_up => {
                return Err(Failure::passing(Exit::Dependency, &error));
            }
            Err(error) => ctx.board.waiting_on(vec![Chain(&error).to_string()]),
        }
        sleep(AGAIN).await;
    }
}

/// Waits until no line fails. A line that no waiting can cure ends it.
async fn preflight(ctx: &Context, settings: &Settings, prepared: &Prepared) -> Result<(), Failure> {
    loop {
        let Prepared { secrets, stack, tokens, .. } = prepared;
        let lines = backends::check(settings, secrets, &stack.budget, tokens.as_ref()).await;
        let bad: Vec<&CheckLine> =
            lines.iter().filter(|line| line.verdict == Verdict::Fail).collect();
        if bad.is_empty() {
            info!(lines = lines.len(), "preflight passed");
            for finding in backends::findings(&lines) {
                ctx.board.finding(finding);
            }
            return Ok(());
        }
        let words: Vec<String> = bad.iter().map(|line| line.sentence()).collect();
        let exit = backends::exit(&lines);
        if exit != Exit::Dependency {
            return Err(Failure::said(exit, words.join("; ")));
        }
        ctx.board.waiting_on(words);
        let kinds = bad.iter().map(|line| line.group.as_str().to_owned()).collect();
        ctx.board.amend(|view| view.missing = kinds);
        sleep(AGAIN).await;
    }
}

async fn pull(engine: &Engine, prepared: &Prepared, settings: &Settings) -> Result<(), Failure> {
    let stack = &prepared.stack;
    let images: BTreeSet<&str> = stack.images().collect();
    let images: Result<Vec<Reference>, _> = images.into_iter().map(str::parse).collect();
    let images = images.map_err(|error| Failure::lasting(Exit::Manifest, &error))?;
    let (news, inbox) = mpsc::channel(256);
    let show = if io::stderr().is_terminal() { Show::Terminal } else { Show::Lines };
    let at_once = settings.images.concurrency;
    let pulling =
        async move { pull_all(engine, &images, at_once, prepared.tokens.as_ref(), &news).await };
    let (pulled, ()) = tokio::join!(pulling, progress::show(inbox, show));
    match pulled {
        Ok(_) => Ok(()),
        Err(errors) => {
            let failure = engine_failure(errors.worst());
            Err(Failure { message: errors.to_string(), ..failure })
        }
    }
}

/// How much of a stack is arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Networks and the packet filter: the one-shots need them.
    Networks,
    /// Also what this release no longer has.
    All,
}

/// Networks and the packet filter as wanted; nothing of an earlier stack left over.
async fn arrange(
    engine: &Engine,
    site: &crate::engine::Site,
    prepared: &Prepared,
    which: Which,
) -> Result<(), EngineError> {
    let stack = &prepared.stack;
    engine.remove_orphans(site).await?;
    let wanted = Wanted { containers: &stack.containers, networks: &stack.networks };
    let hashes = wanted.hashes(site);
    // Twice at most: a network is removed in one pass and made in the next.
    for _ in 0..3 {
        let observed = engine.observe(site.node()).await?;
        let plan = plan(&stack.containers, &stack.networks, &hashes, &observed);
        let mut carried = 0;
        for step in plan.steps.iter().filter(|step| concerns(step, which, stack)) {
            info!(step = ?step, "arrange");
            engine.carry_out(step, wanted, site).await?;
            carried += 1;
        }
        if carried == 0 {
            break;
        }
    }
    Firewall::new(site.node(), rules(stack)).apply().await
}

/// Containers are created and started by the steady loop.
fn concerns(step: &Step, which: Which, stack: &Stack) -> bool {
    match step {
        Step::RemoveNetwork { .. } | Step::CreateNetwork { .. } => true,
        // One of the stack goes because its network does.
        Step::Remove { name, .. } => {
            which == Which::All || stack.containers.iter().any(|spec| spec.name == *name)
        }
        Step::Create { .. } | Step::Replace { .. } | Step::Start { .. } => false,
    }
}

/// The stack's rules in the packet filter's terms.
fn rules(stack: &Stack) -> Vec<Rule> {
    let rule = |FirewallRule::CloseHost { subnet, prefix, .. }: &FirewallRule| {
        let from = Some(Subnet { base: *subnet, prefix: *prefix });
        let (to, port) = (None, None);
        Rule { path: filter::Path::ToHost, from, to, port, verdict: filter::Verdict::Drop }
    };
    stack.firewall.iter().map(rule).collect()
}

async fn pass(ctx: &Context, gate: &super::node::NodeGate) -> Result<(), Failure> {
    let (board, leading) = (ctx.board.clone(), ctx.leading.clone());
    let report = move |progress: Progress| match progress {
        Progress::Waiting(on) => board.waiting_on(vec![on.to_string()]),
        Progress::LearningHead => {
            leading.send_replace(true);
            board.waiting_on(vec!["the image names its schema head".to_owned()]);
        }
        Progress::Migrating { from, to } => {
            leading.send_replace(true);
            let from = from.as_deref().unwrap_or("an empty database");
            board.waiting_on(vec![format!("migration from {from} to {to}, by this node")]);
        }
        Progress::Line(line) => info!(line, "migration"),
        Progress::PostCommand(command) => {
            board.waiting_on(vec![format!("post-migration command flask {command}")]);
        }
        Progress::StartingDaemon => {}
    };
    let _led = Led(ctx.leading.clone());
    match gate.pass(&report).await {
        Ok(passed) => {
            info!(?passed, "through the migration gate");
            Ok(())
        }
        Err(error) => Err(gate_failure(&error)),
    }
}

/// Ends the lead whatever becomes of the gate.
struct Led(watch::Sender<bool>);

impl Drop for Led {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

fn gate_failure(error: &GateError) -> Failure {
    let (exit, message) = (error.exit(), Chain(error).to_string());
    Failure { exit, message, permanent: error.is_permanent() }
}

fn engine_failure(error: &EngineError) -> Failure {
    use crate::engine::EngineErrorKind as Kind;
    let exit = match error.kind() {
        Kind::NoSpace | Kind::File => Exit::Disk,
        Kind::BadImage | Kind::DigestMismatch => Exit::Manifest,
        Kind::Unauthorized => Exit::Secret,
        Kind::Deadline => Exit::Deadline,
        Kind::Conflict | Kind::Invalid => Exit::Configuration,
        Kind::Unreachable
        | Kind::NotFound
        | Kind::Registry
        | Kind::Engine
        | Kind::Stale
        | Kind::Firewall => Exit::Dependency,
    };
    let (message, permanent) = (Chain(error).to_string(), error.is_permanent());
    Failure { exit, message, permanent }
}
