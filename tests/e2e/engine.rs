//! The Docker engine itself gives trouble: an engine of the test's own, in a
//! network namespace of its own.

use std::time::Duration;

use dify_common::wire::status::Phase;
use tests::Outcome;
use tests::fleet::{Fleet, Options};
use tests::node::{BOOT, Node};
use tests::tmpfs::Tmpfs;

/// Probes find out, since events do not come.
const NOTICED: Duration = Duration::from_secs(30);

/// Tells the node which engine is its.
fn told(node: &Node, fleet: &Fleet, socket: &std::path::Path) -> Outcome {
    let mut document = node.document(fleet);
    document["paths"]["docker"] = serde_json::json!(socket);
    node.tell(&document)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_while_pulling_is_named_and_nothing_is_half_done() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    let data = fleet.folder().join("data");
    std::fs::create_dir(&data).expect("a new folder");
    // Less than the largest layer takes while it comes: downloaded, then unpacked.
    let disk = Tmpfs::mount(&data, 24).await?;
    let mut engine = node.own_engine(&fleet, &data).await?;
    told(&node, &fleet, &engine.socket)?;
    node.boot()?;
    let status =
        node.status_where("the failure", BOOT, |status| status.phase == Phase::Failed).await?;
    let failure = status.failure.expect("says why");
    assert_eq!(failure.kind, "disk", "{}", failure.message);
    assert!(failure.message.contains("no space left"), "{}", failure.message);
    assert!(node.holdings().await?.containers.is_empty(), "something was made");
    node.alive(Duration::from_secs(2)).await?;
    let (ended, printed) = node.run_verb(&["check"]).await?;
    assert_eq!(ended.code(), Some(73), "{printed}");
    fleet.close(vec![node], &["pull", "disk", "space"]).await?;
    engine.stop().await?;
    drop(disk);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_restarted_gets_its_containers_back() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    let data = fleet.folder().join("data");
    let mut engine = node.own_engine(&fleet, &data).await?;
    told(&node, &fleet, &engine.socket)?;
    node.boot_to_serving().await?;
    node.settled(BOOT).await?;
    let before = node.holdings().await?;
    engine.stop().await?;
    // `/health` tells the truth although nobody says what became of the containers.
    node.missing("api", NOTICED).await?;
    node.alive(Duration::from_secs(2)).await?;
    engine.resume().await?;
    node.status_where("all to be started again", BOOT, |status| {
        status.containers.iter().all(|container| container.restarts > 0)
    })
    .await?;
    node.settled(BOOT).await?;
    assert_eq!(node.holdings().await?, before, "something was recreated");
    node.get_json("/v1/_plugin").await.expect("the api reaches the plugin daemon again");
    fleet.close(vec![node], &["Docker", "docker", "exited", "exit code", "engine"]).await?;
    engine.stop().await
}
