//! The one error of the stand-in: a line for the container's log and an exit status.

use std::fmt;

/// Why a role ended or an answer is 500. Its text imitates what the real program logs.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    text: String,
    status: u8,
}

impl Failure {
    /// Ends the program with status 1.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), status: 1 }
    }

    /// The same with another exit status.
    pub(crate) fn with_status(self, status: u8) -> Self {
        Self { status, ..self }
    }

    /// The exit status this failure asks for.
    pub(crate) fn status(&self) -> u8 {
        self.status
    }

    /// Says what was being done.
    pub(crate) fn while_doing(self, what: &str) -> Self {
        Self { text: format!("{what}: {}", self.text), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<std::io::Error> for Failure {
    fn from(source: std::io::Error) -> Self {
        Self::new(source.to_string())
    }
}

impl From<sqlx::Error> for Failure {
    fn from(source: sqlx::Error) -> Self {
        Self::new(format!("(psycopg2.OperationalError) {source}"))
    }
}

impl From<redis::RedisError> for Failure {
    fn from(source: redis::RedisError) -> Self {
        Self::new(format!("redis.exceptions.ConnectionError: {source}"))
    }
}

impl From<reqwest::Error> for Failure {
    fn from(source: reqwest::Error) -> Self {
        Self::new(format!("{:?}", source.without_url()))
    }
}
