//! Secrets, fetched by reference and held in memory only. Nothing here writes
//! one anywhere, and every error names the reference, never the value.
//!
//! `manager` reads Google Secret Manager, `file` a file that only root can
//! read. A value is text: Dify's containers take secrets as environment
//! variables, which carry neither other bytes nor a NUL.

mod error;
mod file;
mod manager;

pub use error::{SecretError, SecretErrors};
pub use manager::Manager;

use std::collections::BTreeMap;

use dify_common::secret::{ExposeSecret, Secret};
use dify_common::wire::status::Finding;
use futures_util::{StreamExt, stream};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::SecretRef;
use crate::config::settings::SecretName;

/// References read at once: few enough not to look like an attack to the
/// quota of a project when a whole fleet boots.
const AT_ONCE: usize = 4;
/// Values shorter than this are not looked for in texts: they would hide
/// ordinary words.
const SHORTEST_SCRUBBED: usize = 6;
/// What Python's `quote` and `quote_plus` encode: all but letters, digits, `_.-~`.
const QUOTED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'.').remove(b'-').remove(b'~');

/// The values of one boot, by name.
#[derive(Debug, Default, Clone)]
pub struct Secrets {
    values: BTreeMap<SecretName, Secret>,
    versions: BTreeMap<SecretName, String>,
    findings: Vec<Finding>,
}

impl Secrets {
    /// The value of `name`, when the document refers to one.
    pub fn get(&self, name: SecretName) -> Option<&Secret> {
        self.values.get(&name)
    }

    /// The values by name, for the wiring.
    pub fn values(&self) -> &BTreeMap<SecretName, Secret> {
        &self.values
    }

    /// Names that have a value.
    pub fn names(&self) -> impl Iterator<Item = SecretName> {
        self.values.keys().copied()
    }

    /// The version each reference stood for, such as
    /// `projects/7/secrets/dify-redis/versions/3`; a path for a file.
    pub fn versions(&self) -> &BTreeMap<SecretName, String> {
        &self.versions
    }

    /// What an operator should know about how they are kept.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// `text` with every value, plain or as it stands in a URL, replaced. For
    /// output of others (a container's log lines) before it is kept or shown.
    pub fn scrub(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        for secret in self.values.values() {
            let value = secret.expose_secret();
            if value.len() < SHORTEST_SCRUBBED {
                continue;
            }
            let quoted = utf8_percent_encode(value, QUOTED).to_string();
            let quoted_plus = quoted.replace("%20", "+");
            for form in [value, quoted.as_str(), quoted_plus.as_str()] {
                if clean.contains(form) {
                    clean = clean.replace(form, "[REDACTED]");
                }
            }
        }
        clean
    }
}

impl FromIterator<(SecretName, Secret)> for Secrets {
    fn from_iter<I: IntoIterator<Item = (SecretName, Secret)>>(pairs: I) -> Self {
        Self { values: pairs.into_iter().collect(), ..Self::default() }
    }
}

/// What one reference led to, before it is checked.
struct Raw {
    bytes: Vec<u8>,
    version: String,
    /// A file others on this machine can read.
    exposed: Option<String>,
}

/// Reads every reference, a few at a time, and reports all that failed at once.
/// `manager` may be `None` where every reference is a file.
pub async fn fetch_all(
    references: &BTreeMap<SecretName, SecretRef>,
    manager: Option<&Manager>,
) -> Result<Secrets, SecretErrors> {
    // Collected first: a stream that borrows its items makes the future fail
    // to be `Send` for every lifetime.
    let reads: Vec<_> = references
        .iter()
        .map(|(name, reference)| async move { (*name, read(reference, manager).await) })
        .collect();
    let results: Vec<_> = stream::iter(reads).buffer_unordered(AT_ONCE).collect().await;
    let mut secrets = Secrets::default();
    let mut failed = BTreeMap::new();
    for (name, result) in results {
        let taken = result.and_then(|raw| secrets.take(name, &references[&name], raw));
        if let Err(error) = taken {
            failed.insert(name, error);
        }
    }
    secrets.findings.sort_by(|a, b| a.message.cmp(&b.message));
    match SecretErrors::try_new(failed) {
        Some(errors) => Err(errors),
        None => Ok(secrets),
    }
}

async fn read(reference: &SecretRef, manager: Option<&Manager>) -> Result<Raw, SecretError> {
    match reference {
        SecretRef::File(path) => file::read(path),
        SecretRef::Manager { .. } => {
            let manager =
                manager.ok_or_else(|| SecretError::NoIdentity { reference: reference.clone() })?;
            manager.access(reference).await
        }
    }
}

impl Secrets {
    fn take(
        &mut self,
        name: SecretName,
        reference: &SecretRef,
        raw: Raw,
    ) -> Result<(), SecretError> {
        let not_text = |why| SecretError::NotText { reference: reference.clone(), why };
        let text = String::from_utf8(raw.bytes).map_err(|_| not_text("not UTF-8"))?;
        // `echo secret | gcloud secrets create --data-file=-` stores a line end
        // that nobody means. Every node strips it the same way, so the value
        // stays one value; whoever reads the secret elsewhere should know.
        let value = text.strip_suffix('\n').unwrap_or(&text);
        let value = value.strip_suffix('\r').unwrap_or(value);
        if value.is_empty() {
            return Err(not_text("empty"));
        }
        if value.contains('\0') {
            return Err(not_text("text with a NUL byte in it"));
        }
        if value.len() < text.len() {
            self.findings.push(Finding {
                code: "secret-line-end".to_owned(),
                message: format!(
                    "{reference} ends with a line end, which is left out; store it without one \
                     (printf instead of echo), or other readers will disagree with this fleet"
                ),
            });
        }
        if let Some(exposed) = raw.exposed {
            self.findings.push(Finding { code: "secret-file-mode".to_owned(), message: exposed });
        }
        self.values.insert(name, Secret::from(value));
        self.versions.insert(name, raw.version);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
