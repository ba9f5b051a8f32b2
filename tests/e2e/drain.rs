//! Leaving service without losing a byte.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tests::fleet::{Fleet, Options};
use tests::node::OFTEN;
use tests::wait::wait_for;
use tests::{Doing as _, Outcome};
use tokio::task::JoinSet;

/// Streams open at once: more than one gunicorn worker's connections.
const STREAMS: usize = 50;

/// Events of each stream: six seconds' worth, so that all are open together.
const EVENTS: u64 = 60;

/// Events of one streamed run of the stand-in, to its end.
async fn events(url: String) -> Outcome<Vec<Value>> {
    let client = reqwest::Client::builder().no_proxy().build().doing(|| "make a client".into())?;
    let script = json!({ "events": EVENTS, "interval_ms": 100 });
    let body = json!({ "response_mode": "streaming", "user": "drain", "standin": script });
    let sent = client.post(url).bearer_auth("app-standin").json(&body).send().await;
    let answer =
        sent.and_then(reqwest::Response::error_for_status).doing(|| "start a stream".into())?;
    let mut chunks = answer.bytes_stream();
    let mut text = String::new();
    while let Some(chunk) = chunks.next().await {
        text.push_str(&String::from_utf8_lossy(&chunk.doing(|| "read a stream".into())?));
    }
    let data = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    data.map(|event| serde_json::from_str(event).doing(|| format!("read the event {event:?}")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sigterm_with_fifty_streams_open_loses_no_event() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    let mut document = node.document(&fleet);
    document["capacity"]["api_connections"] = json!(STREAMS + 10);
    node.tell(&document)?;
    node.boot_to_serving().await?;
    let url = node.url("/v1/chat-messages");
    let mut streams: JoinSet<_> = (0..STREAMS).map(|_| events(url.clone())).collect();
    wait_for("all streams to be open", OFTEN, Duration::from_secs(30), async || {
        if let Some(early) = streams.try_join_next() {
            return Err(format!("a stream ended: {early:?}"));
        }
        let status = node.status().await?;
        let open: u32 = status.edges.iter().map(|edge| edge.in_flight).sum();
        if usize::try_from(open).is_ok_and(|open| open >= STREAMS) {
            Ok(())
        } else {
            Err(format!("{open} open"))
        }
    })
    .await?;
    let ended = node.signal_agent("TERM");
    let (ended, finished) = tokio::join!(ended, streams.join_all());
    assert!(ended?.success());
    for events in finished {
        let events = events?;
        let numbers: Vec<u64> = events.iter().filter_map(|event| event["seq"].as_u64()).collect();
        assert_eq!(numbers, (1..=EVENTS + 1).collect::<Vec<_>>(), "an event is missing");
        assert_eq!(events.last().map(|event| &event["event"]), Some(&json!("message_end")));
    }
    fleet.close(vec![node], &["drain"]).await
}
