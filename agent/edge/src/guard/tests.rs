use super::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

fn guarded() -> (DuplexStream, Guard<DuplexStream>, Arc<Client>) {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let client = Arc::new(Client::new(SocketAddr::from(([127, 0, 0, 1], 9)), false));
    let guard = Guard::new(far, Arc::clone(&client), Timeouts::default());
    (near, guard, client)
}

async fn next(guard: &mut Guard<DuplexStream>) -> String {
    let mut buffer = vec![0; 64 * 1024];
    let count = guard.read(&mut buffer).await.expect("readable");
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

const ONE: &str = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n";
const TWO: &str = "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_pipelined_request_waits_for_the_one_before() {
    let (mut near, mut guard, client) = guarded();
    near.write_all(format!("{ONE}ab{TWO}").as_bytes()).await.expect("written");
    assert_eq!(next(&mut guard).await, format!("{ONE}ab"));
    let early = tokio::time::timeout(Duration::from_mins(1), next(&mut guard)).await;
    assert!(early.is_err(), "the second head passed while the first was busy");
    client.finished();
    assert_eq!(next(&mut guard).await, TWO);
}

#[tokio::test(start_paused = true)]
async fn a_refused_head_becomes_the_marked_request_and_nothing_else_passes() {
    let (mut near, mut guard, client) = guarded();
    let bad = "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    near.write_all(format!("{bad}{TWO}").as_bytes()).await.expect("written");
    assert_eq!(next(&mut guard).await.as_bytes(), MARKED);
    assert_eq!(client.refused(), Some(Violation::Host));
    client.finished();
    near.write_all(TWO.as_bytes()).await.expect("written");
    drop(near);
    assert_eq!(next(&mut guard).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_head_once_begun_has_ten_seconds_an_idle_connection_ten_minutes() {
    let (mut near, mut guard, client) = guarded();
    let begun = Instant::now();
    near.write_all(b"GET / HT").await.expect("written");
    assert_eq!(next(&mut guard).await.as_bytes(), MARKED);
    assert_eq!(client.refused(), Some(Violation::HeadTimeout));
    assert_eq!(begun.elapsed().as_secs(), 10);

    let (_near, mut guard, _client) = guarded();
    let begun = Instant::now();
    assert_eq!(next(&mut guard).await, "");
    assert!(begun.elapsed() >= Duration::from_secs(620), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_busy_connection_is_never_idle() {
    let (mut near, mut guard, _client) = guarded();
    near.write_all(TWO.as_bytes()).await.expect("written");
    assert_eq!(next(&mut guard).await, TWO);
    let hours = tokio::time::timeout(Duration::from_hours(2), next(&mut guard)).await;
    assert!(hours.is_err(), "a stream of two hours was cut");
}

#[tokio::test(start_paused = true)]
async fn heads_and_bodies_survive_any_cut() {
    let chunked =
        "POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let messages = [format!("{ONE}ab"), chunked.to_owned(), TWO.to_owned()];
    let stream = messages.concat();
    for step in [1, 2, 3, 7, 50, 1000] {
        let (mut near, mut guard, client) = guarded();
        for part in stream.as_bytes().chunks(step) {
            near.write_all(part).await.expect("written");
        }
        for message in &messages {
            let mut got = String::new();
            while got.len() < message.len() {
                got.push_str(&next(&mut guard).await);
            }
            assert_eq!(&got, message, "step {step}");
            client.finished();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bad_chunks_and_silent_bodies_are_read_errors() {
    let (mut near, mut guard, _client) = guarded();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    near.write_all(head.as_bytes()).await.expect("written");
    next(&mut guard).await;
    near.write_all(b"3\nabc\r\n").await.expect("written");
    let error = guard.read(&mut [0; 64]).await.expect_err("bare LF");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);

    let (mut near, mut guard, _client) = guarded();
    near.write_all(ONE.as_bytes()).await.expect("written");
    next(&mut guard).await;
    let error = guard.read(&mut [0; 64]).await.expect_err("silence");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
