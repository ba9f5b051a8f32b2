//! Whatever dies comes back to the same end.

use std::time::Duration;

use dify_common::wire::status::Phase;
use tests::fleet::{Fleet, Options};
use tests::images::Behaviour;
use tests::node::{BOOT, OFTEN};
use tests::wait::wait_for;
use tests::{Outcome, child};
use tokio::process::Command;

/// Docker's event, the agent's look at it, the edge's next answer.
const NOTICED: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn every_container_killed_in_turn_comes_back() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    node.boot_to_serving().await?;
    node.settled(BOOT).await?;
    let all = node.holdings().await?.containers;
    for container in &all {
        fleet.engine.kill(&container.id).await?;
        wait_for(
            &format!("{} to be seen dead or back", container.service),
            OFTEN,
            NOTICED,
            async || {
                let status = node.status().await?;
                let seen = status.containers.iter().find(|seen| seen.service == container.service);
                match seen {
                    Some(seen) if seen.restarts > 0 || !seen.ready => Ok(()),
                    Some(_) => Err("as if nothing had happened".to_owned()),
                    None => Err("not listed".to_owned()),
                }
            },
        )
        .await?;
        node.settled(BOOT).await?;
    }
    fleet.close(vec![node], &["exited", "restart", "ended", "not ready"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_removed_by_hand_comes_back_and_a_foreign_one_is_left_alone() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    node.boot_to_serving().await?;
    let web = node.container("web").await?;
    let image = fleet.engine.inspect(&web.id).await?.image.unwrap_or_default();
    let foreign = format!("foreign-{}", node.id);
    let docker =
        async |arguments: &[&str]| child::run(Command::new("docker").args(arguments)).await;
    docker(&["create", "--name", &foreign, &image]).await?;
    fleet.engine.remove_container(&web.id).await?;
    wait_for("another web", OFTEN, BOOT, async || {
        let now = node.container("web").await.map_err(|broken| broken.to_string())?;
        if now.id != web.id && now.state == "running" { Ok(()) } else { Err(now.state) }
    })
    .await?;
    node.serving(BOOT).await?;
    let state = docker(&["inspect", "--format", "{{.State.Status}}", &foreign]).await?;
    docker(&["rm", &foreign]).await?;
    assert_eq!(state.trim(), "created");
    fleet.close(vec![node], &["web"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_any_phase_converges() -> Outcome {
    let behaviour = Behaviour { scale: 0.1, ..Behaviour::default() };
    let fleet = Fleet::start(Options { behaviour, ..Options::default() }).await?;
    let mut node = fleet.node().await?;
    node.start_edge("a")?;
    for phase in [Phase::Preflight, Phase::Pulling, Phase::Gating, Phase::Starting, Phase::Serving]
    {
        node.start_agent()?;
        // A phase may be over before it is seen: then a later one is as good.
        node.status_where(&format!("phase {phase}"), BOOT, |status| {
            status.phase == phase || status.timeline.iter().any(|ended| ended.phase == phase)
        })
        .await?;
        node.signal_agent("KILL").await?;
    }
    node.start_agent()?;
    node.serving(BOOT).await?;
    assert_eq!(
        fleet.bed.main.number(&fleet.role, "SELECT count(*) FROM dify_fleet.migrations").await?,
        1
    );
    fleet.close(vec![node], &["adopt", "one-shot", "migration", "agent"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_serves_on_while_the_agent_is_replaced() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    node.boot_to_serving().await?;
    node.settled(BOOT).await?;
    let before = node.holdings().await?;
    node.signal_agent("KILL").await?;
    for _ in 0..50 {
        let answer = node.get("/console/api/setup").await.expect("the edge serves on");
        assert_eq!(answer.status().as_u16(), 200);
    }
    node.start_agent()?;
    node.settled(BOOT).await?;
    assert_eq!(node.health().await.map(|(code, _)| code), Ok(200));
    assert_eq!(node.holdings().await?, before, "something was recreated");
    fleet.close(vec![node], &["agent"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_never_met_an_agent_is_alive_and_not_ready() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    node.start_edge("a")?;
    let health =
        wait_for("the edge to answer", OFTEN, NOTICED, async || node.health().await).await?;
    assert_eq!(health.0, 503, "{}", health.1);
    assert_eq!(node.live().await.map(|(code, _)| code), Ok(200));
    fleet.close(vec![node], &["agent"]).await
}
