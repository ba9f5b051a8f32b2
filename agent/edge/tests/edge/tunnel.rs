//! Upgrades: WebSocket and anything else, only after the upstream's 101.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::bed::{Bed, Upstream, Wire, drain, orders};

const ASK: &str = "GET /socket.io/?transport=websocket HTTP/1.1\r\nHost: a\r\n\
                   Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

async fn tunnel(bed: &Bed, api: &Upstream) -> (Wire, Wire) {
    let mut client = bed.client().await;
    client.send(ASK).await;
    let (mut call, head) = api.call().await;
    assert_eq!(head.field("upgrade"), Some("websocket"));
    assert_eq!(head.field("connection"), Some("upgrade"));
    // The server's first frame comes in the same packet as its 101.
    call.send(&format!("{SWITCH}\u{1}\u{2}hi")).await;
    let head = client.head().await;
    assert_eq!((head.status(), head.field("upgrade")), (101, Some("websocket")));
    assert_eq!(client.exactly(4).await, b"\x01\x02hi");
    (client, call)
}

#[tokio::test]
async fn bytes_pass_both_ways_until_both_sides_end() {
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let (mut client, mut call) = tunnel(&bed, &api).await;
    let report = bed.agent.report("the tunnel", |report| report.upgraded == 1).await;
    assert_eq!(report.in_flight, 1);
    let block: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    for _ in 0..10 {
        client.send_bytes(&block).await;
        assert!(call.exactly(block.len()).await == block, "bytes changed on the way up");
        call.send_bytes(&block).await;
        assert!(client.exactly(block.len()).await == block, "bytes changed on the way down");
    }
    // A half-close passes on and leaves the other direction open.
    client.stream.shutdown().await.expect("open");
    assert_eq!(call.rest().await, b"");
    call.send("bye").await;
    drop(call);
    assert_eq!(client.rest().await, b"bye");
    bed.agent.report("nothing left", |report| report.in_flight + report.upgraded == 0).await;
    bed.stop().await;
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let mut client = bed.client().await;
    // Bytes sent ahead of the answer must not reach the upstream as a tunnel.
    client.send(&format!("{ASK}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    let (mut call, _) = api.call().await;
    call.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno").await;
    let answer = client.answer().await;
    assert_eq!((answer.status(), answer.body.as_str()), (400, "no"));
    let (mut call, head) = api.call().await;
    assert_eq!(head.first(), "GET /smuggled HTTP/1.1", "it is the next request, on its own");
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 200);
    bed.stop().await;
}

#[tokio::test]
async fn a_silent_tunnel_ends_at_the_idle_bound() {
    let api = Upstream::new().await;
    let bed = Bed::with(orders(&api), &["--idle-timeout", "300ms"]).await;
    let (mut client, mut call) = tunnel(&bed, &api).await;
    client.ends_within(Duration::from_secs(5)).await;
    call.ends_within(Duration::from_secs(5)).await;
    bed.stop().await;
}

#[tokio::test]
async fn a_drain_says_goodbye_to_a_websocket_between_two_frames() {
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let (mut between, _call) = tunnel(&bed, &api).await;
    let (mut within, mut torn) = tunnel(&bed, &api).await;
    // Half a frame: seven bytes announced, two sent.
    torn.send_bytes(b"\x82\x07ab").await;
    assert_eq!(within.exactly(4).await, b"\x82\x07ab");
    bed.agent.order(|orders| orders.drain = Some(drain(0, 200))).await;
    assert_eq!(between.rest().await, [0x88, 2, 0x03, 0xe9]);
    assert_eq!(within.rest().await, b"", "a close frame inside another frame");
    bed.agent.report("drained", |report| report.in_flight == 0).await;
    bed.stop().await;
}
