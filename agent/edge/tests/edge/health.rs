//! `/health` and `/health/live` through the agent's silence, death and return.

use std::time::Duration;

use dify_common::wire::status::Phase;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::bed::{Bed, Upstream, nothing, orders, wait_for};

/// Waits until `/health` answers so.
async fn health(bed: &Bed, path: &str, status: u16) -> serde_json::Value {
    wait_for(&format!("{path} {status}"), || async {
        let answer = bed.get(path).await;
        (answer.status() == status).then(|| answer.json())
    })
    .await
}

/// A container that answers probes as told: `true` well, `false` not at all.
fn probed(upstream: Upstream) -> (std::net::SocketAddr, tokio::sync::watch::Sender<u16>) {
    let address = upstream.address;
    let (status, now) = tokio::sync::watch::channel(200);
    crate::bed::spawn(async move {
        loop {
            let Ok((mut call, _)) =
                tokio::time::timeout(Duration::from_mins(10), upstream.call()).await
            else {
                return;
            };
            let code = *now.borrow();
            call.send(&format!("HTTP/1.1 {code} X\r\nContent-Length: 0\r\n\r\n")).await;
        }
    });
    (address, status)
}

#[tokio::test]
async fn without_orders_nothing_is_promised() {
    let directory = tempfile::tempdir().expect("a directory");
    let agent = Agent::absent(&directory.path().join("edge.sock"), nothing());
    let bed = Bed::around(directory, agent, &[]);
    let answer = bed.get("/health").await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.json()["missing"][0], "agent");
    assert_eq!(bed.get("/health/live").await.status(), 200);
    let answer = bed.get("/apps").await;
    assert_eq!((answer.status(), answer.kind()), (503, "no-orders"));
    bed.stop().await;
}

#[tokio::test]
async fn health_says_what_the_orders_say() {
    let bed = Bed::new(nothing()).await;
    let answer = bed.get("/health").await;
    let body = answer.json();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.head.field("cache-control"), Some("no-store"));
    for (key, value) in
        [("status", "ok"), ("node", "node-1"), ("release", "1.14.2"), ("phase", "serving")]
    {
        assert_eq!(body[key], value, "{key}");
    }
    assert_eq!(body["stale"], false);
    bed.agent
        .order(|orders| {
            orders.ready = false;
            orders.phase = Phase::Degraded;
            orders.missing = vec!["database".to_owned()];
        })
        .await;
    let answer = bed.get("/health?probe=lb").await;
    assert_eq!((answer.status(), answer.json()["missing"][0].as_str()), (503, Some("database")));
    assert_eq!(bed.get("/health/live").await.status(), 200, "a shared service is not our fault");
    bed.agent
        .order(|orders| {
            orders.live = false;
            orders.faults = vec!["docker".to_owned()];
        })
        .await;
    let answer = bed.get("/health/live").await;
    assert_eq!((answer.status(), answer.json()["faults"][0].as_str()), (503, Some("docker")));
    let mut client = bed.client().await;
    client.send("POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 405);
    client.send("HEAD /health/live HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 503);
    bed.stop().await;
}

#[tokio::test]
async fn a_silent_agent_is_stood_in_for() {
    let (address, status) = probed(Upstream::new().await);
    let mut wanted = orders(&Upstream::new().await);
    wanted.upstreams.get_mut("api").expect("it is there").address = address;
    wanted.stale_after_ms = 1_500;
    wanted.silent_fault_after_ms = 6_000;
    let mut bed = Bed::new(wanted).await;
    assert_eq!(bed.get("/health").await.json()["stale"], false);
    bed.agent.kill();
    let body = wait_for("stale", || async {
        let body = bed.get("/health").await;
        assert_eq!(body.status(), 200, "ready all along: {body:?}");
        let body = body.json();
        (body["stale"] == true).then_some(body)
    })
    .await;
    assert_eq!(body["status"], "ok");
    status.send_replace(500);
    assert_eq!(health(&bed, "/health", 503).await["missing"][0], "api");
    status.send_replace(200);
    health(&bed, "/health", 200).await;
    assert_eq!(health(&bed, "/health/live", 503).await["faults"][0], "agent");
    assert_eq!(bed.get("/health").await.status(), 200, "still serves");
    bed.agent.back();
    bed.agent.reached().await;
    assert_eq!(bed.get("/health").await.json()["stale"], false);
    assert_eq!(bed.get("/health/live").await.status(), 200);
    bed.stop().await;
}

#[tokio::test]
async fn an_agent_that_dies_and_returns_is_not_noticed_by_a_stream() {
    let api = Upstream::new().await;
    let mut bed = Bed::new(orders(&api)).await;
    let mut client = bed.client().await;
    client.get("/").await;
    let (mut call, _) = api.call().await;
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nab").await;
    client.until("ab").await;
    bed.agent.kill();
    call.send("cd").await;
    assert_eq!(client.exactly(2).await, b"cd");
    let mut other = bed.client().await;
    other.get("/other").await;
    let (mut second, _) = api.call().await;
    second.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(other.answer().await.status(), 200);
    bed.agent.back();
    bed.agent.order(|orders| orders.phase = Phase::Degraded).await;
    call.send("ef").await;
    assert_eq!(client.exactly(2).await, b"ef");
    bed.stop().await;
}

#[tokio::test]
async fn a_restart_without_the_agent_serves_by_the_last_orders() {
    let (address, _status) = probed(Upstream::new().await);
    let mut wanted = orders(&Upstream::new().await);
    wanted.upstreams.get_mut("api").expect("it is there").address = address;
    let bed = Bed::new(wanted).await;
    let stored = bed.directory.path().join("state/orders.json");
    wait_for("orders on disk", || std::future::ready(stored.exists().then_some(()))).await;
    let directory = bed.stop().await;

    let socket = directory.path().join("gone.sock");
    let path = socket.display().to_string();
    let again =
        Bed::around(directory, Agent::absent(&socket, nothing()), &["--agent-socket", &path]);
    assert_eq!(again.get("/apps").await.status(), 200, "routes are there from the first request");
    let body = health(&again, "/health", 200).await;
    assert_eq!((body["stale"].as_bool(), body["node"].as_str()), (Some(true), Some("node-1")));
    let directory = again.stop().await;

    std::fs::write(directory.path().join("state/orders.json"), "{").expect("written");
    let third =
        Bed::around(directory, Agent::absent(&socket, nothing()), &["--agent-socket", &path]);
    assert_eq!(third.get("/apps").await.kind(), "no-orders", "damaged orders are ignored");
    third.stop().await;
}

#[tokio::test]
async fn health_answers_while_every_slot_is_taken() {
    let api = Upstream::new().await;
    let bed = Bed::with(orders(&api), &["--max-connections", "3"]).await;
    let mut busy = Vec::new();
    for _ in 0..3 {
        let mut client = bed.client().await;
        client.get("/").await;
        busy.push((client, api.call().await));
    }
    let begun = Instant::now();
    assert_eq!(bed.get("/health").await.status(), 200);
    assert!(begun.elapsed() < Duration::from_secs(1));
    let answer = bed.get("/one-too-many").await;
    assert_eq!((answer.status(), answer.kind()), (503, "too-many-connections"));
    drop(busy);
    bed.stop().await;
}
