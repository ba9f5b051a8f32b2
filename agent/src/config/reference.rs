//! References to secrets. A document holds only these, never a secret.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a secret lives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecretRef {
    /// Secret Manager: `sm://PROJECT/SECRET[/VERSION]`.
    Manager {
        /// Project id or number.
        project: String,
        /// Secret id.
        secret: String,
        /// A version number, an alias, or `latest`.
        version: String,
    },
    /// A file only root can read, for a machine without Google Cloud (systemd
    /// credentials, tmpfs): `file:///run/credentials/...`.
    File(PathBuf),
}

/// The text is not a reference. It may be a secret written by mistake, so it
/// is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a secret reference: expected sm://PROJECT/SECRET[/VERSION] or file:///PATH (a secret itself never belongs in this document)"
)]
pub struct NotAReference;

fn is_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c))
}

impl FromStr for SecretRef {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, NotAReference> {
        if let Some(path) = text.strip_prefix("file://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self::File(path)) } else { Err(NotAReference) };
        }
        let parts: Vec<&str> =
            text.strip_prefix("sm://").ok_or(NotAReference)?.split('/').collect();
        let (project, secret, version) = match parts.as_slice() {
            [project, secret] => (project, secret, &"latest"),
            [project, secret, version] => (project, secret, version),
            _ => return Err(NotAReference),
        };
        if [project, secret, version].into_iter().all(|part| is_id(part)) {
            Ok(Self::Manager {
                project: (*project).to_owned(),
                secret: (*secret).to_owned(),
                version: (*version).to_owned(),
            })
        } else {
            Err(NotAReference)
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manager { project, secret, version } => {
                write!(f, "sm://{project}/{secret}/{version}")
            }
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_parse_and_print() {
        for (text, printed) in [
            ("sm://p/dify-secret-key", "sm://p/dify-secret-key/latest"),
            ("sm://123/s/7", "sm://123/s/7"),
            ("file:///run/credentials/key", "file:///run/credentials/key"),
        ] {
            let parsed: SecretRef = text.parse().expect(text);
            assert_eq!(parsed.to_string(), printed);
        }
    }

    #[test]
    fn a_secret_written_by_mistake_is_refused_and_not_repeated() {
        for text in ["hunter2hunter2", "sm://", "sm://p/s/1/x", "sm://p/a b", "file://relative"] {
            let error = text.parse::<SecretRef>().expect_err(text).to_string();
            assert!(!error.contains("hunter2"));
        }
    }
}
