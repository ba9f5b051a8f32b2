//! What can go wrong with the container engine, in our own words. The engine
//! speaks through one status code and free text, so both are read here, once.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use dify_common::retry::Retryable;

/// A call to the engine failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineError {
    kind: EngineErrorKind,
    /// What we were doing, as an infinitive: `create container`.
    doing: &'static str,
    /// To what: a name, a reference, a path.
    target: String,
    /// What the engine or the kernel said; empty when `kind` says it all.
    found: String,
}

/// What kind of failure, for deciding and for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineErrorKind {
    /// Nobody answers on the socket.
    Unreachable,
    /// The engine took longer than this call may.
    Deadline,
    /// No such container, network or image.
    NotFound,
    /// The name or address is taken, by something that is not ours.
    Conflict,
    /// A disk is full: Docker's data root or our state directory.
    NoSpace,
    /// The image cannot be had: unknown, for another platform, or no reference at all.
    BadImage,
    /// The registry wants other credentials.
    Unauthorized,
    /// What came is not what the digest names.
    DigestMismatch,
    /// The registry does not answer, or asks to slow down.
    Registry,
    /// The engine refuses the request as it is.
    Invalid,
    /// The engine failed at it.
    Engine,
    /// The world is not as the plan expected; plan again.
    Stale,
    /// A file of ours could not be written or read.
    File,
    /// The kernel's packet filter refused.
    Firewall,
}

impl EngineErrorKind {
    /// The word used as `kind` on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "docker",
            Self::Deadline => "docker-deadline",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::NoSpace => "disk",
            Self::BadImage => "image",
            Self::Unauthorized => "registry-auth",
            Self::DigestMismatch => "digest",
            Self::Registry => "registry",
            Self::Invalid => "invalid",
            Self::Engine => "engine",
            Self::Stale => "stale",
            Self::File => "file",
            Self::Firewall => "firewall",
        }
    }

    fn advice(self) -> Option<&'static str> {
        match self {
            Self::Unreachable => {
                Some("is docker.service running, and may this user open its socket?")
            }
            Self::Conflict => Some(
                "it was not created by this node and is left alone: rename or remove it, or change this node's id or addresses",
            ),
            Self::NoSpace => {
                Some("free space there (docker system df) or give the VM a larger boot disk")
            }
            Self::BadImage => Some("check the release's lock and the mirror prefix"),
            Self::Unauthorized => Some(
                "the VM's service account needs roles/artifactregistry.reader there; other registries are read without credentials",
            ),
            Self::DigestMismatch => {
                Some("the registry or something before it serves other content: do not run it")
            }
            Self::Registry => Some(
                "the registry must be reachable from this VM (Cloud NAT, Private Google Access or a mirror)",
            ),
            Self::Deadline
            | Self::NotFound
            | Self::Invalid
            | Self::Engine
            | Self::Stale
            | Self::File
            | Self::Firewall => None,
        }
    }
}

impl EngineError {
    pub(crate) fn new(
        kind: EngineErrorKind,
        doing: &'static str,
        target: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self { kind, doing, target: target.into(), found: found.into() }
    }

    pub(crate) fn deadline(doing: &'static str, target: &str, after: Duration) -> Self {
        let found = format!("no answer within {}", humantime::format_duration(after));
        Self::new(EngineErrorKind::Deadline, doing, target, found)
    }

