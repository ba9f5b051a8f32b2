//! One JSON object a line. Field names are those Cloud Logging lifts out of a
//! structured payload (`severity`, `message`, `time`; Google's "Structured
//! logging" page).

use std::io::Write;

use serde_json::{Map, Value};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::fields::Fields;
use crate::clock;

/// Writes events to `W` as Cloud Logging JSON.
#[derive(Debug)]
pub(super) struct CloudLayer<W> {
    writer: fn() -> W,
}

impl CloudLayer<std::io::Stdout> {
    pub(super) fn stdout() -> Self {
        Self { writer: std::io::stdout }
    }
}

fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG | Level::TRACE => "DEBUG",
    }
}

fn line(level: Level, target: &str, fields: Fields, time: String) -> String {
    let mut entry = Map::new();
    entry.insert("severity".into(), severity(level).into());
    entry.insert("time".into(), time.into());
    entry.insert("message".into(), fields.message.into());
    entry.insert("target".into(), target.into());
    for (name, value) in fields.facts {
        // A fact may not hide what Cloud Logging reads.
        let name = if entry.contains_key(&name) { format!("{name}_") } else { name };
        entry.insert(name, value);
    }
    let mut text = Value::Object(entry).to_string();
    text.push('\n');
    text
}

impl<S, W> Layer<S> for CloudLayer<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        Fields::open(attributes, id, &context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        Fields::update(id, values, &context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let meta = event.metadata();
        let fields = Fields::of(event, &context);
        let text = line(*meta.level(), meta.target(), fields, clock::now_rfc3339());
        // A reader that went away must not end the process.
        let _ = (self.writer)().write_all(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_cannot_forge_the_severity() {
        let mut fields = Fields { message: "hello".into(), ..Fields::default() };
        fields.facts.insert("severity".into(), "EMERGENCY".into());
        fields.facts.insert("in_flight".into(), 3.into());
        let text = line(Level::WARN, "dify_agent", fields, "T".into());
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["severity"], "WARNING");
        assert_eq!(value["severity_"], "EMERGENCY");
        assert_eq!(value["in_flight"], 3);
        assert!(text.ends_with('\n') && text.matches('\n').count() == 1);
    }
}
