//! Leaving: by order, by signal, by hand-over.

use std::time::Duration;

use dify_common::wire::edge::EdgeState;
use dify_edge::Ask;

use crate::bed::{Bed, Upstream, Wire, drain, orders};
use crate::streaming::event;

const SSE: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

async fn streams(bed: &Bed, api: &Upstream, count: usize) -> Vec<(Wire, Wire)> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut client = bed.client().await;
        client.get("/v1/chat-messages").await;
        let (mut call, _) = api.call().await;
        call.send(&format!("{SSE}{}", event("first"))).await;
        client.until("data: first\n\n").await;
        streams.push((client, call));
    }
    streams
}

/// Sends the rest of every stream and sees it arrive whole.
async fn finish(streams: Vec<(Wire, Wire)>) {
    for (index, (mut client, mut call)) in streams.into_iter().enumerate() {
        for part in 0..5 {
            call.send(&event(&format!("{index}.{part}"))).await;
        }
        call.send("0\r\n\r\n").await;
        for part in 0..5 {
            client.until(&format!("data: {index}.{part}\n\n")).await;
        }
        client.until("0\r\n\r\n").await;
        client.ends_within(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn fifty_streams_lose_no_byte_to_a_signal() {
    let api = Upstream::new().await;
    let bed = Bed::with(orders(&api), &["--drain-notice", "1s"]).await;
    let streams = streams(&bed, &api, 50).await;
    bed.handle.ask(Ask::Terminate("test"));
    bed.agent.report("the drain", |report| report.state == EdgeState::Draining).await;
    assert_eq!(bed.get("/health").await.status(), 503, "not ready at once");
    assert_eq!(bed.get("/health/live").await.status(), 200, "and not dead");
    // Within the notice new requests are still served, on connections that end.
    let mut late = bed.client().await;
    late.get("/late").await;
    let (mut call, _) = api.call().await;
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let answer = late.answer().await;
    assert_eq!((answer.body.as_str(), answer.head.field("connection")), ("ok", Some("close")));
    finish(streams).await;
    bed.stopped().await;
}

#[tokio::test]
async fn an_ordered_drain_ends_drained_and_can_be_withdrawn() {
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let streams = streams(&bed, &api, 3).await;
    bed.agent.order(|orders| orders.drain = Some(drain(100, 60_000))).await;
    let answer = bed.get("/health").await;
    assert_eq!((answer.status(), answer.json()["draining"].as_bool()), (503, Some(true)));
    let refused = crate::bed::wait_for("the notice to pass", || async {
        let mut client = bed.client().await;
        client.get("/new").await;
        tokio::select! {
            // cancel-safe: the client is dropped.
            answer = client.answer() => Some(answer),
            // cancel-safe: as above.
            (mut call, _) = api.call() => {
                call.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                None
            }
        }
    })
    .await;
    assert_eq!((refused.status(), refused.kind()), (503, "draining"));
    let report = bed.agent.report("closing", |report| report.in_flight == 3).await;
    assert_eq!(report.state, EdgeState::Draining);
    finish(streams).await;
    bed.agent.report("drained", |report| report.state == EdgeState::Drained).await;
    assert_eq!(bed.get("/health").await.status(), 503, "drained is still not ready");
    bed.agent.order(|orders| orders.drain = None).await;
    bed.agent.report("serving", |report| report.state == EdgeState::Serving).await;
    assert_eq!(bed.get("/health").await.status(), 200);
    bed.stop().await;
}

#[tokio::test]
async fn the_bound_cuts_what_remains() {
    let api = Upstream::new().await;
    let bed = Bed::with(orders(&api), &["--drain-bound", "300ms"]).await;
    let mut streams = streams(&bed, &api, 2).await;
    bed.handle.ask(Ask::Terminate("test"));
    for (client, call) in &mut streams {
        let rest = client.rest().await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "a cut stream looks whole");
        call.ends_within(Duration::from_secs(5)).await;
    }
    bed.stopped().await;
}

#[tokio::test]
async fn a_hand_over_stops_accepting_and_leaves_health_alone() {
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let streams = streams(&bed, &api, 2).await;
    let mut kept = bed.client().await;
    kept.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(kept.answer().await.status(), 200);
    bed.handle.ask(Ask::HandOver);
    kept.ends_within(Duration::from_secs(5)).await;
    let refused = crate::bed::wait_for("no new connections", || async {
        tokio::net::TcpStream::connect(bed.address).await.err()
    })
    .await;
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    finish(streams).await;
    bed.stopped().await;
}
