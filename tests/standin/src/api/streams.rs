//! Server-sent events: chat runs in the api process, workflows run in a worker.
//!
//! Tests steer a run by the member `standin` of the request body, see [`Script`].

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::server::App;
use crate::failure::Failure;
use crate::http::{Answer, event_stream, internal_error, json, read_json};
use crate::{celery, log, tasks, worker};

/// What the run should do.
struct Script {
    /// `events`: numbered messages, 3 by default.
    events: u64,
    /// `interval_ms` between them, 100 by default.
    interval: Duration,
    /// `bytes` of padding in each, 0 by default.
    bytes: usize,
    /// `ping_ms`, 10,000 by default: a ping goes out whenever that much time has passed.
    ping: Duration,
    /// `silence_ms`, 300,000 by default: a workflow stream without events is closed after it.
    silence: Duration,
    /// `hold_after` and `hold`: after that event wait for `POST /v1/_release?hold=NAME`.
    hold: Option<(u64, String)>,
    /// `break_after`: end the connection without `message_end` after that event.
    break_after: Option<u64>,
}

impl Script {
    fn read(body: &Value) -> Self {
        let script = &body["standin"];
        let number = |name: &str, default: u64| script[name].as_u64().unwrap_or(default);
        Self {
            events: number("events", 3),
            interval: Duration::from_millis(number("interval_ms", 100)),
            bytes: usize::try_from(number("bytes", 0)).unwrap_or(0),
            ping: Duration::from_millis(number("ping_ms", 10_000)),
            silence: Duration::from_millis(number("silence_ms", 300_000)),
            hold: script["hold"].as_str().map(|name| (number("hold_after", 1), name.to_owned())),
            break_after: script["break_after"].as_u64(),
        }
    }
}

/// `POST /v1/chat-messages`.
pub(super) async fn chat(app: &Arc<App>, request: Request<Incoming>) -> Answer {
    let body = read_json(request.into_body()).await;
    let script = Script::read(&body);
    let message = celery::uuid();
    if body["response_mode"] != "streaming" {
        tokio::time::sleep(script.interval * u32::try_from(script.events).unwrap_or(u32::MAX))
            .await;
        return json(
            200,
            &json!({"event": "message", "message_id": message, "answer": "stand-in", "host": app.env().or("HOSTNAME", "")}),
        );
    }
    let (events, receiver) = mpsc::channel(4);
    let app = Arc::clone(app);
    tasks::spawn(async move {
        // Ends early when the client has gone: then nobody receives.
        let _client_gone = tell(&app, &script, &message, &events).await;
    });
    event_stream(receiver)
}

async fn tell(
    app: &App,
    script: &Script,
    message: &str,
    events: &mpsc::Sender<String>,
) -> Result<(), mpsc::error::SendError<String>> {
    events.send("event: ping\n\n".to_owned()).await?;
    let mut last_ping = Instant::now();
    let padding = "x".repeat(script.bytes);
    for seq in 1..=script.events {
        let due = Instant::now() + script.interval;
        while Instant::now() < due {
            let ping = last_ping + script.ping;
            tokio::select! {
                () = tokio::time::sleep_until(due.min(ping)) => {}
                () = events.closed() => return Ok(()),
            }
            if Instant::now() >= ping {
                events.send("event: ping\n\n".to_owned()).await?;
                last_ping = Instant::now();
            }
        }
        let event = json!({"event": "message", "message_id": message, "seq": seq, "answer": format!("word {seq}"), "padding": padding});
        events.send(data(&event)).await?;
        if let Some((after, name)) = &script.hold
            && *after == seq
        {
            let released = app.hold(name);
            tokio::select! {
                () = released.cancelled() => {}
                () = events.closed() => return Ok(()),
            }
        }
        if script.break_after == Some(seq) {
            return Ok(());
        }
    }
    events
        .send(data(
            &json!({"event": "message_end", "message_id": message, "seq": script.events + 1}),
        ))
        .await
}

fn data(event: &Value) -> String {
    format!("data: {event}\n\n")
}

/// `POST /v1/workflows/run`: enqueues for a worker and relays its events.
pub(super) async fn workflow(app: &Arc<App>, request: Request<Incoming>) -> Answer {
    let body = read_json(request.into_body()).await;
    let script = Script::read(&body);
    let run = celery::uuid();
    if body["response_mode"] != "streaming" {
        tokio::time::sleep(script.interval * u32::try_from(script.events).unwrap_or(u32::MAX))
            .await;
        return json(
            200,
            &json!({"workflow_run_id": run, "data": {"status": "succeeded"}, "host": app.env().or("HOSTNAME", "")}),
        );
    }
    let settings = &app.settings;
    let key = settings.bus.key("workflow", &run);
    // Subscribed before the task exists; a bus that cannot be reached is only logged.
    let reader = match settings.bus.reader(key).await {
        Ok(reader) => Some(reader),
        Err(failure) => {
            log::error("streams_channel.py:88", &format!("event bus: {failure}"));
            None
        }
    };
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let kwargs = json!({
        "run_id": run, "mode": "workflow", "events": script.events, "interval_ms": millis(script.interval), "ping_ms": millis(script.ping),
    });
    if let Err(failure) = settings.broker.enqueue(celery::RUNS, worker::RUN_TASK, &kwargs).await {
        return internal_error("app_generate_service.py:120", &failure);
    }
    let (events, receiver) = mpsc::channel(4);
    tasks::spawn(async move {
        if let Err(failure) = relay(reader, &script, &events).await {
            log::error("streams_channel.py:131", &failure.to_string());
        }
    });
    event_stream(receiver)
}

/// Passes events on until the run ends, the client goes, or nothing came for the silence limit.
async fn relay(
    reader: Option<crate::bus::Reader>,
    script: &Script,
    events: &mpsc::Sender<String>,
) -> Result<(), Failure> {
    let gone = |_| Failure::new("client went away");
    events.send("event: ping\n\n".to_owned()).await.map_err(gone)?;
    let Some(mut reader) = reader else {
        tokio::select! {
            () = tokio::time::sleep(script.silence) => {}
            () = events.closed() => {}
        }
        return Ok(());
    };
    let mut last = Instant::now();
    while last.elapsed() < script.silence {
        let received = tokio::select! {
            received = reader.next() => received?,
            () = events.closed() => return Ok(()),
        };
        for text in received {
            last = Instant::now();
            let event: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
            match event["event"].as_str() {
                Some("ping") => events.send("event: ping\n\n".to_owned()).await.map_err(gone)?,
                kind => {
                    events.send(data(&event)).await.map_err(gone)?;
                    if kind == Some("workflow_finished") {
                        return Ok(());
                    }
                }
            }
        }
    }
    Ok(())
}
