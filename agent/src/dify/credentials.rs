//! Secrets are judged before anything starts: the published ones, the ones a
//! consumer cannot carry, the ones that are missing. A problem never repeats a
//! secret.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dify_common::secret::{ExposeSecret as _, Secret};
use dify_common::settings::Problems;

use crate::config::settings::{SecretName, Settings};

/// Secrets anyone can read in Dify's repository: `docker/.env.example`, the
/// compose files and defaults in `api/configs/feature`, over its releases.
const PUBLISHED: [&str; 16] = [
    "sk-9f73s3ljTXVcMT3Blb3ljTqtsKiGHXVcMT3BlbkFJLK7U",
    "difyai123456",
    "Difyai123456",
    "lYkiYYT6owG+71oLerGzA7GXCgOT++6ovaezWAjpCjf+Sjc3ZtU+qUEi",
    "QaHbTe77CtuXmsfyhR7+vRjI/+XbV1AaFy691iy+kGDv2Jvy0/eAh8Y1",
    "dify-sandbox",
    "plugin-api-key",
    "inner-api-key",
    "WVF5YThaHlkYwhGUSmCRgsX3tD5ngdN8pkih",
    "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY",
    "dify-agent-run-token-for-dev-only",
    "dify-agent-local-sandbox-token-for-dev-only",
    "your-secret-key",
    "changeme",
    "password",
    "postgres",
];

/// `SECRET_KEY`: Dify's example asks for `openssl rand -base64 42`.
const SECRET_KEY_LENGTH: usize = 42;
/// Dify compares at most so many characters of `INIT_PASSWORD`
/// (`api/controllers/console/init_validate.py`).
const INIT_PASSWORD_LENGTH: usize = 30;
/// Keys between services: long enough not to be tried out.
const KEY_LENGTH: usize = 16;

/// Secrets these settings cannot do without.
pub(super) fn required(settings: &Settings) -> Vec<SecretName> {
    let mut names = vec![
        SecretName::SecretKey,
        SecretName::DatabasePassword,
        SecretName::VectorPassword,
        SecretName::PluginDaemonKey,
        SecretName::InnerApiKey,
        SecretName::CodeExecutionKey,
    ];
    if settings.features.agent {
        names.extend([
            SecretName::AgentServerKey,
            SecretName::AgentApiToken,
            SecretName::ShellctlToken,
        ]);
    }
    names
}

/// Notes what is wrong with the secrets, and with the names that stand beside
/// a password in a connection string.
pub(super) fn judge(
    settings: &Settings,
    secrets: &BTreeMap<SecretName, Secret>,
    problems: &mut Problems,
) {
    for name in required(settings) {
        if !secrets.contains_key(&name) {
            problems.add(path(name), "is missing: name where it lives");
        }
    }
    for (name, secret) in secrets {
        let text = secret.expose_secret();
        if PUBLISHED.contains(&text.trim()) {
            problems.add(
                path(*name),
                "is a default published in Dify's repository: anyone knows it, make a new one",
            );
        } else if text.is_empty() {
            problems.add(path(*name), "is empty");
        } else if text.chars().any(char::is_control) {
            problems.add(
                path(*name),
                "contains a control character, most likely a line end at its end: store it without (printf, not echo)",
            );
        } else if let Some(wrong) = wrong(*name, text) {
            problems.add(path(*name), wrong);
        }
    }
    for (key, text) in [
        ("database.user", &settings.database.user),
        ("database.host", &settings.database.host),
        ("plugin_database", &settings.plugin_database),
    ] {
        if !fits_dsn(text) {
            problems.add(
                key,
                "contains a space, quote or backslash, which the plugin daemon's connection string cannot carry",
            );
        }
    }
}

fn path(name: SecretName) -> String {
    format!("secrets.{}", name.as_str())
}

fn wrong(name: SecretName, text: &str) -> Option<String> {
    let length = text.chars().count();
    match name {
        SecretName::SecretKey => (length < SECRET_KEY_LENGTH).then(|| {
            format!("has {length} characters, expected at least {SECRET_KEY_LENGTH} (openssl rand -base64 42)")
        }),
        SecretName::InitPassword => (length > INIT_PASSWORD_LENGTH).then(|| {
            format!("has {length} characters, Dify accepts at most {INIT_PASSWORD_LENGTH} on its first page")
        }),
        SecretName::DatabasePassword => (!fits_dsn(text)).then(|| {
            "contains a space, quote or backslash: the plugin daemon writes it unquoted into its connection string (internal/db/pg/pg.go); choose another".to_owned()
        }),
        SecretName::PluginDaemonKey
        | SecretName::InnerApiKey
        | SecretName::CodeExecutionKey
        | SecretName::AgentApiToken
        | SecretName::ShellctlToken => (length < KEY_LENGTH)
            .then(|| format!("has {length} characters, expected at least {KEY_LENGTH}")),
        SecretName::AgentServerKey => match URL_SAFE_NO_PAD.decode(text) {
            Ok(bytes) if bytes.len() == 32 => None,
            Ok(_) | Err(_) => Some(
                "is not 32 bytes as base64url without padding, which the agent backend insists on (43 characters of A-Z a-z 0-9 - _)".to_owned(),
            ),
        },
        SecretName::VectorPassword | SecretName::RedisPassword => None,
    }
}

/// The daemon joins `key=value` with spaces and quotes nothing.
fn fits_dsn(text: &str) -> bool {
    !text.chars().any(|c| c.is_whitespace() || matches!(c, '\'' | '"' | '\\'))
}
