//! Google Secret Manager over REST.
//!
//! Source: Secret Manager API v1, `projects.secrets.versions.access` and
//! `SecretPayload`: the value is base64 in `payload.data`, its CRC-32C
//! (Castagnoli) a decimal string in `payload.dataCrc32c`; `latest` names the
//! newest version whatever its state; a version that is not enabled answers
//! 400 FAILED_PRECONDITION.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dify_common::gcp::token::Tokens;
use dify_common::retry::{Backoff, retry};
use reqwest::{Client, StatusCode};
use serde::Deserialize;

use super::{Raw, SecretError};
use crate::config::SecretRef;

/// One access: tens of milliseconds in the region, so this is generous.
const DEADLINE: Duration = Duration::from_secs(10);
/// Tries of one reference: about 10 s of waiting in all.
const ATTEMPTS: u32 = 5;

/// Client of Secret Manager. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Manager {
    base: String,
    client: Client,
    tokens: Tokens,
}

#[derive(Deserialize)]
struct Access {
    name: Option<String>,
    payload: Option<Payload>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    data: Option<String>,
    data_crc32c: Option<String>,
}

#[derive(Deserialize, Default)]
struct Refusal {
    #[serde(default)]
    error: Status,
}

/// google.rpc.Status as the REST front end writes it.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    status: String,
    message: String,
}

impl Manager {
    /// A client for the API at `base` (`Endpoints::secret_manager`).
    pub fn new(base: &str, tokens: Tokens) -> Self {
        dify_common::gcp::install_tls_provider();
        let client = Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .build()
            .expect("no option here can fail");
        Self { base: base.trim_end_matches('/').to_owned(), client, tokens }
    }

    pub(super) async fn access(&self, reference: &SecretRef) -> Result<Raw, SecretError> {
        retry("secret", ATTEMPTS, Backoff::NEARBY, || self.ask(reference)).await
    }

    async fn ask(&self, reference: &SecretRef) -> Result<Raw, SecretError> {
        let SecretRef::Manager { project, secret, version } = reference else {
            return Err(SecretError::NotUnderstood {
                reference: reference.clone(),
                why: "not a Secret Manager reference",
            });
        };
        let unreachable = |source: reqwest::Error| SecretError::Unreachable {
            reference: reference.clone(),
            source: source.without_url(),
        };
        let token = self.tokens.token().await.map_err(|source| SecretError::Token {
            reference: reference.clone(),
            source: Box::new(source),
        })?;
        let url = format!(
            "{}/v1/projects/{project}/secrets/{secret}/versions/{version}:access",
            self.base
        );
        let answer = self
            .client
            .get(url)
            .bearer_auth(token.as_str())
            .timeout(DEADLINE)
            .send()
            .await
            .map_err(unreachable)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(unreachable)?;
        if status.is_success() {
            open(reference, &body)
        } else {
            Err(refusal(reference, status, &body))
        }
    }
}

/// The value in a successful answer, checksum verified.
fn open(reference: &SecretRef, body: &[u8]) -> Result<Raw, SecretError> {
    let strange = |why| SecretError::NotUnderstood { reference: reference.clone(), why };
    // The parser's own message may quote the body: it is dropped.
    let access: Access = serde_json::from_slice(body).map_err(|_| strange("not its JSON"))?;
    let payload = access.payload.ok_or_else(|| strange("no payload"))?;
    let expected: u32 = payload
        .data_crc32c
        .ok_or_else(|| strange("no checksum"))?
        .parse()
        .map_err(|_| strange("a checksum that is no number"))?;
    // An empty value is left out of the JSON.
    let bytes = STANDARD
        .decode(payload.data.unwrap_or_default())
        .map_err(|_| strange("data that is not base64"))?;
    if crc32c::crc32c(&bytes) != expected {
        return Err(SecretError::ChecksumMismatch { reference: reference.clone() });
    }
    Ok(Raw { bytes, version: access.name.unwrap_or_else(|| reference.to_string()), exposed: None })
}

fn refusal(reference: &SecretRef, status: StatusCode, body: &[u8]) -> SecretError {
    let reference = reference.clone();
    let Refusal { error } = serde_json::from_slice(body).unwrap_or_default();
    let said = error.message.chars().take(300).collect();
    match (status.as_u16(), error.status.as_str()) {
        (404, _) => SecretError::NotFound { reference },
        (400, "FAILED_PRECONDITION") => SecretError::Disabled { reference },
        (403, _) => SecretError::PermissionDenied { reference, said },
        (status, _) => SecretError::Refused { reference, status, said },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference() -> SecretRef {
        "sm://p/s/7".parse().expect("valid")
    }

    #[test]
    fn a_payload_is_opened_only_when_its_checksum_matches() {
        // Check value of CRC-32C: "123456789" is 0xE3069283.
        let body = |crc: &str| {
            format!(
                r#"{{"name":"projects/1/secrets/s/versions/7",
                    "payload":{{"data":"MTIzNDU2Nzg5","dataCrc32c":"{crc}"}}}}"#
            )
        };
        let raw = open(&reference(), body("3808858755").as_bytes()).expect("opens");
        assert_eq!(raw.bytes, b"123456789");
        assert_eq!(raw.version, "projects/1/secrets/s/versions/7");
        let kind = |body: &str| {
            let error = open(&reference(), body.as_bytes()).map(|_| ()).expect_err(body);
            assert!(!error.to_string().contains("123456789"), "{error}");
            error.kind()
        };
        assert_eq!(kind(&body("3808858756")), "secret-checksum");
        assert_eq!(kind(&body("x")), "secret-answer");
        assert_eq!(kind(r#"{"payload":{"data":"MTIzNDU2Nzg5"}}"#), "secret-answer");
        assert_eq!(kind(r#""123456789"#), "secret-answer");
    }

    #[test]
    fn each_refusal_has_its_own_error() {
        use dify_common::retry::Retryable as _;
        for (status, word, kind, permanent) in [
            (404, "NOT_FOUND", "secret-not-found", true),
            (400, "FAILED_PRECONDITION", "secret-disabled", true),
            (400, "INVALID_ARGUMENT", "secret-refused", true),
            (401, "UNAUTHENTICATED", "secret-refused", true),
            (403, "PERMISSION_DENIED", "secret-permission", true),
            (429, "RESOURCE_EXHAUSTED", "secret-refused", false),
            (503, "UNAVAILABLE", "secret-refused", false),
        ] {
            let body =
                format!(r#"{{"error":{{"code":{status},"status":"{word}","message":"m"}}}}"#);
            let code = StatusCode::from_u16(status).expect("a status");
            let error = refusal(&reference(), code, body.as_bytes());
            assert_eq!((error.kind(), error.is_permanent()), (kind, permanent), "{word}");
            assert!(error.to_string().contains("sm://p/s/7"), "{error}");
        }
    }
}
