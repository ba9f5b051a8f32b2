//! Identifiers as types: a node is not a release, a digest is not a tag.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not the identifier it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {found:?} is not valid: expected {expected}")]
pub struct InvalidId {
    what: &'static str,
    found: String,
    expected: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    let found = text.chars().take(80).collect();
                    Err(InvalidId { what: $what, found, expected: $expected })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// Names one VM of the fleet: the instance name on Google Cloud, a word of
    /// the operator's elsewhere. Every container name, label, state path and
    /// socket of a node derives from it, so that many nodes can share one
    /// Docker engine.
    NodeId,
    "node id",
    "1 to 63 of a-z, 0-9 and '-', starting with a letter (RFC 1035 label)",
    |text| {
        text.len() <= 63
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && !text.ends_with('-')
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    }
);

text_id!(
    /// A Dify release as its manifest names it, such as `1.14.2`.
    ReleaseId,
    "release id",
    "letters, digits, '.', '-' and '_', at most 64, starting with a letter or digit",
    |text| {
        text.len() <= 64
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
    }
);

text_id!(
    /// Content address of an image or manifest: `sha256:` and 64 hex digits
    /// (OCI image specification, descriptor digests).
    Digest,
    "digest",
    "sha256: followed by 64 lower-case hex digits",
    |text| {
        text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64 && hex.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
        })
    }
);

/// Counts up with every change of desired state; an older one is refused.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(u64);

impl Generation {
    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_are_dns_labels() {
        assert!("dify-x7f2".parse::<NodeId>().is_ok());
        for bad in ["", "Dify", "9a", "a_b", "a-", &"a".repeat(64), "a b", "a/../b"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn digests_are_whole() {
        assert!(format!("sha256:{}", "a".repeat(64)).parse::<Digest>().is_ok());
        assert!("sha256:abc".parse::<Digest>().is_err());
        assert!(format!("sha256:{}", "G".repeat(64)).parse::<Digest>().is_err());
    }

    #[test]
    fn a_bad_id_in_json_is_an_error_that_says_what_was_expected() {
        let error = serde_json::from_str::<ReleaseId>("\"../etc\"").unwrap_err().to_string();
        assert!(error.contains("release id") && error.contains("expected"), "{error}");
    }
}
