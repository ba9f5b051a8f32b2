//! One boot of one contender, from images present to every service answering,
//! and gone again.

use std::collections::BTreeMap;
use std::time::Duration;

use ::tests::fleet::Fleet;
use ::tests::node::{BOOT, Node};
use ::tests::stores::Rights;
use ::tests::wait::wait_for;
use ::tests::{Broken, Doing as _, Outcome};
use tokio::time::Instant;

use super::compose::Compose;
use super::figures::{Contender, Round, State};
use super::memory::{self, Memory};
use super::{say, watch};

/// Boots one node, which pulls the images, and writes it down for compose.
pub(crate) async fn warm_up(fleet: &Fleet) -> Outcome<Compose> {
    say("pulling the images");
    let mut node = fleet.node().await?;
    node.boot_to_serving().await?;
    let all_ready = |status: &dify_common::wire::status::AgentStatus| {
        !status.containers.is_empty() && status.containers.iter().all(|container| container.ready)
    };
    if let Err(broken) = node.status_where("every container to be ready", BOOT, all_ready).await {
        explain(fleet, &node).await;
        return Err(broken);
    }
    let containers = node.holdings().await?.containers;
    let prefix = fleet.node_prefix();
    let compose = Compose::of_node(&node.id, &containers, &prefix, fleet.folder()).await?;
    leave(fleet, node).await?;
    Ok(compose)
}

/// Brings the databases into `state`, for the rounds that follow.
pub(crate) async fn arrange(fleet: &Fleet, state: State) -> Outcome {
    match state {
        // Before each boot instead: every boot fills them.
        State::Empty => Ok(()),
        State::Migrated => {
            empty(fleet).await?;
            let mut node = fleet.node().await?;
            node.boot_to_serving().await?;
            leave(fleet, node).await
        }
    }
}

/// A fresh VM of the group: no state, nothing but the images.
pub(crate) async fn agent(
    fleet: &Fleet,
    compose: &Compose,
    state: State,
    number: u32,
    lap: &str,
) -> Outcome<Round> {
    before(fleet, state).await?;
    let mut node = fleet.node().await?;
    let document = node.document(fleet);
    let subnet = document["node"]["subnet"].as_str().and_then(|net| net.split('.').nth(2));
    let third = subnet.and_then(|third| third.parse().ok());
    let third = third.ok_or_else(|| Broken::new("the node's document names no subnet"))?;
    let targets = compose.targets_on(&node.id, third);
    let client = watch::client()?;
    let (setup, health) = (node.url("/console/api/setup"), node.url("/health"));
    let began = Instant::now();
    node.boot()?;
    let through = async |url: &str| {
        let asked =
            wait_for(url, watch::OFTEN, watch::AT_MOST, async || watch::ok(&client, url).await);
        asked.await.map(|()| began.elapsed().as_secs_f64())
    };
    let watched = tokio::try_join!(
        watch::watch(&fleet.engine, &targets, began),
        through(&setup),
        through(&health)
    );
    let (services, front, health) = match watched {
        Ok(watched) => watched,
        Err(broken) => {
            explain(fleet, &node).await;
            return Err(broken);
        }
    };
    let status = node.status().await.map_err(Broken::new)?;
    let id = node.id.clone();
    leave(fleet, node).await?;
    let phases = status.timeline;
    let own = |line: &::tests::logs::Line| line.source.starts_with(&id) && line.is_alarming();
    let alarms = fleet.logs.lines().into_iter().filter(own).map(|line| line.text).collect();
    let extra = BTreeMap::from([("front".to_owned(), front), ("health".to_owned(), health)]);
    let round =
        Round { contender: Contender::Agent, state, number, services, extra, phases, alarms };
    say(&format!("{lap}: agent {}", round.words()));
    Ok(round)
}

/// `docker-compose up -d` where nothing is but the images.
pub(crate) async fn compose(
    fleet: &Fleet,
    compose: &Compose,
    state: State,
    number: u32,
    lap: &str,
) -> Outcome<Round> {
    before(fleet, state).await?;
    let began = Instant::now();
    let up = async {
        compose.up().await?;
        Ok(began.elapsed().as_secs_f64())
    };
    let targets = compose.targets();
    let (services, up) = tokio::try_join!(watch::watch(&fleet.engine, &targets, began), up)?;
    compose.down().await?;
    let extra = BTreeMap::from([("command".to_owned(), up)]);
    let (phases, alarms) = (Vec::new(), Vec::new());
    let round =
        Round { contender: Contender::Compose, state, number, services, extra, phases, alarms };
    say(&format!("{lap}: compose {}", round.words()));
    Ok(round)
}

/// Memory of both programs while a node serves.
pub(crate) async fn rest(fleet: &Fleet) -> Outcome<Memory> {
    say("memory at rest");
    let mut node = fleet.node().await?;
    node.boot_to_serving().await?;
    let memory = memory::at_rest(&node).await?;
    leave(fleet, node).await?;
    Ok(memory)
}

async fn before(fleet: &Fleet, state: State) -> Outcome {
    match state {
        State::Empty => empty(fleet).await,
        State::Migrated => flush(fleet).await,
    }
}

/// What a node that did not get there says of its containers.
async fn explain(fleet: &Fleet, node: &Node) {
    for container in node.status().await.map(|status| status.containers).unwrap_or_default() {
        if !container.ready {
            let log = fleet.engine.logs(&container.container).await.unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(5).collect();
            say(&format!("{container:?}; last lines, newest first: {lines:?}"));
        }
    }
}

/// Ends a node and removes what it had.
async fn leave(fleet: &Fleet, node: Node) -> Outcome {
    let id = node.id.clone();
    node.end().await?;
    fleet.engine.remove(&id).await
}

async fn empty(fleet: &Fleet) -> Outcome {
    let Fleet { bed, role, secrets, plugin_database, .. } = fleet;
    bed.main.remove(role).await?;
    bed.vector.remove(role).await?;
    let password = secrets.get("database_password");
    bed.main.create(role, password, Rights::Creator, &[role, plugin_database]).await?;
    let password = secrets.get("vector_password");
    bed.vector.create(role, password, Rights::Extensions, &[role]).await?;
    flush(fleet).await
}

async fn flush(fleet: &Fleet) -> Outcome {
    let mut connection = fleet.redis.connect(0).await?;
    let flushed = async { redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await };
    tokio::time::timeout(Duration::from_secs(10), flushed)
        .await
        .doing(|| "empty Redis".into())?
        .doing(|| "empty Redis".into())
}
