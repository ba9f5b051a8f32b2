//! Events to systemd's journal, one journal field per fact, through
//! systemd-journal-logger (which knows the wire format and how a `log` record
//! maps to priorities).

use log::{Level as LogLevel, Record as LogRecord};
use systemd_journal_logger::JournalLog;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::fields::Fields;

/// Sends events to the journal.
pub(super) struct JournalLayer {
    journal: JournalLog,
}

impl JournalLayer {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { journal: JournalLog::new()? })
    }
}

fn level(level: Level) -> LogLevel {
    match level {
        Level::ERROR => LogLevel::Error,
        Level::WARN => LogLevel::Warn,
        Level::INFO => LogLevel::Info,
        Level::DEBUG => LogLevel::Debug,
        Level::TRACE => LogLevel::Trace,
    }
}

impl<S> Layer<S> for JournalLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
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
        let facts: Vec<(String, String)> = fields
            .facts
            .into_iter()
            .map(|(name, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                (name, text)
            })
            .collect();
        let pairs: Vec<(&str, &str)> =
            facts.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        // A journal that is away must not end the process.
        let _ = self.journal.journal_send(
            &LogRecord::builder()
                .level(level(*meta.level()))
                .target(meta.target())
                .file_static(meta.file())
                .line(meta.line())
                .key_values(&pairs.as_slice())
                .args(format_args!("{}", fields.message))
                .build(),
        );
    }
}
