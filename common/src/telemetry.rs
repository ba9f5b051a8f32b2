//! Logs: journald with structured fields under systemd, Cloud Logging JSON on
//! stdout otherwise, plain text for a person at a terminal.
//!
//! Constant message, facts as fields. `ERROR`: a person must look; `WARN`: we
//! carried on but expected better; `INFO`: state changes.

mod cloud;
mod fields;
mod journal;

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Where logs go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogMode {
    /// Journald when its socket is our stderr, text on a terminal, else JSON.
    #[default]
    Auto,
    /// systemd's journal, one journal field per fact.
    Journald,
    /// One JSON object a line, in Cloud Logging's field names.
    Json,
    /// For a person.
    Text,
}

/// The text is not a log mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("log mode is none of auto, journald, json, text")]
pub struct UnknownLogMode;

impl FromStr for LogMode {
    type Err = UnknownLogMode;

    fn from_str(text: &str) -> Result<Self, UnknownLogMode> {
        match text {
            "auto" => Ok(Self::Auto),
            "journald" => Ok(Self::Journald),
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(UnknownLogMode),
        }
    }
}

/// Libraries that print what they carry when asked for more: request bodies
/// with a container's environment (bollard), headers with bearers.
const QUIET: [&str; 8] = [
    "bollard=info",
    "h2=info",
    "hyper=info",
    "hyper_util=info",
    "redis=info",
    "reqwest=info",
    "rustls=info",
    "sqlx=info",
];

/// Sets the process up to log. `filter` is tracing's directive syntax, such as
/// `info` or `info,dify_agent=debug`; an invalid one falls back to `info`.
/// A second call does nothing.
pub fn init(mode: LogMode, filter: &str) {
    let mut filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    for library in QUIET {
        filter = filter.add_directive(library.parse().expect("a constant directive"));
    }
    let chosen = match mode {
        LogMode::Auto if systemd_journal_logger::connected_to_journal() => LogMode::Journald,
        LogMode::Auto if std::io::stderr().is_terminal() => LogMode::Text,
        LogMode::Auto => LogMode::Json,
        LogMode::Journald | LogMode::Json | LogMode::Text => mode,
    };
    let layer: Box<dyn Layer<_> + Send + Sync> = match chosen {
        LogMode::Journald => match journal::JournalLayer::new() {
            Ok(layer) => Box::new(layer),
            // No journal after all: say everything on stdout rather than nothing.
            Err(_) => Box::new(cloud::CloudLayer::stdout()),
        },
        LogMode::Text => Box::new(
            tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal()),
        ),
        LogMode::Json | LogMode::Auto => Box::new(cloud::CloudLayer::stdout()),
    };
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
}
