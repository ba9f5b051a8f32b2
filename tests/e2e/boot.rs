//! From nothing to serving, and again.

use std::time::Duration;

use dify_common::wire::status::Phase;
use tests::Outcome;
use tests::catalog::{RELEASES, revisions};
use tests::fleet::{Fleet, Options};
use tests::node::{BOOT, Node};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_boots_from_metadata_to_serving() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    node.boot()?;
    // While it is not ready it is alive: nobody may recreate it.
    node.status_where("the first phase", Duration::from_secs(20), |status| !status.ready).await?;
    assert_eq!(node.live().await.map(|(code, _)| code), Ok(200));
    node.serving(BOOT).await?;
    node.settled(BOOT).await?;

    let status = node.status().await.expect("answers");
    assert_eq!((status.phase, status.missing.len(), status.live), (Phase::Serving, 0, true));
    assert!(status.containers.iter().all(|container| container.ready), "{:?}", status.containers);
    assert_eq!(fleet.schema_revision().await?.as_ref(), revisions("1.14.2").last());
    // The front door leads to Dify: its own setup question, and the web's page.
    let setup = node.get("/console/api/setup").await.expect("answers");
    assert_eq!(setup.status().as_u16(), 200);
    assert!(setup.text().await.expect("a body").contains("not_started"));
    assert_eq!(node.get("/apps").await.expect("answers").status().as_u16(), 200);
    assert_eq!(node.notifications.count("READY=1"), 1);
    fleet.close(vec![node], &[]).await
}

/// Ids of all containers: the same ids are the same containers.
async fn ids(node: &Node) -> Outcome<Vec<String>> {
    Ok(node.holdings().await?.containers.into_iter().map(|container| container.id).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_changes_nothing_and_loses_nothing() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    node.boot_to_serving().await?;
    node.settled(BOOT).await?;
    let before = ids(&node).await?;
    fleet.sim.storage().put(&fleet.bucket, "upload_files/kept", "kept");
    // The machine goes down hard: the programs die, all containers stop, /run is empty.
    node.signal_agent("KILL").await?;
    node.signal_edge("a", "KILL").await?;
    for container in node.holdings().await?.containers {
        if container.state == "running" {
            fleet.engine.kill(&container.id).await?;
        }
    }
    node.wipe_run()?;
    node.boot_to_serving().await?;
    node.settled(BOOT).await?;
    assert_eq!(ids(&node).await?, before, "a container was replaced");
    let revision = fleet.schema_revision().await?;
    assert_eq!(revision.as_ref(), revisions("1.14.2").last());
    assert!(fleet.sim.storage().get(&fleet.bucket, "upload_files/kept").is_some());
    fleet.close(vec![node], &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_release_boots() -> Outcome {
    for release in RELEASES.into_iter().filter(|release| *release != "1.14.2") {
        let fleet = Fleet::start(Options { release, ..Options::default() }).await?;
        let mut node = fleet.node().await?;
        node.boot_to_serving().await?;
        let status = node.status().await.expect("answers");
        assert_eq!(status.release.as_deref(), Some(release));
        assert_eq!(fleet.schema_revision().await?.as_ref(), revisions(release).last());
        fleet.close(vec![node], &[]).await?;
    }
    Ok(())
}
