//! Requests that must not be forwarded, byte for byte, in front of an upstream
//! that is never touched.

use std::time::Duration;

use crate::bed::{Bed, Upstream, orders};

#[tokio::test]
async fn ambiguous_requests_are_refused_before_the_upstream_is_contacted() {
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let body = "\r\n5\r\nhello\r\n0\r\n\r\n";
    for (request, status, kind) in [
        (
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n{body}"
            ),
            400,
            "bad-transfer-encoding",
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n{body}"
            ),
            400,
            "bad-transfer-encoding",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx"
                .to_owned(),
            400,
            "bad-content-length",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx".to_owned(),
            400,
            "bad-content-length",
        ),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "bad-host"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(), 400, "bad-host"),
        ("GET http://other/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400, "bad-host"),
        ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), 400, "bad-line-end"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n".to_owned(), 400, "bad-header"),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n".to_owned(), 400, "bad-header"),
        ("CONNECT db:5432 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400, "method-refused"),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400, "method-refused"),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n".to_owned(), 505, "bad-version"),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(40_000)),
            431,
            "head-too-large",
        ),
        (
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(20_000)),
            414,
            "target-too-long",
        ),
        (
            "GET /api/..%2f..%2finner/api HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            400,
            "ambiguous-path",
        ),
    ] {
        let mut client = bed.client().await;
        client.send(&request).await;
        let answer = client.answer().await;
        assert_eq!((answer.status(), answer.kind()), (status, kind), "{request:.200?}");
        assert_eq!(answer.head.field("connection"), Some("close"));
        client.ends_within(Duration::from_secs(5)).await;
    }
    api.assert_untouched().await;
    bed.stop().await;
}

#[tokio::test]
async fn loose_chunks_never_reach_the_upstream_as_a_whole_body() {
    let api = Upstream::new().await;
    let bed = Bed::new(orders(&api)).await;
    let mut client = bed.client().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let (mut call, _) = api.call().await;
    client.send("5\nhello\r\n0\r\n\r\n").await;
    let seen = call.rest().await;
    assert!(!seen.ends_with(b"0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&seen));
    let answer = client.answer().await;
    assert_eq!((answer.status(), answer.kind()), (400, "client-body"));
    bed.stop().await;
}

#[tokio::test]
async fn a_half_sent_head_is_cut_and_an_idle_connection_is_not() {
    let api = Upstream::new().await;
    let bed = Bed::with(orders(&api), &["--head-timeout", "300ms"]).await;
    let mut idle = bed.client().await;
    idle.get("/health").await;
    idle.answer().await;
    let mut slow = bed.client().await;
    slow.send("GET / HTTP/1.1\r\nHo").await;
    let answer = slow.answer().await;
    assert_eq!((answer.status(), answer.kind()), (408, "head-timeout"));
    slow.ends_within(Duration::from_secs(5)).await;
    idle.get("/health").await;
    assert_eq!(idle.answer().await.status(), 200);
    api.assert_untouched().await;
    bed.stop().await;
}
