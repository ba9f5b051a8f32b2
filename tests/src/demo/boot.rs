//! The phases of a boot as they pass.

use std::time::Duration;

use dify_common::wire::status::{AgentStatus, Phase};
use tests::node::OFTEN;
use tests::wait::wait_for;
use tests::{Broken, Outcome};
use tokio::time::Instant;

use super::screen::{Screen, Tone, seconds};
use super::vm::Vm;

/// Without a terminal something is said at least this often.
const SILENCE: Duration = Duration::from_secs(30);

/// Boots the VM and shows its phases until `/health` says 200; how long it took.
pub(crate) async fn show(screen: &Screen, vm: &mut Vm, at_most: Duration) -> Outcome<Duration> {
    let began = Instant::now();
    let now = screen.moving("dify-edge and dify-agent start");
    let detail = screen.moving("");
    vm.boot()?;
    let mut shown = 0;
    let mut said = began;
    let ended = wait_for("the VM to serve", OFTEN, at_most, async || {
        if let Ok(status) = vm.node.agent_ends(Duration::ZERO).await {
            return Ok(Err(Broken::new(format!("dify-agent ended by itself: {status}"))));
        }
        let status = vm.node.status().await?;
        for passed in status.timeline.iter().skip(shown) {
            let took = seconds(Duration::from_millis(passed.millis));
            let what = screen.paint(Tone::Quiet, meaning(passed.phase));
            screen.line(format!("  {:12}  {took}  {what}", passed.phase));
            said = Instant::now();
        }
        shown = status.timeline.len().max(shown);
        let elapsed = seconds(began.elapsed());
        let waiting = status.waiting_on.join("; ");
        now.set(format!("{:10}  {elapsed}  {waiting}", status.phase));
        let containers = containers(&status);
        detail.set(containers.clone());
        if !screen.is_terminal() && said.elapsed() >= SILENCE {
            screen
                .line(format!("  {:12}  {elapsed}  so far; {waiting} {containers}", status.phase));
            said = Instant::now();
        }
        if let (Phase::Failed, Some(failure)) = (status.phase, &status.failure) {
            let failed = format!("the boot failed ({}): {}", failure.kind, failure.message);
            return Ok(Err(Broken::new(failed)));
        }
        match vm.node.health().await? {
            (200, _) => Ok(Ok(())),
            (code, body) => Err(format!("/health {code} {body}; {:?}", status.waiting_on)),
        }
    });
    let outcome = ended.await;
    drop((now, detail));
    outcome??;
    let took = began.elapsed();
    let verdict = screen.paint(Tone::Good, "serving");
    screen.line(format!("  {verdict}       {}  from nothing to /health 200", seconds(took)));
    Ok(took)
}

fn containers(status: &AgentStatus) -> String {
    let names = |ready: bool| {
        let services = status.containers.iter().filter(|one| one.ready == ready);
        services.map(|one| one.service.as_str()).collect::<Vec<_>>().join(" ")
    };
    match (names(true), names(false)) {
        (ready, waiting) if ready.is_empty() && waiting.is_empty() => String::new(),
        (ready, waiting) if waiting.is_empty() => format!("ready: {ready}"),
        (ready, waiting) if ready.is_empty() => format!("not yet: {waiting}"),
        (ready, waiting) => format!("ready: {ready}   not yet: {waiting}"),
    }
}

fn meaning(phase: Phase) -> &'static str {
    match phase {
        Phase::Booting => "metadata, configuration, secrets",
        Phase::Preflight => "databases, Redis, bucket and this machine probed",
        Phase::Pulling => "images by digest",
        Phase::Gating => "the one migration of the fleet",
        Phase::Starting => "containers, in order",
        Phase::Degraded => "something serving needs was away",
        Phase::Serving | Phase::Draining | Phase::Stopped | Phase::Failed | Phase::Unknown => "",
    }
}
