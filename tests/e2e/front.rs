//! Through port 1080 to every part of Dify, and what user code cannot reach.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::fleet::{Fleet, Options};
use tests::node::{BOOT, Node, OFTEN};
use tests::wait::wait_for;
use tests::{Doing as _, Outcome};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn the_front_door_leads_to_every_part_of_dify() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    let mut document = node.document(&fleet);
    document["features"] = json!({ "collaboration": true });
    node.tell(&document)?;
    node.boot_to_serving().await?;
    node.settled(BOOT).await?;
    the_load_balancers_scheme_is_kept(&node).await;
    a_webhook_of_a_plugin_gets_its_public_url(&node).await;
    a_websocket_is_upgraded_and_echoes(&node).await?;
    a_streamed_workflow_is_run_by_the_worker(&fleet, &node).await?;
    a_file_goes_to_the_bucket_and_comes_back(&fleet, &node).await;
    plugins_and_vectors_are_wired(&node).await;
    code_in_the_sandbox_reaches_nobody(&fleet, &node).await?;
    an_init_password_guards_the_first_setup(&fleet, &node).await?;
    fleet.close(vec![node], &[]).await
}

async fn the_load_balancers_scheme_is_kept(node: &Node) {
    let sent = node.request("GET", "/v1/_echo").header("x-forwarded-proto", "https").send().await;
    let echoed: Value = sent.expect("answers").json().await.expect("JSON");
    assert_eq!(echoed["headers"]["x-forwarded-proto"], "https", "{echoed}");
}

async fn a_webhook_of_a_plugin_gets_its_public_url(node: &Node) {
    let sent = node.request("POST", "/e/hook-1/path?x=1").header("x-forwarded-proto", "https");
    let sent = sent.header("host", "dify.example.com").send().await;
    let echoed: Value = sent.expect("answers").json().await.expect("JSON");
    assert_eq!(echoed["service"], "plugin_daemon", "{echoed}");
    let url = echoed["hook_url"].as_str().unwrap_or_default();
    assert!(url.starts_with("https://dify.example.com/e/hook-1/path"), "{echoed}");
}

async fn a_websocket_is_upgraded_and_echoes(node: &Node) -> Outcome {
    let mut stream = TcpStream::connect(node.front).await.doing(|| "connect".into())?;
    let head = "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nhost: dify.example.com\r\n\
                connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    // "hi", masked with zeros (RFC 6455, 5.2).
    let frame = [0x81, 0x82, 0, 0, 0, 0, b'h', b'i'];
    let talk = async {
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await?);
        }
        stream.write_all(&frame).await?;
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await?;
        Ok::<_, std::io::Error>((String::from_utf8_lossy(&answer).into_owned(), echo))
    };
    let (answer, echo) =
        timeout(SOON, talk).await.doing(|| "talk".into())?.doing(|| "talk".into())?;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    // The accept value of RFC 6455's own example key.
    assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
    assert_eq!(echo, [0x81, 2, b'h', b'i']);
    Ok(())
}

async fn a_streamed_workflow_is_run_by_the_worker(fleet: &Fleet, node: &Node) -> Outcome {
    let script = json!({ "events": 4, "interval_ms": 50 });
    let body = json!({ "response_mode": "streaming", "user": "front", "standin": script });
    let sent = node.request("POST", "/v1/workflows/run").json(&body).send().await;
    let text = sent.expect("answers").text().await.expect("a stream to its end");
    let last = text.trim_end().rsplit("\n\n").next().unwrap_or_default();
    assert!(last.contains("workflow_finished") && last.contains("succeeded"), "{text}");
    let done = "SELECT count(*) FROM workflow_runs WHERE status = 'succeeded'";
    assert_eq!(fleet.bed.main.number(&fleet.role, done).await?, 1);
    let worker = node.container("worker").await?;
    let said = fleet.engine.logs(&worker.id).await?;
    assert!(said.contains("workflow_based_app_execution_task"), "{said}");
    Ok(())
}

async fn a_file_goes_to_the_bucket_and_comes_back(fleet: &Fleet, node: &Node) {
    let content = "nothing is lost ".repeat(20_000);
    let sent = node.request("POST", "/v1/files/upload").body(content.clone()).send().await;
    let made: Value = sent.expect("answers").json().await.expect("JSON");
    assert_eq!(made["size"], content.len(), "{made}");
    let id = made["id"].as_str().expect("an id");
    let stored = fleet.sim.storage().get(&fleet.bucket, &format!("upload_files/{id}"));
    assert!(stored.is_some(), "not in the bucket");
    let got = node.get(&format!("/files/{id}")).await.expect("answers").text().await;
    assert!(got.expect("a body") == content, "came back changed");
}

async fn plugins_and_vectors_are_wired(node: &Node) {
    let (code, plugins) =
        node.get_json("/v1/_plugin").await.expect("the api reaches the plugin daemon");
    assert_eq!((code, &plugins["inner_status"]), (200, &json!(200)), "{plugins}");
    let document = json!({ "collection": "front", "vector": [1.0, 2.0, 3.0], "text": "found" });
    let (code, nearest) = node.post("/v1/_vector", &document).await.expect("answers");
    assert_eq!((code, &nearest["nearest"]), (200, &json!("found")), "{nearest}");
    // The daemon's way back is not for the public.
    assert_eq!(node.get("/inner/api/x").await.expect("answers").status().as_u16(), 404);
}

