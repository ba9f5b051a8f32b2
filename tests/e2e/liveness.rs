//! `/health/live` turns 503 for each fault of the node's own that outlasts its
//! repair, and forgives it. Outages, configuration, migration and drain do not
//! turn it: see `outage`, `faults`, `gate` and `drain`.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tests::Outcome;
use tests::docker::SOCKET;
use tests::fleet::{Fleet, Options};
use tests::node::BOOT;
use tests::socket::SocketLink;
use tests::tmpfs::Tmpfs;

/// The bound, the agent's next look, and a margin.
const NOTICED: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_the_node_itself_turns_liveness_and_is_forgiven() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    let disk = Tmpfs::mount(&node.state(), 256).await?;
    let socket = fleet.folder().join("docker.sock");
    let mut engine = SocketLink::open(&socket, Path::new(SOCKET))?;
    let mut document = node.document(&fleet);
    document["paths"]["docker"] = json!(socket);
    document["liveness"] = json!({ "docker_after": "3s", "disk_after": "3s", "agent_after": "8s" });
    node.tell(&document)?;
    node.boot_to_serving().await?;
    node.settled(BOOT).await?;
    let before = node.holdings().await?;

    engine.cut().await?;
    node.faulty("docker", NOTICED).await?;
    engine.restore()?;
    node.forgiven(NOTICED).await?;

    disk.fill()?;
    node.faulty("disk", NOTICED).await?;
    disk.empty()?;
    node.forgiven(NOTICED).await?;

    disk.read_only(true).await?;
    node.faulty("disk", NOTICED).await?;
    disk.read_only(false).await?;
    node.forgiven(NOTICED).await?;

    node.signal_agent("KILL").await?;
    node.faulty("agent", NOTICED).await?;
    // It still serves: only Google is asked for another VM.
    assert_eq!(node.health().await.map(|(code, _)| code), Ok(200));
    node.start_agent()?;
    node.forgiven(NOTICED).await?;
    node.settled(BOOT).await?;
    assert_eq!(node.holdings().await?, before, "something was recreated");
    fleet.close(vec![node], &["Docker", "docker", "disk"]).await
}
