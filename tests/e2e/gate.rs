//! One migration in the fleet, by whoever is first.

use std::collections::BTreeMap;
use std::time::Duration;

use dify_common::wire::status::Phase;
use serde_json::json;
use tests::Outcome;
use tests::catalog::{Role, revisions};
use tests::fleet::{Fleet, Options};
use tests::images::Behaviour;
use tests::node::BOOT;

/// Rows of the gate's table: schema and table are part of its contract.
const RECORDS: &str = "SELECT count(*) FROM dify_fleet.migrations";

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_at_once_migrate_once() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut nodes = vec![fleet.node().await?, fleet.node().await?, fleet.node().await?];
    for node in &mut nodes {
        node.boot()?;
    }
    for node in &nodes {
        node.serving(BOOT * 2).await?;
    }
    assert_eq!(fleet.schema_revision().await?.as_ref(), revisions("1.14.2").last());
    assert_eq!(fleet.bed.main.number(&fleet.role, RECORDS).await?, 1);
    // The plugin daemons took turns: two first starts at once make the same
    // tables, and the second one dies of it.
    for node in &nodes {
        let daemon = node.container("plugin_daemon").await?;
        let said = fleet.engine.logs(&daemon.id).await?;
        assert!(said.contains("dify plugin db initialized"), "{said}");
        assert!(!said.contains("PANIC"), "{said}");
        let seen = fleet.engine.inspect(&daemon.id).await?.state.unwrap_or_default();
        assert_eq!(seen.restarting, Some(false));
        let status = node.status().await.expect("answers");
        let restarts = status.containers.iter().map(|container| container.restarts).max();
        assert_eq!(restarts, Some(0), "{:?}", status.containers);
    }
    fleet.close(nodes, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_migration_is_reported_and_not_repeated() -> Outcome {
    let faults = BTreeMap::from([(Role::Api, "migration-fails".to_owned())]);
    let behaviour = Behaviour { faults, ..Behaviour::default() };
    let fleet = Fleet::start(Options { behaviour, ..Options::default() }).await?;
    let mut node = fleet.node().await?;
    let mut document = node.document(&fleet);
    document["liveness"] = json!({ "docker_after": "1s", "disk_after": "1s", "agent_after": "3s" });
    node.tell(&document)?;
    node.boot()?;
    let status = node
        .status_where("the migration to fail", BOOT, |status| status.phase == Phase::Failed)
        .await?;
    assert_eq!(status.failure.map(|failure| failure.kind).as_deref(), Some("migration"));
    assert_eq!(node.health().await.map(|(code, _)| code), Ok(503));
    node.alive(Duration::from_secs(4)).await?;
    let services: Vec<String> =
        node.holdings().await?.containers.into_iter().map(|container| container.service).collect();
    assert!(
        !services.iter().any(|service| service == "api"),
        "api was started on a bad schema: {services:?}"
    );
    fleet.close(vec![node], &["migration"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_release_on_a_newer_schema_is_refused() -> Outcome {
    let fleet =
        Fleet::start(Options { release: "1.15.0", also: vec!["1.14.2"], ..Options::default() })
            .await?;
    let mut new = fleet.node().await?;
    new.boot_to_serving().await?;
    let mut old = fleet.node().await?;
    old.instance.set_attribute("dify-release", "1.14.2");
    old.boot()?;
    let status =
        old.status_where("the refusal", BOOT, |status| status.phase == Phase::Failed).await?;
    let failure = status.failure.expect("says why");
    assert_eq!(failure.kind, "migration");
    assert!(failure.message.contains("newer"), "{}", failure.message);
    assert_eq!(fleet.schema_revision().await?.as_ref(), revisions("1.15.0").last());
    fleet.close(vec![new, old], &["newer"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_loses_the_lock_stops_and_another_one_migrates() -> Outcome {
    let behaviour = Behaviour { scale: 0.3, ..Behaviour::default() };
    let fleet = Fleet::start(Options { behaviour, ..Options::default() }).await?;
    let mut nodes = vec![fleet.node().await?, fleet.node().await?];
    nodes[0].boot()?;
    nodes[0].status_where("the gate", BOOT, |status| status.phase == Phase::Gating).await?;
    nodes[0].signal_agent("KILL").await?;
    nodes[1].boot()?;
    nodes[1].serving(BOOT * 2).await?;
    assert_eq!(fleet.bed.main.number(&fleet.role, RECORDS).await?, 1);
    nodes[0].start_agent()?;
    nodes[0].serving(BOOT * 2).await?;
    fleet.close(nodes, &["lock", "migration"]).await
}
