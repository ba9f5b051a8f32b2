//! Which bytes a release is: `<version>.lock.yaml`, written by
//! `dify-agent releases lock` from a registry. None is shipped: a digest that
//! nobody resolved would be a guess.

use std::collections::BTreeMap;

use dify_common::ids::{Digest, ReleaseId};
use serde::{Deserialize, Serialize};

/// Digests of one release's images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The release.
    pub release: ReleaseId,
    /// `repo:tag` as in the manifest, and what it stood for.
    pub images: BTreeMap<String, Locked>,
}

/// What a tag stood for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// Content address of the manifest or index.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Registry that was asked, such as `registry-1.docker.io`.
    pub registry: String,
    /// RFC 3339.
    pub resolved_at: String,
}

impl Lock {
    /// An empty lock.
    pub fn new(release: ReleaseId) -> Self {
        Self { release, images: BTreeMap::new() }
    }

    /// Reads a lock.
    pub fn parse(text: &str) -> Result<Self, serde_yaml::Error> {
        serde_yaml::from_str(text)
    }

    /// The text of the file, with a line that says what it is.
    pub fn to_yaml(&self) -> String {
        let body = serde_yaml::to_string(self).expect("maps of strings are YAML");
        format!(
            "# Written by `dify-agent releases lock`. Do not edit: resolve again instead.\n{body}"
        )
    }

    /// `repo@digest` of a manifest's `repo:tag`, if it is locked.
    pub fn reference(&self, image: &str) -> Option<String> {
        let locked = self.images.get(image)?;
        Some(format!("{}@{}", repository(image), locked.digest))
    }
}

/// The part of `repo:tag` before the tag. A colon in a registry's host (its
/// port) is not a tag's.
pub fn repository(image: &str) -> &str {
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        Some(_) | None => image,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> Lock {
        let mut lock = Lock::new("1.14.2".parse().expect("an id"));
        lock.images.insert(
            "langgenius/dify-api:1.14.2".into(),
            Locked {
                digest: format!("sha256:{}", "0".repeat(64)).parse().expect("a digest"),
                media_type: "application/vnd.oci.image.index.v1+json".into(),
                registry: "127.0.0.1:5000".into(),
                resolved_at: "2026-11-22T00:00:00Z".into(),
            },
        );
        lock
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(Lock::parse(&lock().to_yaml()).expect("reads"), lock());
    }

    #[test]
    fn a_reference_has_the_digest_in_place_of_the_tag() {
        assert_eq!(
            lock().reference("langgenius/dify-api:1.14.2"),
            Some(format!("langgenius/dify-api@sha256:{}", "0".repeat(64)))
        );
        assert_eq!(lock().reference("langgenius/dify-api:1.15.0"), None);
        assert_eq!(repository("localhost:5000/a/b:1"), "localhost:5000/a/b");
        assert_eq!(repository("localhost:5000/a/b"), "localhost:5000/a/b");
    }

    #[test]
    fn a_lock_with_a_bad_digest_or_an_unknown_key_is_refused() {
        for broken in
            [lock().to_yaml().replace("sha256:0", "sha256:x"), lock().to_yaml() + "extra: 1\n"]
        {
            Lock::parse(&broken).expect_err("is refused");
        }
    }
}
