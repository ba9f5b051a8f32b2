//! What a node is told is wrong, or what it needs is: a clear error with its
//! exit code, and nothing half-done.

use std::time::Duration;

use dify_common::wire::status::{AgentStatus, Phase};
use serde_json::{Value, json};
use sim::VersionState;
use tests::Outcome;
use tests::config::secret_id;
use tests::fleet::{Fleet, Options, write_lock};
use tests::link::Weather;
use tests::node::{BOOT, Node, OFTEN};
use tests::wait::wait_for;

const SOON: Duration = Duration::from_secs(40);

/// `run` reports `kind` and stays; `check` exits with `code`; no container was made.
async fn refused(node: &mut Node, kind: &str, code: i32) -> Outcome<String> {
    node.boot()?;
    // Asked as on the VM: where operators would ask over the network is not
    // known while the document cannot be read.
    let status = wait_for(&format!("the failure {kind}"), OFTEN, SOON, async || {
        let (_, printed) = node.run_verb(&["status", "--json"]).await.map_err(|e| e.to_string())?;
        let status: AgentStatus =
            serde_json::from_str(printed.trim()).map_err(|error| format!("{printed}: {error}"))?;
        if status.phase == Phase::Failed { Ok(status) } else { Err(printed) }
    })
    .await?;
    let failure = status.failure.expect("says why");
    assert_eq!(failure.kind, kind, "{}", failure.message);
    assert_eq!(node.health().await.map(|(code, _)| code), Ok(503));
    assert_eq!(node.live().await.map(|(code, _)| code), Ok(200));
    assert!(node.holdings().await?.containers.is_empty(), "something was made");
    let (ended, printed) = node.run_verb(&["check"]).await?;
    assert_eq!(ended.code(), Some(code), "{printed}");
    Ok(format!("{} {printed}", failure.message))
}

/// The document the node has, changed.
fn told(node: &Node, fleet: &Fleet, change: impl FnOnce(&mut Value)) -> Outcome {
    let mut document = node.document(fleet);
    change(&mut document);
    node.tell(&document)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_mistakes_of_a_document_are_named_at_once_and_a_better_one_is_taken() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    told(&node, &fleet, |document| {
        document["databas"] = json!({});
        document["redis"]["port"] = json!(70000);
        document["secrets"]["secret_key"] = json!("hunter2hunter2hunter2");
    })?;
    let said = refused(&mut node, "configuration", 64).await?;
    for part in ["databas", "redis.port", "secrets.secret_key"] {
        assert!(said.contains(part), "{part} is not named: {said}");
    }
    assert!(!said.contains("hunter2"), "{said}");
    told(&node, &fleet, |_| {})?;
    node.serving(BOOT).await?;
    fleet.close(vec![node], &["configuration"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_is_no_yaml_is_refused() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    node.instance.set_attribute("dify-config", "schema: 1\n  release: [");
    refused(&mut node, "configuration", 64).await?;
    fleet.close(vec![node], &["configuration"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_missing_or_disabled_is_named() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    let id = secret_id("secret_key");
    fleet.sim.secrets().set_state(&id, 1, VersionState::Disabled).expect("it has one version");
    let said = refused(&mut node, "secret", 77).await?;
    assert!(said.contains(&id), "{said}");
    fleet.sim.secrets().set_state(&id, 1, VersionState::Enabled).expect("it has one version");
    node.serving(BOOT).await?;

    let mut other = fleet.node().await?;
    told(&other, &fleet, |document| {
        document["secrets"]["inner_api_key"] = json!("sm://dify-sim/never-made");
    })?;
    let said = refused(&mut other, "secret", 77).await?;
    assert!(said.contains("never-made"), "{said}");
    fleet.close(vec![node, other], &["secret"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_is_not_there_is_refused() -> Outcome {
    let mut fleet = Fleet::start(Options::default()).await?;
    for image in &mut fleet.images {
        image.digest = format!("sha256:{}", "0".repeat(64));
    }
    write_lock(&fleet.releases, "1.14.2", &fleet.images)?;
    let mut node = fleet.node().await?;
    refused(&mut node, "manifest", 65).await?;
    fleet.close(vec![node], &["manifest", "pull", "digest"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_is_waited_for() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    fleet.links.registry.set(Weather::Cut).await;
    let mut node = fleet.node().await?;
    node.boot()?;
    node.missing("images", SOON).await?;
    fleet.links.registry.set(Weather::Clear).await;
    node.serving(BOOT).await?;
    fleet.close(vec![node], &["registry", "pull"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_ca_is_refused() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let foreign = fleet.link_to(&fleet.bed.foreign).await?;
    let mut node = fleet.node().await?;
    told(&node, &fleet, |document| {
        document["vector"]["port"] = json!(foreign.port());
    })?;
    node.boot()?;
    let status = node
        .status_where("a verdict", SOON, |status| {
            !status.waiting_on.is_empty() || status.failure.is_some()
        })
        .await?;
    assert!(!status.ready);
    let (ended, printed) = node.run_verb(&["check"]).await?;
    assert_eq!(ended.code(), Some(69), "{printed}");
    assert!(printed.contains("certificate"), "{printed}");
    assert!(node.holdings().await?.containers.is_empty(), "something was made");
    fleet.close(vec![node], &["vector", "certificate"]).await
}
