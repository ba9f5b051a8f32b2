//! Image references as Docker reads them: `[host[:port]/]path[:tag][@digest]`
//! (distribution `reference` package: the first part is a host only if it has
//! a dot or a colon, is `localhost`, or has an upper-case letter; without a
//! host it is docker.io, and a single word there lives in `library/`).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use dify_common::ids::Digest;

/// Docker's default registry, as written in references.
pub const DOCKER_HUB: &str = "docker.io";

/// A reference, complete: nothing is left to a default any more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not an image reference: {why}")]
pub struct InvalidReference {
    found: String,
    why: &'static str,
}

impl Reference {
    /// Registry as written: `docker.io`, `127.0.0.1:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Repository below the host: `library/redis`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; `latest` when neither tag nor digest was written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest. Where there are both, it decides and the tag is decoration.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `host/path`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// As the engine lists it in an image's `RepoDigests`: docker.io and
    /// `library/` are left out there.
    pub fn familiar_repository(&self) -> String {
        if self.host == DOCKER_HUB {
            self.path.strip_prefix("library/").unwrap_or(&self.path).to_owned()
        } else {
            self.repository()
        }
    }

    /// The same repository pinned to `digest`, without a tag.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { host: self.host.clone(), path: self.path.clone(), tag: None, digest: Some(digest) }
    }

    /// What the registry is asked for: the digest, else the tag.
    pub fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }

    /// The same image behind `mirror` (`host[/prefix]`): what follows the
    /// original host is kept, as pull-through repositories of Artifact
    /// Registry expect it (`HOST/PROJECT/REPO/library/redis`).
    pub fn mirrored(&self, mirror: &str) -> Result<Self, InvalidReference> {
        let suffix = match (&self.tag, &self.digest) {
            (tag, Some(digest)) => {
                format!("{}@{digest}", tag.as_ref().map_or(String::new(), |tag| format!(":{tag}")))
            }
            (Some(tag), None) => format!(":{tag}"),
            (None, None) => String::new(),
        };
        let mirror = mirror.trim_end_matches('/');
        if !is_host(mirror.split('/').next().unwrap_or_default()) {
            let why = "a mirror starts with a registry host, such as europe-west3-docker.pkg.dev/PROJECT/REPOSITORY";
            return Err(InvalidReference { found: mirror.to_owned(), why });
        }
        format!("{mirror}/{}{suffix}", self.path).parse()
    }

    /// The host without its port.
    pub fn host_name(&self) -> &str {
        match self.host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => &self.host,
        }
    }

    /// Docker speaks plain HTTP to registries on the loopback only (moby
    /// `registry/config.go`: 127.0.0.0/8 and ::1 are insecure by default).
    pub fn is_loopback(&self) -> bool {
        let name = self.host_name().trim_start_matches('[').trim_end_matches(']');
        name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    /// Google's registries take the VM's access token; no other ever sees it.
    pub fn is_google(&self) -> bool {
        let name = self.host_name();
        name == "gcr.io"
            || name.ends_with(".gcr.io")
            || name == "pkg.dev"
            || name.ends_with(".pkg.dev")
    }
}

/// Whether the first part of a reference names a registry.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':'])
        || first == "localhost"
        || first.chars().any(|c| c.is_ascii_uppercase())
}

fn is_valid_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((ip, rest)) if ip.parse::<IpAddr>().is_ok() => ("v6", rest.strip_prefix(':')),
        Some(_) => return false,
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_component(part: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    part.bytes().all(|b| inner(b) || b"._-".contains(&b))
        && part.bytes().next().is_some_and(inner)
        && part.bytes().last().is_some_and(inner)
        && !part.contains("..")
        && !part.contains("___")
}

fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |why| InvalidReference { found: text.chars().take(200).collect(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|_| invalid("after '@' comes sha256: and 64 hex digits"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag))
                if !tag.contains('/') && (name.contains('/') || !is_port_only(rest)) =>
            {
                (name, Some(tag))
            }
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("a tag is up to 128 letters, digits, '.', '_' and '-'"));
        }
        let (host, path) = match name.split_once('/') {
            Some((first, path)) if is_host(first) => {
                // Docker's old name for its registry.
                let host = if first == "index.docker.io" { DOCKER_HUB } else { first };
                (host, path.to_owned())
            }
            Some(_) => (DOCKER_HUB, name.to_owned()),
            None => (DOCKER_HUB, format!("library/{name}")),
        };
        if !is_valid_host(host) {
            return Err(invalid("the registry host is not a host name with an optional port"));
        }
        let path = if host == DOCKER_HUB && !path.contains('/') {
            format!("library/{path}")
        } else {
            path
        };
        if path.len() > 255 || !path.split('/').all(is_component) {
            return Err(invalid(
                "a repository is lower-case words of a-z, 0-9, '.', '_', '-' joined by '/'",
            ));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { host: host.to_owned(), path, tag, digest })
    }
}

