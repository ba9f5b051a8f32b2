//! A shared service is away: the node takes no traffic, is not recreated, and
//! comes back by itself.

use std::time::Duration;

use tests::Outcome;
use tests::fleet::{Fleet, Options};
use tests::link::Weather;
use tests::node::{BOOT, Node, OFTEN};
use tests::wait::holds_for;

/// Probe period and threshold of the agent, and a margin.
const NOTICED: Duration = Duration::from_secs(30);
/// How long an outage lasts here.
const OUTAGE: Duration = Duration::from_secs(5);

async fn alive_all_along(node: &Node) -> Outcome {
    holds_for("/health/live", OFTEN, OUTAGE, async || match node.live().await? {
        (200, _) => Ok(()),
        (code, body) => Err(format!("{code} {body}")),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_cut_off_is_missing_and_comes_back() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
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
        alive_all_along(&node).await?;
        link.set(Weather::Clear).await;
        node.serving(BOOT).await?;
    }
    fleet.sim.close().await;
    node.missing("bucket", NOTICED).await?;
    alive_all_along(&node).await?;
    fleet.sim.reopen().await.expect("the port is still ours");
    node.settled(BOOT).await?;
    assert_eq!(node.holdings().await?, before, "something was recreated");
    fleet.close(vec![node], &["database", "redis", "vector", "bucket", "token", "secret"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_hangs_is_missing_too() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    node.boot_to_serving().await?;
    node.settled(BOOT).await?;
    let before = node.holdings().await?;
    fleet.links.main.set(Weather::BlackHole).await;
    node.missing("database", NOTICED).await?;
    alive_all_along(&node).await?;
    fleet.links.main.set(Weather::Clear).await;
    node.settled(BOOT).await?;
    assert_eq!(node.holdings().await?, before, "something was recreated");
    fleet.close(vec![node], &["database"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_boots_into_an_outage_waits_for_its_end() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    fleet.links.main.set(Weather::Cut).await;
    node.boot()?;
    node.missing("database", NOTICED).await?;
    alive_all_along(&node).await?;
    fleet.links.main.set(Weather::Clear).await;
    node.serving(BOOT).await?;
    fleet.close(vec![node], &["database"]).await
}
