//! Why a secret could not be had. Each message names the reference and what to
//! do; none can carry a value.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use dify_common::chain::Chain;
use dify_common::gcp::token::TokenError;
use dify_common::retry::Retryable;

use crate::config::SecretRef;
use crate::config::settings::SecretName;
use crate::exit::Exit;

/// Why one reference gave no value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No such secret, or no such version of it (Secret Manager: 404 NOT_FOUND).
    #[error(
        "{reference} does not exist; create the secret or its version, or correct the reference"
    )]
    NotFound {
        /// What was asked for.
        reference: SecretRef,
    },
    /// The version is disabled or destroyed (400 FAILED_PRECONDITION); `latest`
    /// is the newest version even when that one is disabled.
    #[error("{reference} is disabled or destroyed; enable the version or refer to another one")]
    Disabled {
        /// What was asked for.
        reference: SecretRef,
    },
    /// 403 PERMISSION_DENIED.
    #[error(
        "access to {reference} is denied; grant this VM's service account \
         roles/secretmanager.secretAccessor on the secret (Google says: {said})"
    )]
    PermissionDenied {
        /// What was asked for.
        reference: SecretRef,
        /// Google's message: it also tells a disabled API from a missing role.
        said: String,
    },
    /// The payload does not match the checksum that came with it.
    #[error("{reference} arrived damaged: its CRC-32C does not match")]
    ChecksumMismatch {
        /// What was asked for.
        reference: SecretRef,
    },
    /// The answer is not what Secret Manager documents.
    #[error(
        "{reference}: the answer is not one of Secret Manager ({why}); is google.secret_manager right?"
    )]
    NotUnderstood {
        /// What was asked for.
        reference: SecretRef,
        /// What is missing.
        why: &'static str,
    },
    /// No connection, no answer in time, or a passing fault of the service.
    #[error("{reference}: Secret Manager cannot be reached")]
    Unreachable {
        /// What was asked for.
        reference: SecretRef,
        /// What the HTTP client says.
        #[source]
        source: reqwest::Error,
    },
    /// A status that has no variant of its own.
    #[error("{reference}: Secret Manager answered {status} ({said})")]
    Refused {
        /// What was asked for.
        reference: SecretRef,
        /// HTTP status.
        status: u16,
        /// Google's message.
        said: String,
    },
    /// No access token.
    #[error("{reference}: no identity to ask Secret Manager with")]
    Token {
        /// What was asked for.
        reference: SecretRef,
        /// Why.
        #[source]
        source: Box<TokenError>,
    },
    /// A Secret Manager reference on a machine without Google identity.
    #[error(
        "{reference} needs Google credentials and this machine has none; use file:// references here"
    )]
    NoIdentity {
        /// What was asked for.
        reference: SecretRef,
    },
    /// The value cannot be an environment variable.
    #[error(
        "{reference} holds {why}; a secret must be text, as it becomes an environment variable"
    )]
    NotText {
        /// What was asked for.
        reference: SecretRef,
        /// What it is instead.
        why: &'static str,
    },
    /// The file cannot be read.
    #[error("read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Someone else could have written the file.
    #[error("{} is not root's alone to write ({found}); chown root and chmod 0400", path.display())]
    FileNotOurs {
        /// The file.
        path: PathBuf,
        /// Owner and mode.
        found: String,
    },
}

impl SecretError {
    /// Short and stable, for metrics and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "secret-not-found",
            Self::Disabled { .. } => "secret-disabled",
            Self::PermissionDenied { .. } => "secret-permission",
            Self::ChecksumMismatch { .. } => "secret-checksum",
            Self::NotUnderstood { .. } => "secret-answer",
            Self::Unreachable { .. } => "secret-unreachable",
            Self::Refused { .. } => "secret-refused",
            Self::Token { .. } | Self::NoIdentity { .. } => "secret-identity",
            Self::NotText { .. } => "secret-not-text",
            Self::File { .. } | Self::FileNotOurs { .. } => "secret-file",
        }
    }
}

impl Retryable for SecretError {
    fn is_permanent(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::ChecksumMismatch { .. } | Self::Token { .. } => false,
            Self::Refused { status, .. } => !matches!(status, 408 | 429 | 500..),
            Self::NotFound { .. }
            | Self::Disabled { .. }
            | Self::PermissionDenied { .. }
            | Self::NotUnderstood { .. }
            | Self::NoIdentity { .. }
            | Self::NotText { .. }
            | Self::File { .. }
            | Self::FileNotOurs { .. } => true,
        }
    }
}

/// Everything that failed, by name; never empty.
#[derive(Debug)]
pub struct SecretErrors(BTreeMap<SecretName, SecretError>);

impl SecretErrors {
    pub(super) fn try_new(errors: BTreeMap<SecretName, SecretError>) -> Option<Self> {
        (!errors.is_empty()).then_some(Self(errors))
    }

    /// The errors in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (SecretName, &SecretError)> {
        self.0.iter().map(|(name, error)| (*name, error))
    }

    /// How a command that meets them ends.
    pub fn exit(&self) -> Exit {
        Exit::Secret
    }
}

impl Retryable for SecretErrors {
    /// Some of them need a person.
    fn is_permanent(&self) -> bool {
        self.0.values().any(Retryable::is_permanent)
    }
}

impl fmt::Display for SecretErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "{count} secret{} missing", if count == 1 { "" } else { "s" })?;
        for (name, error) in &self.0 {
            write!(f, "\n  {}: {}", name.as_str(), Chain(error))?;
        }
        Ok(())
    }
}

impl std::error::Error for SecretErrors {}
