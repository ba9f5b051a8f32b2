//! What programs print: kept whole, and judged at the end. A line of WARN or
//! ERROR that no test announced fails it, and so does a secret in any line.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::task::JoinSet;

use crate::secrets::Planted;

/// Lines of every program of a fleet, with who printed them.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    lines: Arc<Mutex<Vec<Line>>>,
}

/// One printed line.
#[derive(Clone, Debug)]
pub struct Line {
    /// Node and program, such as `tab12cd-1 agent`.
    pub source: String,
    /// As printed.
    pub text: String,
}

impl Line {
    /// The JSON document, if it is one (Cloud Logging's structured logging).
    pub fn json(&self) -> Option<Value> {
        serde_json::from_str(&self.text).ok().filter(Value::is_object)
    }

    /// Somebody should look at it: WARNING or worse, or no log line at all
    /// (what a panic prints).
    pub fn is_alarming(&self) -> bool {
        self.json().is_none_or(|line| {
            !matches!(line["severity"].as_str(), Some("DEFAULT" | "DEBUG" | "INFO" | "NOTICE"))
        })
    }
}

impl Logs {
    /// Reads `output` to its end on a task of `tasks`.
    pub fn follow(
        &self,
        source: &str,
        output: impl AsyncRead + Unpin + Send + 'static,
        tasks: &mut JoinSet<()>,
    ) {
        let (logs, source) = (self.clone(), source.to_owned());
        tasks.spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(text)) = lines.next_line().await {
                logs.push(&source, text);
            }
        });
    }

    /// Adds a text that left the product some other way, to be searched too.
    pub fn push(&self, source: &str, text: String) {
        let line = Line { source: source.to_owned(), text };
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Everything so far.
    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a line holds `part`.
    pub fn contain(&self, part: &str) -> bool {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|line| line.text.contains(part))
    }

    /// What is wrong with the lines: alarming ones that hold none of `expected`,
    /// and any that holds a secret. The secret itself is not repeated.
    pub fn judge(&self, expected: &[&str], planted: &Planted) -> Vec<String> {
        let mut wrong = Vec::new();
        for line in self.lines() {
            let found = planted.found_in(&line.text);
            if !found.is_empty() {
                wrong.push(format!("{} printed the secret {}", line.source, found.join(", ")));
            } else if line.is_alarming() && !expected.iter().any(|part| line.text.contains(part)) {
                wrong.push(format!("{}: {}", line.source, line.text));
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_announced_alarms_and_no_secrets_pass() {
        let logs = Logs::default();
        let planted = Planted::random();
        logs.push("a", r#"{"severity":"INFO","message":"all is well"}"#.into());
        logs.push("a", r#"{"severity":"WARNING","message":"redis is away"}"#.into());
        assert!(logs.judge(&["redis is away"], &planted).is_empty());
        assert_eq!(logs.judge(&[], &planted).len(), 1);
        logs.push("a", "thread 'main' panicked".into());
        assert_eq!(logs.judge(&["redis is away"], &planted).len(), 1);
        logs.push(
            "a",
            format!(r#"{{"severity":"INFO","message":"{}"}}"#, planted.get("secret_key")),
        );
        let wrong = logs.judge(&["redis is away", "panicked"], &planted);
        assert_eq!(wrong, ["a printed the secret secret_key"]);
    }
}