/// `[::1]:5000` and the like carry a port, never a tag.
fn is_port_only(text: &str) -> bool {
    text.starts_with('[')
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn reference(text: &str) -> Reference {
        text.parse().expect(text)
    }

    #[test]
    fn references_are_read_as_docker_reads_them() {
        for (text, printed, familiar) in [
            ("redis", "docker.io/library/redis:latest", "redis"),
            ("redis:7", "docker.io/library/redis:7", "redis"),
            ("docker.io/redis:7", "docker.io/library/redis:7", "redis"),
            ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b"),
            (
                "langgenius/dify-api:1.14.2",
                "docker.io/langgenius/dify-api:1.14.2",
                "langgenius/dify-api",
            ),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b"),
            ("localhost/a", "localhost/a:latest", "localhost/a"),
            ("localhost:5000/a", "localhost:5000/a:latest", "localhost:5000/a"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b", "[::1]:5000/a"),
            ("gcr.io/p/x:1", "gcr.io/p/x:1", "gcr.io/p/x"),
            // Upper case can only be a host.
            ("Registry/a", "Registry/a:latest", "Registry/a"),
        ] {
            let parsed = reference(text);
            assert_eq!(parsed.to_string(), printed, "{text}");
            assert_eq!(parsed.familiar_repository(), familiar, "{text}");
            assert_eq!(reference(printed), parsed, "printing is stable");
        }
        let pinned = reference(&format!("a/b:1@sha256:{HEX}"));
        assert_eq!((pinned.tag(), pinned.target()), (Some("1"), format!("sha256:{HEX}").as_str()));
        assert_eq!(reference(&format!("a/b@sha256:{HEX}")).tag(), None);
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "",
            "/",
            "a//b",
            "a/B",
            "a:",
            "a:b:c",
            "a b",
            "a@sha256:12",
            "http://a/b",
            "a/../b",
            "a.b:x/y",
            "-a/b",
            "[::g]:1/a",
            "a/b:-t",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn mirrors_keep_path_tag_and_digest() {
        let mirror = "europe-west3-docker.pkg.dev/p/dockerhub/";
        for (text, expected) in [
            ("redis:7", "europe-west3-docker.pkg.dev/p/dockerhub/library/redis:7"),
            (
                "langgenius/dify-web:1",
                "europe-west3-docker.pkg.dev/p/dockerhub/langgenius/dify-web:1",
            ),
            ("127.0.0.1:5000/a/b:c", "europe-west3-docker.pkg.dev/p/dockerhub/a/b:c"),
        ] {
            assert_eq!(reference(text).mirrored(mirror).expect(text).to_string(), expected);
        }
        let pinned =
            reference(&format!("a/b:1@sha256:{HEX}")).mirrored("m.example:443/x").expect("valid");
        assert_eq!(pinned.to_string(), format!("m.example:443/x/a/b:1@sha256:{HEX}"));
        assert!(reference("a/b").mirrored("no-host/x").is_err());
    }

    #[test]
    fn loopback_and_google_are_recognised_by_host_alone() {
        for (text, loopback, google) in [
            ("127.0.0.1:5000/a", true, false),
            ("127.9.8.7/a", true, false),
            ("localhost:1/a", true, false),
            ("[::1]:5000/a", true, false),
            ("gcr.io/p/a", false, true),
            ("eu.gcr.io/p/a", false, true),
            ("europe-west3-docker.pkg.dev/p/r/a", false, true),
            ("evilgcr.io/a", false, false),
            ("pkg.dev.evil.example/a", false, false),
            ("gcr.io.evil.example/a", false, false),
            ("redis", false, false),
        ] {
            let parsed = reference(text);
            assert_eq!((parsed.is_loopback(), parsed.is_google()), (loopback, google), "{text}");
        }
    }
}