/// What one line of code in the sandbox printed.
async fn sandboxed(node: &Node, line: String) -> Result<String, String> {
    let (code, body) = node.post("/v1/_code", &json!({ "code": line })).await?;
    let printed = body["data"]["stdout"].as_str().unwrap_or_default().trim().to_owned();
    if code == 200 { Ok(printed) } else { Err(format!("{code} {body}")) }
}

async fn code_in_the_sandbox_reaches_nobody(fleet: &Fleet, node: &Node) -> Outcome {
    // Not vacuous: the sandbox runs code, and reaches the proxy that it must.
    let proxy = sandboxed(node, "connect ssrf_proxy 3128".into()).await.expect("runs");
    assert!(proxy.starts_with("connected"), "{proxy}");
    let host = fleet.host();
    let mut targets = vec![
        ("the metadata server".to_owned(), "169.254.169.254".to_owned(), 80),
        ("the database".into(), host.to_string(), fleet.links.main.port()),
        ("the vector database".into(), host.to_string(), fleet.links.vector.port()),
        ("Redis".into(), host.to_string(), fleet.links.redis.port()),
    ];
    if let Some((address, port)) = node.instance.metadata_host().rsplit_once(':') {
        let port = port.parse().expect("a port");
        targets.push(("this VM's metadata server".into(), address.into(), port));
    }
    for (service, port) in [("api", 5001), ("plugin_daemon", 5002), ("web", 3000)] {
        for address in node.addresses(service).await? {
            targets.push((service.to_owned(), address, port));
        }
    }
    let tried = targets.iter().map(async |(what, address, port)| {
        let printed = sandboxed(node, format!("connect {address} {port}")).await.expect("runs");
        assert!(printed.starts_with("failed"), "code in the sandbox reached {what}: {printed}");
        let proxied = sandboxed(node, format!("get http://{address}:{port}/")).await.expect("runs");
        assert!(proxied.starts_with("403"), "through the proxy to {what}: {proxied}");
    });
    join_all(tried).await;
    // The HTTP Request node of a workflow goes by the same proxy.
    let url = format!("/v1/_http?url=http://{host}:{}/", fleet.links.main.port());
    let (_, answer) = node.get_json(&url).await.expect("answers");
    assert_eq!((&answer["status"], &answer["proxied"]), (&json!(403), &json!(true)), "{answer}");
    Ok(())
}

async fn an_init_password_guards_the_first_setup(fleet: &Fleet, node: &Node) -> Outcome {
    let owner = json!({ "email": "a@example.com", "name": "a", "password": "one2three4" });
    let (code, body) = node.post("/console/api/setup", &owner).await.expect("answers");
    assert_eq!((code, &body["code"]), (401, &json!("not_init_validated")), "{body}");
    let password = json!({ "password": fleet.secrets.get("init_password") });
    let sent = node.request("POST", "/console/api/init").json(&password).send().await;
    let answer = sent.doing(|| "give the init password".into())?;
    assert_eq!(answer.status().as_u16(), 201);
    let cookie = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
    assert!(cookie.contains("Secure"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap_or_default();
    let sent = node.request("POST", "/console/api/setup").header("cookie", cookie).json(&owner);
    let answer = sent.send().await.doing(|| "set up".into())?;
    assert_eq!(answer.status().as_u16(), 201);
    let noticed = node.status_where("setup to be seen finished", SOON, |status| {
        !status.findings.iter().any(|finding| finding.code == "setup-not-finished")
    });
    noticed.await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_is_locked_without_an_init_password_until_it_is_finished() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    let mut document = node.document(&fleet);
    document["secrets"].as_object_mut().expect("a map").remove("init_password");
    node.tell(&document)?;
    node.boot_to_serving().await?;
    for path in ["/install", "/console/api/setup", "/console/api/init", "/init"] {
        assert_eq!(node.get(path).await.expect("answers").status().as_u16(), 403, "{path}");
    }
    assert_eq!(node.get("/apps").await.expect("answers").status().as_u16(), 200);
    node.status_where("the finding", SOON, |status| {
        status.findings.iter().any(|finding| finding.code == "setup-not-finished")
    })
    .await?;
    // Somebody with access to the VM finishes it past the front door.
    let address = node.addresses("api").await?.pop().unwrap_or_default();
    let owner = json!({ "email": "a@example.com", "name": "a", "password": "one2three4" });
    let client = reqwest::Client::builder().no_proxy().build().doing(|| "make a client".into())?;
    let url = format!("http://{address}:5001/console/api/setup");
    let answer = client.post(url).json(&owner).send().await.doing(|| "set up".into())?;
    assert_eq!(answer.status().as_u16(), 201);
    wait_for("the lock to open", OFTEN, SOON, async || {
        match node.get("/console/api/setup").await?.status().as_u16() {
            200 => Ok(()),
            code => Err(code.to_string()),
        }
    })
    .await?;
    fleet.close(vec![node], &[]).await
}
