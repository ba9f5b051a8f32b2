//! Where requests go, and how they look when they arrive.

use std::time::Duration;

use crate::bed::{Bed, Upstream, nothing, orders, refusal, route};

#[tokio::test]
async fn routes_refusals_and_own_answers() {
    let (api, web) = (Upstream::new().await, Upstream::new().await);
    let mut wanted = nothing();
    wanted.upstreams.insert("api".to_owned(), api.spec());
    wanted.upstreams.insert("web".to_owned(), web.spec());
    wanted.routes = vec![route("/", "web"), route("/v1", "api"), route("/socket.io/", "absent")];
    wanted.refusals = vec![refusal("/console/api/setup", 403)];
    let bed = Bed::new(wanted).await;
    for (path, upstream) in [("/v1/chat-messages?x=%2e%2e", &api), ("/v1x", &api), ("/apps", &web)]
    {
        let mut client = bed.client().await;
        client.get(path).await;
        let (mut call, head) = upstream.call().await;
        assert_eq!(head.first(), format!("GET {path} HTTP/1.1"));
        assert_eq!(head.field("connection"), Some("close"));
        call.send("HTTP/1.1 201 Made\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
        let answer = client.answer().await;
        assert_eq!((answer.status(), answer.body.as_str(), answer.kind()), (201, "ok", ""));
        assert_eq!(answer.head.field("connection"), None, "the upstream's hop leaked");
    }
    for (path, status, kind) in [
        ("/console/api/setup", 403, "refused"),
        ("/inner/api/x", 404, "refused"),
        ("/v1/%2e%2e/x", 400, "ambiguous-path"),
        ("/socket.io/", 503, "no-upstream"),
    ] {
        let answer = bed.get(path).await;
        assert_eq!((answer.status(), answer.kind()), (status, kind), "{path}");
        assert!(answer.json()["message"].is_string());
    }
    let report = bed.agent.report("the numbers", |report| report.requests == 3).await;
    assert_eq!((report.own_answers, report.in_flight), (4, 0));
    assert_eq!(report.listen, Some(bed.address));
    bed.stop().await;
}

#[tokio::test]
async fn forwarding_headers_arrive_as_behind_a_load_balancer() {
    let api = Upstream::new().await;
    let mut wanted = orders(&api);
    wanted.routes[0].hook_url = true;
    let bed = Bed::new(wanted).await;
    let mut client = bed.client().await;
    client
        .send(
            "GET /e/hook?a=1 HTTP/1.1\r\nHost: dify.example\r\nConnection: close, X-Forwarded-Proto\r\n\
             X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nX_Forwarded_For: 6.6.6.6\r\n\
             Dify-Hook-Url: http://evil/\r\nAuthorization: Bearer app-x\r\n\r\n",
        )
        .await;
    let (mut call, head) = api.call().await;
    for (name, value) in [
        ("host", Some("dify.example")),
        ("x-forwarded-for", Some("203.0.113.9, 127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("dify.example")),
        ("dify-hook-url", Some("http://dify.example/e/hook?a=1")),
        ("authorization", Some("Bearer app-x")),
        ("x_forwarded_for", None),
    ] {
        assert_eq!(head.field(name), value, "{name}");
    }
    call.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 204);
    bed.stop().await;
}

#[tokio::test]
async fn a_pooled_connection_serves_again_and_a_dead_one_is_not_noticed() {
    let web = Upstream::new().await;
    let mut wanted = orders(&web);
    wanted.upstreams.get_mut("api").expect("it is there").pooled = true;
    let bed = Bed::with(wanted, &["--threads", "1"]).await;
    let mut client = bed.client().await;
    client.get("/1").await;
    let (mut call, head) = web.call().await;
    assert_eq!(head.field("connection"), None);
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1").await;
    assert_eq!(client.answer().await.body, "1");
    client.get("/2").await;
    assert_eq!(call.head().await.first(), "GET /2 HTTP/1.1", "on the same connection");
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2").await;
    assert_eq!(client.answer().await.body, "2");
    // Now it dies with the request in its hands: asked again, elsewhere.
    client.get("/3").await;
    assert_eq!(call.head().await.first(), "GET /3 HTTP/1.1");
    drop(call);
    let (mut call, head) = web.call().await;
    assert_eq!(head.first(), "GET /3 HTTP/1.1");
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n3").await;
    assert_eq!(client.answer().await.body, "3");
    // What is not safe to repeat is not repeated.
    client.send("POST /4 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab").await;
    assert_eq!(call.head().await.first(), "POST /4 HTTP/1.1");
    call.exactly(2).await;
    drop(call);
    let answer = client.answer().await;
    assert_eq!((answer.status(), answer.kind()), (502, "upstream-closed"));
    web.assert_untouched().await;
    bed.stop().await;
}

#[tokio::test]
async fn failures_of_the_upstream_have_their_names() {
    let api = Upstream::new().await;
    let bed = Bed::with(orders(&api), &["--response-timeout", "300ms"]).await;
    let asked = |answer: &'static str| {
        let (bed, api) = (&bed, &api);
        async move {
            let mut client = bed.client().await;
            client.get("/x").await;
            let (mut call, _) = api.call().await;
            call.send(answer).await;
            if answer.is_empty() {
                return client.answer().await;
            }
            drop(call);
            client.answer().await
        }
    };
    let answer = asked("SSH-2.0-OpenSSH_9.2\r\n\r\n").await;
    assert_eq!((answer.status(), answer.kind()), (502, "upstream-protocol"));
    let answer = asked("HTTP/1.1 200").await;
    assert_eq!((answer.status(), answer.kind()), (502, "upstream-closed"));
    let answer = asked("").await;
    assert_eq!((answer.status(), answer.kind()), (504, "upstream-head-timeout"));
    let answer = asked("HTTP/1.1 101 Sure\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").await;
    assert_eq!((answer.status(), answer.kind()), (502, "upstream-protocol"));
    drop(api);
    let answer = bed.get("/x").await;
    assert_eq!((answer.status(), answer.kind()), (502, "upstream-connect"));
    bed.stop().await;
}

#[tokio::test]
async fn a_full_upstream_queues_shortly_and_then_says_so() {
    let api = Upstream::new().await;
    let mut wanted = orders(&api);
    wanted.upstreams.get_mut("api").expect("it is there").max_in_flight = 1;
    let bed = Bed::new(wanted).await;
    let mut first = bed.client().await;
    first.get("/1").await;
    let (mut call, _) = api.call().await;
    // One is served, sixteen wait, the next is turned away at once.
    let mut waiting = Vec::new();
    for _ in 0..16 {
        let mut client = bed.client().await;
        client.get("/wait").await;
        waiting.push(client);
    }
    bed.agent.report("all in flight", |report| report.in_flight == 17).await;
    let answer = bed.get("/2").await;
    assert_eq!((answer.status(), answer.kind()), (503, "overloaded"));
    assert_eq!(answer.head.field("retry-after"), Some("1"));
    assert_eq!(bed.get("/health").await.status(), 200, "health needs no slot");
    let report = bed.agent.report("the numbers", |report| report.in_flight == 17).await;
    assert_eq!(report.by_upstream["api"], 1);
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1").await;
    assert_eq!(first.answer().await.body, "1");
    let (mut call, head) = api.call().await;
    assert_eq!(head.first(), "GET /wait HTTP/1.1");
    drop(waiting);
    call.ends_within(Duration::from_secs(5)).await;
    bed.agent.report("nothing left", |report| report.in_flight == 0).await;
    bed.stop().await;
}

#[tokio::test]
async fn a_swap_of_containers_lets_the_old_one_finish() {
    let (old, new) = (Upstream::new().await, Upstream::new().await);
    let bed = Bed::new(orders(&old)).await;
    let mut stream = bed.client().await;
    stream.get("/stream").await;
    let (mut call, _) = old.call().await;
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab").await;
    stream.until("ab").await;
    let address = new.address;
    bed.agent
        .order(|orders| {
            orders.upstreams.get_mut("api").expect("it is there").address = address;
        })
        .await;
    new.echo();
    assert_eq!(bed.get("/now").await.status(), 200);
    call.send("cd").await;
    assert_eq!(stream.exactly(2).await, b"cd");
    bed.stop().await;
}

#[tokio::test]
async fn one_connection_carries_many_requests_also_pipelined() {
    let bed = Bed::new(orders(&Upstream::new().await)).await;
    let echo = Upstream::new().await;
    let address = echo.echo();
    bed.agent
        .order(|orders| {
            orders.upstreams.get_mut("api").expect("it is there").address = address;
        })
        .await;
    let mut client = bed.client().await;
    let mut sender = String::new();
    for index in 0..50 {
        use std::fmt::Write;
        write!(sender, "GET /{index} HTTP/1.1\r\nHost: a\r\n\r\n").expect("memory");
    }
    client.send(&sender).await;
    for index in 0..50 {
        let answer = client.answer().await;
        assert!(answer.body.starts_with(&format!("GET /{index} ")), "{}", answer.body);
    }
    bed.stop().await;
}
