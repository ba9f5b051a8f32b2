//! The metadata server of a Compute Engine VM.
//!
//! Sources: Google's "About VM metadata" and "Query VM metadata" pages: every
//! request carries `Metadata-Flavor: Google`; `wait_for_change` with `last_etag`
//! blocks until the value changes or `timeout_sec` passes and then answers the
//! current value; 503 is transient. `GCE_METADATA_HOST` (Google's own client
//! libraries' name) overrides the host.

use std::time::Duration;

use reqwest::{Client, StatusCode, header};

use crate::retry::{Backoff, Retryable, retry};
use crate::settings::Source;

/// Default host, a name every VM resolves by itself.
const DEFAULT_HOST: &str = "metadata.google.internal";
/// Environment variable of Google's client libraries that replaces the host.
pub const HOST_VARIABLE: &str = "GCE_METADATA_HOST";
/// One ordinary read: it is answered on the same host, in milliseconds.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// Reads are tried this often: about 15 s in all, as seconds of absence at boot are known.
const READ_ATTEMPTS: u32 = 6;

/// Why the metadata server did not answer what was asked.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// No connection, or no answer in time.
    #[error("ask the metadata server at {host} for {path}")]
    Unreachable {
        /// Host that was asked.
        host: String,
        /// Path below `/computeMetadata/v1/`.
        path: String,
        /// What the HTTP client says.
        #[source]
        source: reqwest::Error,
    },
    /// It answered with a status that is not a value.
    #[error("metadata server at {host} answered {status} for {path}")]
    Status {
        /// Host that was asked.
        host: String,
        /// Path below `/computeMetadata/v1/`.
        path: String,
        /// The answer.
        status: StatusCode,
    },
    /// Something answered that is not Google's metadata server.
    #[error("{host} is not a metadata server: its answer lacks Metadata-Flavor: Google")]
    Impostor {
        /// Host that was asked.
        host: String,
    },
}

impl Retryable for MetadataError {
    fn is_permanent(&self) -> bool {
        match self {
            Self::Unreachable { .. } => false,
            Self::Status { status, .. } => !status.is_server_error(),
            Self::Impostor { .. } => true,
        }
    }
}

/// A value with the tag that names this state of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// `None`: the key does not exist.
    pub value: Option<String>,
    /// To be sent as `last_etag`.
    pub etag: String,
}

/// Client of one metadata server.
#[derive(Debug, Clone)]
pub struct Metadata {
    host: String,
    client: Client,
}

impl Metadata {
    /// The server that `source` names, or the VM's own.
    pub fn from_source(source: &impl Source) -> Self {
        let host = source.get(HOST_VARIABLE).filter(|host| !host.is_empty());
        Self::new(host.unwrap_or_else(|| DEFAULT_HOST.to_owned()))
    }

    /// The server at `host` (`name` or `name:port`).
    pub fn new(host: String) -> Self {
        super::install_tls_provider();
        let client = Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(2))
            .build()
            .expect("no option here can fail");
        Self { host, client }
    }

    /// The host being asked.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Value of `path` below `/computeMetadata/v1/`; `None` when the key does not exist.
    pub async fn get(&self, path: &str) -> Result<Option<String>, MetadataError> {
        let read = || self.ask(path, &[], READ_DEADLINE);
        retry("metadata", READ_ATTEMPTS, Backoff::NEARBY, read).await.map(|tagged| tagged.value)
    }

    /// Waits until `path` differs from the state `last_etag` names, or until
    /// `at_most` passed, and answers the value of that moment. `None` as
    /// `last_etag` answers at once.
    pub async fn wait_for_change(
        &self,
        path: &str,
        last_etag: Option<&str>,
        at_most: Duration,
    ) -> Result<Tagged, MetadataError> {
        let seconds = at_most.as_secs().max(1).to_string();
        // "0" never equals a tag: without any, a change between two polls is lost.
        let query = [
            ("wait_for_change", "true"),
            ("last_etag", last_etag.unwrap_or("0")),
            ("timeout_sec", seconds.as_str()),
        ];
        self.ask(path, &query, at_most + READ_DEADLINE).await
    }

    async fn ask(
        &self,
        path: &str,
        query: &[(&str, &str)],
        deadline: Duration,
    ) -> Result<Tagged, MetadataError> {
        let unreachable = |source: reqwest::Error| MetadataError::Unreachable {
            host: self.host.clone(),
            path: path.to_owned(),
            source: source.without_url(),
        };
        let query: Vec<String> =
            query.iter().map(|(key, value)| format!("{key}={value}")).collect();
        // `path` may carry a query of its own, such as `recursive=true`.
        let separator = match (query.is_empty(), path.contains('?')) {
            (true, _) => "",
            (false, true) => "&",
            (false, false) => "?",
        };
        let url =
            format!("http://{}/computeMetadata/v1/{path}{separator}{}", self.host, query.join("&"));
        let answer = self
            .client
            .get(url)
            .header("Metadata-Flavor", "Google")
            .timeout(deadline)
            .send()
            .await
            .map_err(unreachable)?;
        let status = answer.status();
        if status.is_success() && answer.headers().get("metadata-flavor").is_none() {
            return Err(MetadataError::Impostor { host: self.host.clone() });
        }
        let etag = answer
            .headers()
            .get(header::ETAG)
            .and_then(|etag| etag.to_str().ok())
            .unwrap_or("0")
            .to_owned();
        if status == StatusCode::NOT_FOUND {
            return Ok(Tagged { value: None, etag });
        }
        if !status.is_success() {
            let (host, path) = (self.host.clone(), path.to_owned());
            return Err(MetadataError::Status { host, path, status });
        }
        let value = answer.text().await.map_err(unreachable)?;
        Ok(Tagged { value: Some(value), etag })
    }
}