    /// A file operation failed. A full disk is told apart from the rest.
    pub(crate) fn file(
        doing: &'static str,
        path: impl Into<PathBuf>,
        error: &std::io::Error,
    ) -> Self {
        let is_full = matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        );
        let kind = if is_full { EngineErrorKind::NoSpace } else { EngineErrorKind::File };
        Self::new(kind, doing, path.into().display().to_string(), error.to_string())
    }

    /// An answer of the engine that is an error: `status` is HTTP's, or 0 for
    /// an error in the middle of a stream that had begun well.
    pub(crate) fn answered(doing: &'static str, target: &str, status: u16, message: &str) -> Self {
        Self::new(classify(status, message), doing, target, message.trim())
    }

    /// The kind.
    pub fn kind(&self) -> EngineErrorKind {
        self.kind
    }

    /// Trying the same again cannot help.
    pub fn is_permanent(&self) -> bool {
        match self.kind {
            EngineErrorKind::Unreachable
            | EngineErrorKind::Deadline
            | EngineErrorKind::Registry
            | EngineErrorKind::Engine
            | EngineErrorKind::Stale
            | EngineErrorKind::Firewall => false,
            EngineErrorKind::NotFound
            | EngineErrorKind::Conflict
            | EngineErrorKind::NoSpace
            | EngineErrorKind::BadImage
            | EngineErrorKind::Unauthorized
            | EngineErrorKind::DigestMismatch
            | EngineErrorKind::Invalid
            | EngineErrorKind::File => true,
        }
    }

    /// The same error with each of `secrets` struck out of the engine's words,
    /// which may quote an environment.
    #[must_use]
    pub(crate) fn without<'a>(mut self, secrets: impl Iterator<Item = &'a str>) -> Self {
        for secret in secrets.filter(|secret| !secret.is_empty()) {
            self.found = self.found.replace(secret, "[REDACTED]");
        }
        self
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.doing, self.target)?;
        if !self.found.is_empty() {
            write!(f, ": {}", self.found)?;
        }
        match self.kind.advice() {
            Some(advice) => write!(f, " ({advice})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for EngineError {}

impl Retryable for EngineError {
    fn is_permanent(&self) -> bool {
        self.is_permanent()
    }
}

/// Texts of dockerd and of the registry client inside it (moby
/// `distribution/errors.go`, `errdefs`; distribution `registry/api/errcode`),
/// most telling first. They are stable from 20.10 to 28 but not a contract:
/// what is not recognised falls back to the status.
const TEXTS: [(&str, EngineErrorKind); 26] = [
    ("no space left on device", EngineErrorKind::NoSpace),
    ("disk quota exceeded", EngineErrorKind::NoSpace),
    ("verification failed for digest", EngineErrorKind::DigestMismatch),
    ("does not match digest", EngineErrorKind::DigestMismatch),
    ("unexpected commit digest", EngineErrorKind::DigestMismatch),
    ("toomanyrequests", EngineErrorKind::Registry),
    ("pull access denied", EngineErrorKind::Unauthorized),
    ("unauthorized:", EngineErrorKind::Unauthorized),
    ("denied:", EngineErrorKind::Unauthorized),
    ("no basic auth credentials", EngineErrorKind::Unauthorized),
    ("manifest unknown", EngineErrorKind::BadImage),
    ("no matching manifest", EngineErrorKind::BadImage),
    ("invalid reference format", EngineErrorKind::BadImage),
    ("repository name not known", EngineErrorKind::BadImage),
    ("name unknown", EngineErrorKind::BadImage),
    ("no such image", EngineErrorKind::BadImage),
    ("dial tcp", EngineErrorKind::Registry),
    ("no such host", EngineErrorKind::Registry),
    ("i/o timeout", EngineErrorKind::Registry),
    ("tls handshake timeout", EngineErrorKind::Registry),
    ("connection reset by peer", EngineErrorKind::Registry),
    ("unexpected eof", EngineErrorKind::Registry),
    ("received unexpected http status", EngineErrorKind::Registry),
    ("pool overlaps with other one", EngineErrorKind::Conflict),
    ("address already in use", EngineErrorKind::Conflict),
    ("has active endpoints", EngineErrorKind::Stale),
];

fn classify(status: u16, message: &str) -> EngineErrorKind {
    let message = message.to_ascii_lowercase();
    if let Some((_, kind)) = TEXTS.iter().find(|(text, _)| message.contains(text)) {
        return *kind;
    }
    match status {
        404 => EngineErrorKind::NotFound,
        409 => EngineErrorKind::Conflict,
        400..500 => EngineErrorKind::Invalid,
        _ => EngineErrorKind::Engine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_docker_are_told_apart() {
        for (status, message, expected) in [
            (500, "write /var/lib/docker/tmp/x: no space left on device", EngineErrorKind::NoSpace),
            (
                404,
                "manifest for h:5000/a:b not found: manifest unknown: manifest unknown",
                EngineErrorKind::BadImage,
            ),
            (
                404,
                "pull access denied for x, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
                EngineErrorKind::Unauthorized,
            ),
            (
                500,
                "Get \"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
                EngineErrorKind::Registry,
            ),
            (
                0,
                "filesystem layer verification failed for digest sha256:00",
                EngineErrorKind::DigestMismatch,
            ),
            (
                429,
                "toomanyrequests: You have reached your pull rate limit",
                EngineErrorKind::Registry,
            ),
            (404, "No such container: x", EngineErrorKind::NotFound),
            (404, "No such image: x:latest", EngineErrorKind::BadImage),
            (
                409,
                "Conflict. The container name \"/x\" is already in use",
                EngineErrorKind::Conflict,
            ),
            (403, "Pool overlaps with other one on this address space", EngineErrorKind::Conflict),
            (400, "invalid mode", EngineErrorKind::Invalid),
            (500, "something new", EngineErrorKind::Engine),
            (0, "something new", EngineErrorKind::Engine),
        ] {
            let error = EngineError::answered("pull image", "x", status, message);
            assert_eq!(error.kind(), expected, "{message}");
        }
    }

    #[test]
    fn a_full_disk_says_what_to_do_and_is_final() {
        let error = EngineError::answered("pull image", "a:b", 0, "no space left on device");
        assert!(error.is_permanent());
        assert!(error.to_string().contains("larger boot disk"), "{error}");
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(EngineError::file("write", "/x", &full).kind(), EngineErrorKind::NoSpace);
    }

    #[test]
    fn secrets_are_struck_out() {
        let error = EngineError::answered(
            "create container",
            "x",
            400,
            "invalid environment variable: =hunter2",
        );
        assert!(!error.without(["", "hunter2"].into_iter()).to_string().contains("hunter2"));
    }
}
