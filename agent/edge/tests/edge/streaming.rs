//! Bodies pass as they come, in both directions, and ends are seen at once.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::bed::{Bed, Upstream, orders, spawn};

const SSE: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/// An event as one chunk.
pub(crate) fn event(text: &str) -> String {
    let event = format!("data: {text}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len())
}

#[tokio::test]
async fn an_event_arrives_before_the_upstream_goes_on() {
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let mut client = bed.client().await;
    client.get("/v1/chat-messages").await;
    let (mut call, _) = api.call().await;
    call.send(SSE).await;
    assert_eq!(client.head().await.field("content-type"), Some("text/event-stream"));
    // The upstream says the next word only when the client has heard the last.
    for index in 0..20 {
        call.send(&event(&index.to_string())).await;
        client.until(&format!("data: {index}\n\n")).await;
    }
    call.send("0\r\n\r\n").await;
    client.until("0\r\n\r\n").await;
    bed.stop().await;
}

#[tokio::test]
async fn an_upload_and_its_answer_stream_at_the_same_time() {
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let mut client = bed.client().await;
    client.send("POST /v1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let (mut call, head) = api.call().await;
    assert_eq!(head.field("transfer-encoding"), Some("chunked"));
    call.send(SSE).await;
    client.head().await;
    for index in 0..10 {
        client.send(&event(&format!("up {index}"))).await;
        call.until(&format!("data: up {index}\n\n")).await;
        call.send(&event(&format!("down {index}"))).await;
        client.until(&format!("data: down {index}\n\n")).await;
    }
    client.send("0\r\n\r\n").await;
    call.until("0\r\n\r\n").await;
    call.send("0\r\n\r\n").await;
    client.until("0\r\n\r\n").await;
    bed.stop().await;
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("a number")
}

#[tokio::test]
async fn a_large_upload_passes_at_flat_memory() {
    const MIB: usize = 1024 * 1024;
    const SIZE: usize = 256 * MIB;
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let mut client = bed.client().await;
    client
        .send(&format!("POST /files HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n"))
        .await;
    let (mut call, head) = api.call().await;
    assert_eq!(head.field("content-length"), Some(SIZE.to_string().as_str()));
    let before = resident_kib();
    let uploading = spawn(async move {
        let block = vec![7; MIB];
        for _ in 0..SIZE / MIB {
            client.send_bytes(&block).await;
        }
        client
    });
    let mut most = 0;
    for _ in 0..SIZE / MIB {
        assert!(call.exactly(MIB).await.iter().all(|byte| *byte == 7));
        most = most.max(resident_kib());
    }
    let grown = most.saturating_sub(before) / 1024;
    assert!(grown < 24, "memory grew by {grown} MiB");
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(uploading.await.expect("no panic").answer().await.body, "ok");
    bed.stop().await;
}

/// Writes until nothing is taken for a while; how much went.
async fn flood(stream: &mut tokio::net::TcpStream) -> usize {
    let block = vec![0; 64 * 1024];
    let mut sent = 0;
    loop {
        match tokio::time::timeout(Duration::from_secs(1), stream.write(&block)).await {
            Ok(written) => sent += written.expect("open"),
            Err(_) => return sent,
        }
        assert!(sent < 64 * 1024 * 1024, "nothing pushes back");
    }
}

#[tokio::test]
async fn who_does_not_read_is_not_buffered_for() {
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let length = 1_u64 << 40;
    // The upstream does not read.
    let mut client = bed.client().await;
    client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")).await;
    let (call, _) = api.call().await;
    flood(&mut client.stream).await;
    drop((client, call));
    // The client does not read.
    let mut client = bed.client().await;
    client.get("/").await;
    let (mut call, _) = api.call().await;
    call.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
    flood(&mut call.stream).await;
    assert_eq!(bed.get("/health").await.status(), 200, "others are served meanwhile");
    drop((client, call));
    bed.agent.report("both gone", |report| report.in_flight == 0).await;
    bed.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_the_upstream_along_at_once() {
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let soon = Duration::from_millis(500);
    // While the upstream thinks.
    let mut client = bed.client().await;
    client.get("/").await;
    let (mut call, _) = api.call().await;
    drop(client);
    call.ends_within(soon).await;
    // In a silent stream.
    let mut client = bed.client().await;
    client.get("/").await;
    let (mut call, _) = api.call().await;
    call.send(SSE).await;
    client.head().await;
    drop(client);
    call.ends_within(soon).await;
    // In the middle of an upload.
    let mut client = bed.client().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc").await;
    let (mut call, _) = api.call().await;
    call.until("abc").await;
    drop(client);
    call.ends_within(soon).await;
    bed.agent.report("nothing left", |report| report.in_flight == 0).await;
    bed.stop().await;
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_not_taken_for_a_clean_end() {
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let mut client = bed.client().await;
    client.get("/").await;
    let (mut call, _) = api.call().await;
    call.send(&format!("{SSE}{}", event("1"))).await;
    client.until("data: 1\n\n").await;
    drop(call);
    let rest = client.rest().await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a broken stream was closed as a whole one");
    bed.stop().await;
}

#[tokio::test]
async fn silence_within_a_body_has_a_bound() {
    let api = Upstream::new().await;
    let bed = Bed::with(orders(&api), &["--idle-timeout", "300ms"]).await;
    let mut client = bed.client().await;
    client.get("/").await;
    let (mut call, _) = api.call().await;
    call.send(SSE).await;
    client.head().await;
    client.ends_within(Duration::from_secs(5)).await;
    call.ends_within(Duration::from_secs(5)).await;
    bed.stop().await;
}
