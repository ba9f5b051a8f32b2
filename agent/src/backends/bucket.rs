//! Cloud Storage: may this VM do with the bucket what Dify will do?
//!
//! Sources: Cloud Storage JSON API v1 (`buckets.get`, media upload,
//! `objects.get` with `alt=media`, `objects.delete`, preconditions by
//! generation). Dify's storage client gets the bucket before every object
//! operation, so `storage.buckets.get` is needed besides the object rights.

use std::time::{Duration, SystemTime};

use dify_common::chain::Chain;
use dify_common::clock;
use dify_common::gcp::token::{TokenError, Tokens};
use dify_common::ids::NodeId;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, Method, RequestBuilder, header};
use serde::Deserialize;

use super::{CheckLine, Group};

/// One request.
const DEADLINE: Duration = Duration::from_secs(10);
/// What stays as it is in a path segment or query value (RFC 3986, unreserved).
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Content of the probe object.
const PROBE: &str = "dify-fleet probe; may be deleted";

/// Client of Cloud Storage. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Storage {
    base: String,
    client: Client,
    tokens: Tokens,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No access token.
    #[error("no identity to ask Cloud Storage with")]
    Token(#[source] Box<TokenError>),
    /// No connection, or no answer in time.
    #[error("Cloud Storage cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// A refusal.
    #[error("Cloud Storage answered {status} ({said})")]
    Status {
        /// HTTP status.
        status: u16,
        /// Google's message.
        said: String,
    },
    /// What was read is not what was written.
    #[error("the object reads back differently")]
    Differs,
}

/// What was found. A step is not taken when the one before failed.
#[derive(Debug)]
pub struct Facts {
    /// `buckets.get`: the bucket's location.
    pub get: Result<String, StorageError>,
    /// Insert of the probe object, if it does not exist.
    pub insert: Option<Result<(), StorageError>>,
    /// Read back and compared.
    pub read: Option<Result<(), StorageError>>,
    /// Deleted.
    pub delete: Option<Result<(), StorageError>>,
    /// Google's clock ahead of ours, in whole seconds.
    pub skew: Option<i64>,
}

#[derive(Deserialize)]
struct Bucket {
    #[serde(default)]
    location: String,
}

#[derive(Deserialize)]
struct Object {
    generation: String,
}

#[derive(Deserialize, Default)]
struct Refusal {
    #[serde(default)]
    error: Said,
}

#[derive(Deserialize, Default)]
struct Said {
    #[serde(default)]
    message: String,
}

/// An answer that was a success.
struct Answer {
    body: Vec<u8>,
    date: Option<SystemTime>,
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

impl Storage {
    /// A client for the API at `base` (`Endpoints::storage`).
    pub fn new(base: &str, tokens: Tokens) -> Self {
        dify_common::gcp::install_tls_provider();
        let client = Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .build()
            .expect("no option here can fail");
        Self { base: base.trim_end_matches('/').to_owned(), client, tokens }
    }

    /// `buckets.get`, the smallest question that needs identity and bucket.
    pub async fn get(&self, bucket: &str) -> Result<(), StorageError> {
        self.ask(Method::GET, &format!("/storage/v1/b/{}", encoded(bucket)), None).await.map(drop)
    }

