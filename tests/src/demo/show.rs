//! What there is to see at a VM that serves.

use std::time::Duration;

use ::tests::node::OFTEN;
use ::tests::wait::wait_for;
use ::tests::{Broken, Doing as _, Outcome};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::screen::{Screen, Tone, seconds};
use super::vm::Vm;

/// Beat counts as ready 10 s after it started, and starts last.
const ALL_READY: Duration = Duration::from_mins(1);
/// Starts of one container after which no more is hoped for.
const MANY: u32 = 3;
/// A chat of six words takes two seconds.
const CHAT: Duration = Duration::from_secs(30);

/// `dify-agent VERB`, as an operator on the VM sees it.
pub(crate) async fn verb(screen: &Screen, vm: &Vm, verb: &str) -> Outcome {
    screen.command(&format!("dify-agent {verb}"));
    let (status, printed) = vm.node.run_verb(&[verb]).await?;
    screen.printed(&printed);
    if status.success() {
        Ok(())
    } else {
        Err(Broken::new(format!("dify-agent {verb} ended with {status}")))
    }
}

/// `dify-agent check`. That this machine is small for Dify's own images is
/// said, and is no failure of a demo with others.
pub(crate) async fn check(screen: &Screen, vm: &Vm) -> Outcome {
    let Err(failed) = verb(screen, vm, "check").await else { return Ok(()) };
    let (_, printed) = vm.node.run_verb(&["check", "--json"]).await?;
    let lines: Vec<Value> = serde_json::from_str(&printed).unwrap_or_default();
    let mut bad = lines.iter().filter(|line| line["verdict"] == "fail").peekable();
    if bad.peek().is_some() && bad.all(|line| line["group"] == "machine") {
        let note = "This machine is small for Dify's own images; the stand-ins need less.";
        screen.line(format!("  {}", screen.paint(Tone::Quiet, note)));
        return Ok(());
    }
    Err(failed)
}

/// Waits for what serving does not wait for, beat above all; an error names
/// what does not come up.
pub(crate) async fn all_ready(screen: &Screen, vm: &Vm) -> Outcome {
    let moving = screen.moving("the rest of the containers");
    let settled = wait_for("every container to be ready", OFTEN, ALL_READY, async || {
        let status = vm.node.status().await?;
        let away: Vec<_> = status.containers.iter().filter(|one| !one.ready).collect();
        let named = away.iter().map(|one| {
            let detail = one.detail.as_deref().unwrap_or(&one.state);
            format!("{} ({detail})", one.service)
        });
        let named = named.collect::<Vec<_>>().join(", ");
        moving.set(format!("not ready yet: {named}"));
        match away.first() {
            None => Ok(None),
            Some(_) if away.iter().all(|one| one.restarts >= MANY) => Ok(Some(named)),
            Some(_) => Err(named),
        }
    });
    match settled.await? {
        None => Ok(()),
        Some(named) => Err(Broken::new(format!("started {MANY} times again in vain: {named}"))),
    }
}

/// Both questions of the load balancer, and their answers.
pub(crate) async fn health(screen: &Screen, vm: &Vm) -> Outcome {
    let answers = [
        ("/health", "take traffic?", vm.node.health().await),
        ("/health/live", "leave it alone?", vm.node.live().await),
    ];
    for (path, question, answer) in answers {
        let (code, body) = answer.map_err(Broken::new)?;
        screen.command(&format!("curl {}", vm.node.url(path)));
        let tone = if code == 200 { Tone::Good } else { Tone::Bad };
        let (code_text, question) =
            (screen.paint(tone, &code.to_string()), screen.paint(Tone::Quiet, question));
        screen.line(format!("  {code_text}  {question}"));
        let pretty = serde_json::to_string_pretty(&body).doing(|| "print JSON".into())?;
        pretty.lines().for_each(|line| screen.line(format!("  {line}")));
        if code != 200 {
            return Err(Broken::new(format!("{path} answered {code}")));
        }
    }
    Ok(())
}

/// One streamed chat, each event when it arrives.
pub(crate) async fn chat(screen: &Screen, vm: &Vm) -> Outcome {
    let url = vm.node.url("/v1/chat-messages");
    screen.command(&format!("curl -N {url} ..."));
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(CHAT)
        .build()
        .doing(|| "make a client".into())?;
    let script = json!({ "events": 6, "interval_ms": 300 });
    let body = json!({
        "inputs": {}, "query": "hello", "response_mode": "streaming", "user": "demo", "standin": script,
    });
    let began = Instant::now();
    let sent = client.post(url).bearer_auth("app-standin").json(&body).send().await;
    let answer = sent.and_then(reqwest::Response::error_for_status).doing(|| "chat".into())?;
    let mut chunks = answer.bytes_stream();
    let mut text = String::new();
    let mut last = String::new();
    while let Some(chunk) = chunks.next().await {
        text.push_str(&String::from_utf8_lossy(&chunk.doing(|| "read the chat".into())?));
        while let Some(end) = text.find("\n\n") {
            let event: String = text.drain(..end + 2).collect();
            let event = event.trim_end();
            screen.line(format!("  {}  {}", seconds(began.elapsed()), summary(event)));
            event.clone_into(&mut last);
        }
    }
    if last.contains("message_end") {
        Ok(())
    } else {
        Err(Broken::new(format!("the chat ended early, with {last:?}")))
    }
}

/// Dify's first page.
pub(crate) async fn install_page(screen: &Screen, vm: &Vm) -> Outcome {
    screen.command(&format!("curl {}", vm.node.url("/install")));
    let answer = vm.node.get("/install").await.map_err(Broken::new)?;
    let status = answer.status();
    let page = answer.text().await.doing(|| "read /install".into())?;
    let title = title(&page).unwrap_or("(no title)");
    screen.line(format!("  {status}, {} bytes of HTML, titled: {title}", page.len()));
    if status.as_u16() == 200 {
        Ok(())
    } else {
        Err(Broken::new(format!("/install answered {status}")))
    }
}

/// An event without what stands in each of them.
fn summary(event: &str) -> String {
    let data = event.strip_prefix("data: ");
    let Some(mut data) = data.and_then(|data| serde_json::from_str::<Value>(data).ok()) else {
        return event.to_owned();
    };
    if let Some(members) = data.as_object_mut() {
        members.retain(|name, value| name != "message_id" && value != "");
    }
    format!("data: {data}")
}

fn title(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once("<title")?;
    let (_, rest) = rest.split_once('>')?;
    rest.split_once("</title>").map(|(title, _)| title.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_found_with_and_without_attributes() {
        assert_eq!(title("<head><title>Dify</title>"), Some("Dify"));
        assert_eq!(title("<title data-x=\"1\"> Dify \n</title>"), Some("Dify"));
        assert_eq!(title("<h1>Dify</h1>"), None);
    }

    #[test]
    fn an_event_is_shown_by_what_tells_it_from_others() {
        let event = r#"data: {"event":"message","message_id":"1","seq":2,"padding":""}"#;
        assert_eq!(summary(event), r#"data: {"event":"message","seq":2}"#);
        assert_eq!(summary("event: ping"), "event: ping");
    }
}
