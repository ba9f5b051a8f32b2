//! A shared service is away: the node takes no traffic, is not recreated, and
//! comes back by itself.

use std::time::Duration;

use serde_json::json;
use tests::Outcome;
use tests::fleet::{Fleet, Options};
use tests::link::Weather;
use tests::node::{BOOT, Node};

/// Probe period and threshold of the agent, and a margin.
const NOTICED: Duration = Duration::from_secs(30);
/// How long an outage lasts here.
const OUTAGE: Duration = Duration::from_secs(5);

/// A node whose own faults would turn `/health/live` long before an outage here ends.
async fn impatient(fleet: &Fleet) -> Outcome<Node> {
    let node = fleet.node().await?;
    let mut document = node.document(fleet);
    document["liveness"] = json!({ "docker_after": "2s", "disk_after": "2s" });
    node.tell(&document)?;
    Ok(node)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_cut_off_is_missing_and_comes_back() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = impatient(&fleet).await?;
    node.boot_to_serving().await?;
    node.settled(BOOT).await?;
    let before = node.holdings().await?;
    for (kind, link) in [
        ("database", &fleet.links.main),
        ("redis", &fleet.links.redis),
        ("vector", &fleet.links.vector),
    ] {
        link.set(Weather::Cut).await;
        node.missing(kind, NOTICED).await?;
        node.alive(OUTAGE).await?;
        link.set(Weather::Clear).await;
        node.serving(BOOT).await?;
    }
    fleet.sim.close().await;
    node.missing("bucket", NOTICED).await?;
    node.alive(OUTAGE).await?;
    fleet.sim.reopen().await.expect("the port is still ours");
    node.settled(BOOT).await?;
    assert_eq!(node.holdings().await?, before, "something was recreated");
    fleet.close(vec![node], &["database", "redis", "vector", "bucket", "token", "secret"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_hangs_is_missing_too() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = impatient(&fleet).await?;
    node.boot_to_serving().await?;
    node.settled(BOOT).await?;
    let before = node.holdings().await?;
    fleet.links.main.set(Weather::BlackHole).await;
    node.missing("database", NOTICED).await?;
    node.alive(OUTAGE).await?;
    fleet.links.main.set(Weather::Clear).await;
    node.settled(BOOT).await?;
    assert_eq!(node.holdings().await?, before, "something was recreated");
    fleet.close(vec![node], &["database"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_boots_into_an_outage_waits_for_its_end() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = impatient(&fleet).await?;
    fleet.links.main.set(Weather::Cut).await;
    node.boot()?;
    node.missing("database", NOTICED).await?;
    node.alive(OUTAGE).await?;
    fleet.links.main.set(Weather::Clear).await;
    node.serving(BOOT).await?;
    fleet.close(vec![node], &["database"]).await
}