    /// Collects the facts of `bucket` with a probe object, which is deleted.
    pub async fn look(&self, bucket: &str, node: &NodeId) -> Facts {
        let path = format!("/storage/v1/b/{}", encoded(bucket));
        let (get, skew) = match self.ask(Method::GET, &path, None).await {
            Ok(answer) => {
                let parsed: Option<Bucket> = serde_json::from_slice(&answer.body).ok();
                let location = parsed.map(|bucket| bucket.location).unwrap_or_default();
                (Ok(location), answer.date.map(skew))
            }
            Err(error) => (Err(error), None),
        };
        let mut facts = Facts { get, insert: None, read: None, delete: None, skew };
        let object = format!("dify_fleet/probe-{node}-{:016x}", rand::random::<u64>());
        let object = encoded(&object);
        let upload = format!(
            "/upload/storage/v1/b/{}/o?uploadType=media&name={object}&ifGenerationMatch=0",
            encoded(bucket)
        );
        // Tried even when the get failed: the operator hears of all missing rights at once.
        let generation = match self.ask(Method::POST, &upload, Some(PROBE)).await {
            Ok(answer) => {
                facts.insert = Some(Ok(()));
                serde_json::from_slice::<Object>(&answer.body).ok().map(|object| object.generation)
            }
            Err(error) => {
                facts.insert = Some(Err(error));
                return facts;
            }
        };
        let media = format!("{path}/o/{object}?alt=media");
        facts.read = Some(match self.ask(Method::GET, &media, None).await {
            Ok(answer) if answer.body == PROBE.as_bytes() => Ok(()),
            Ok(_) => Err(StorageError::Differs),
            Err(error) => Err(error),
        });
        let only = generation.map(|g| format!("?ifGenerationMatch={g}")).unwrap_or_default();
        let delete = format!("{path}/o/{object}{only}");
        facts.delete = Some(self.ask(Method::DELETE, &delete, None).await.map(drop));
        facts
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        content: Option<&'static str>,
    ) -> Result<Answer, StorageError> {
        let token = self.tokens.token().await;
        let token = token.map_err(|error| StorageError::Token(Box::new(error)))?;
        let mut request: RequestBuilder = self
            .client
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(token.as_str())
            .timeout(DEADLINE);
        if let Some(content) = content {
            request = request.header(header::CONTENT_TYPE, "text/plain").body(content);
        }
        let unreachable = |error: reqwest::Error| StorageError::Unreachable(error.without_url());
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let date = answer
            .headers()
            .get(header::DATE)
            .and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let body = answer.bytes().await.map_err(unreachable)?.to_vec();
        if status.is_success() {
            return Ok(Answer { body, date });
        }
        let Refusal { error } = serde_json::from_slice(&body).unwrap_or_default();
        let (status, said) = (status.as_u16(), error.message.chars().take(300).collect());
        Err(StorageError::Status { status, said })
    }
}

/// Whole seconds, as the header has no fractions.
fn skew(theirs: SystemTime) -> i64 {
    let seconds = |at| i64::try_from(clock::unix_seconds(at)).unwrap_or(i64::MAX);
    seconds(theirs) - seconds(clock::now())
}

/// The lines for one bucket. Pure.
pub fn judge(name: &str, facts: &Facts) -> Vec<CheckLine> {
    let group = Group::Bucket;
    let mut lines = vec![match &facts.get {
        Ok(location) => CheckLine::ok(group, "get", format!("{name} {location}").trim_end()),
        Err(error) => {
            refused(name, "get", error, "storage.buckets.get", "roles/storage.legacyBucketReader")
        }
    }];
    let admin = "roles/storage.objectAdmin";
    for (step, right, result) in [
        ("write", "storage.objects.create", &facts.insert),
        ("read", "storage.objects.get", &facts.read),
        ("delete", "storage.objects.delete", &facts.delete),
    ] {
        match result {
            None => {}
            Some(Ok(())) => {
                lines.push(CheckLine::ok(group, step, format!("probe object in {name}")));
            }
            Some(Err(error)) => lines.push(refused(name, step, error, right, admin)),
        }
    }
    if let Some(skew) = facts.skew {
        let found = format!("{skew:+} s against this machine");
        let advice = "have this VM's clock set by NTP (chrony, metadata.google.internal)";
        lines.push(match skew.abs() {
            61.. => CheckLine::fail(group, "clock", found, advice),
            4.. => CheckLine::warn(group, "clock", found, advice),
            _ => CheckLine::ok(group, "clock", found),
        });
    }
    lines
}

fn refused(
    name: &str,
    step: &'static str,
    error: &StorageError,
    right: &str,
    role: &str,
) -> CheckLine {
    let advice = match error {
        StorageError::Status { status: 404, .. } => format!("create bucket {name}, or correct its name"),
        StorageError::Status { status: 403, .. } => {
            format!("give this VM's service account {right} on {name} ({role})")
        }
        StorageError::Status { status: 401, .. } | StorageError::Token(_) => {
            "the VM's service account has no valid token: is it attached, and with scope cloud-platform?".to_owned()
        }
        StorageError::Unreachable(_) => "is Private Google Access on for this subnet?".to_owned(),
        StorageError::Status { .. } | StorageError::Differs => "try again; ask Google if it stays".to_owned(),
    };
    CheckLine::fail(Group::Bucket, step, format!("{name}: {}", Chain(error)), advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::Verdict;

    fn status(status: u16) -> StorageError {
        StorageError::Status { status, said: "no".to_owned() }
    }

    #[test]
    fn every_missing_right_is_named() {
        let facts = Facts {
            get: Err(status(403)),
            insert: Some(Ok(())),
            read: Some(Err(status(403))),
            delete: Some(Err(status(403))),
            skew: Some(-1),
        };
        let lines = judge("files", &facts);
        let advice: Vec<_> = lines.iter().filter_map(|line| line.advice.as_deref()).collect();
        assert_eq!(advice.len(), 3, "{lines:?}");
        for (text, right) in advice.iter().zip(["buckets.get", "objects.get", "objects.delete"]) {
            assert!(text.contains(right), "{text}");
        }
    }

    #[test]
    fn a_missing_bucket_and_a_wrong_clock_are_failures() {
        let facts = Facts {
            get: Err(status(404)),
            insert: None,
            read: None,
            delete: None,
            skew: Some(300),
        };
        let lines = judge("files", &facts);
        assert!(lines.iter().all(|line| line.verdict == Verdict::Fail), "{lines:?}");
        assert!(
            lines[0].advice.as_deref().is_some_and(|text| text.contains("create bucket files"))
        );
    }
}
