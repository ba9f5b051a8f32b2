//! Both programs are replaced under traffic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dify_common::wire::edge::EdgeState;
use serde_json::json;
use tests::fleet::{Fleet, Options};
use tests::node::BOOT;
use tests::{Doing as _, Outcome};
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(20);
/// Clients at once.
const CLIENTS: usize = 4;

/// Clients that ask without a pause, half of them on a connection of their own
/// each time, until told to stop.
#[derive(Debug, Default)]
struct Traffic {
    answered: AtomicU64,
    over: AtomicBool,
}

impl Traffic {
    async fn client(self: Arc<Self>, url: String, keep: bool) -> Result<(), String> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(usize::from(keep))
            .timeout(Duration::from_secs(10))
            .build()
            .map_err(|error| error.to_string())?;
        while !self.over.load(Ordering::Relaxed) {
            // A client whose idle connection was closed under it tries again;
            // POST would not, but neither does Google's load balancer reuse
            // a connection that was closed.
            let answer = client.get(&url).send().await.map_err(|error| format!("{error:?}"))?;
            if answer.status().as_u16() != 200 {
                return Err(format!("status {}", answer.status()));
            }
            answer.bytes().await.map_err(|error| format!("{error:?}"))?;
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_and_agent_are_replaced_under_traffic_without_an_error() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    node.boot_to_serving().await?;
    node.settled(BOOT).await?;
    let before = node.holdings().await?;
    let traffic = Arc::<Traffic>::default();
    let url = node.url("/v1/_echo");
    let mut clients: JoinSet<_> =
        (0..CLIENTS).map(|n| Arc::clone(&traffic).client(url.clone(), n % 2 == 0)).collect();
    // Open all along: begun on the first edge, ended on it.
    let script = json!({ "events": 40, "interval_ms": 100 });
    let body = json!({ "response_mode": "streaming", "user": "upgrade", "standin": script });
    let stream = node.request("POST", "/v1/chat-messages").json(&body).send().await;
    let stream = stream.doing(|| "start a stream".into())?;

    node.start_edge("b")?;
    node.status_where("the second edge to serve", SOON, |status| {
        status.edges.iter().any(|edge| edge.instance == "b" && edge.state == EdgeState::Serving)
    })
    .await?;
    let ended = node.signal_edge("a", "USR1");
    let (ended, text) = tokio::join!(ended, stream.text());
    assert!(ended?.success(), "the first edge did not end well");
    let text = text.doing(|| "read the stream".into())?;
    assert_eq!(text.matches("\"event\":\"message\"").count(), 40, "{text}");
    assert!(text.contains("message_end"), "the stream was cut");

    assert!(node.signal_agent("USR1").await?.success());
    assert_eq!(node.health().await.map(|(code, _)| code), Ok(200));
    node.start_agent()?;
    node.settled(BOOT).await?;
    assert_eq!(node.holdings().await?, before, "something was recreated");
    let status = node.status().await.expect("answers");
    assert!(status.containers.iter().all(|container| container.restarts == 0), "{status:?}");

    traffic.over.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        assert_eq!(client.expect("no panic"), Ok(()));
    }
    assert!(traffic.answered.load(Ordering::Relaxed) > 100, "hardly any traffic");
    fleet.close(vec![node], &[]).await
}
