//! Readers of single values: a node of the document in, a typed value or what
//! was expected out. They never repeat what they were given.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use dify_common::ids::{NodeId, ReleaseId};
use dify_common::telemetry::LogMode;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::SecretRef;
use super::document::Node;
use super::section::{Expected, nearest};
use super::settings::{NodeNetwork, PostgresTls, RedisTls};

/// Bytes left for a folder when the sockets in it must stay below the kernel's
/// 108 (unix(7), `sun_path`).
const MAX_RUN_PATH: usize = 80;

/// `fn(&Node)` out of a check on text.
fn text<T>(
    node: &Node,
    expected: &str,
    check: impl FnOnce(&str) -> Option<T>,
) -> Result<T, Expected> {
    let found = match node {
        Node::Text(text) => check(text),
        Node::Empty
        | Node::Switch(_)
        | Node::Whole(_)
        | Node::Fraction
        | Node::List
        | Node::Section(_)
        | Node::Tagged => None,
    };
    found.ok_or_else(|| match node {
        // `release: 1.14` and `name: 2024` are numbers to YAML.
        Node::Whole(_) | Node::Fraction | Node::Switch(_) => {
            format!("{expected}; put a text that reads as a number or a switch in quotes")
        }
        Node::Empty | Node::Text(_) | Node::List | Node::Section(_) | Node::Tagged => {
            expected.to_owned()
        }
    })
}

fn word<T: Copy>(node: &Node, words: &[(&'static str, T)]) -> Result<T, Expected> {
    let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let expected = format!("one of {}", all.join(", "));
    let found = text(node, &expected, |text| {
        let (_, value) = words.iter().find(|(word, _)| *word == text)?;
        Some(*value)
    });
    found.map_err(|expected| match node {
        Node::Text(text) => match nearest(text, all.into_iter()) {
            Some(meant) => format!("{expected} (did you mean {meant}?)"),
            None => expected,
        },
        Node::Empty
        | Node::Switch(_)
        | Node::Whole(_)
        | Node::Fraction
        | Node::List
        | Node::Section(_)
        | Node::Tagged => expected,
    })
}

fn whole(node: &Node, least: u32, most: u32) -> Result<u32, Expected> {
    match node {
        Node::Whole(number) => {
            u32::try_from(*number).ok().filter(|number| (least..=most).contains(number))
        }
        Node::Empty
        | Node::Switch(_)
        | Node::Fraction
        | Node::Text(_)
        | Node::List
        | Node::Section(_)
        | Node::Tagged => None,
    }
    .ok_or_else(|| format!("a whole number from {least} to {most}"))
}

fn count(node: &Node, most: u32) -> Result<NonZeroU32, Expected> {
    whole(node, 1, most).map(|number| NonZeroU32::new(number).expect("checked to be at least 1"))
}

pub(super) fn schema(node: &Node) -> Result<(), Expected> {
    whole(node, 1, 1).map(|_| ()).map_err(|_| "1, the only schema this version knows".to_owned())
}

pub(super) fn switch(node: &Node) -> Result<bool, Expected> {
    if let Node::Switch(value) = node { Ok(*value) } else { Err("true or false".to_owned()) }
}

pub(super) fn port(node: &Node) -> Result<u16, Expected> {
    whole(node, 1, u16::MAX.into())
        .map(|port| u16::try_from(port).expect("checked to be at most 65535"))
}

pub(super) fn machines(node: &Node) -> Result<NonZeroU32, Expected> {
    count(node, 1_000)
}

pub(super) fn processes(node: &Node) -> Result<NonZeroU32, Expected> {
    count(node, 256)
}

pub(super) fn connections(node: &Node) -> Result<NonZeroU32, Expected> {
    count(node, 10_000)
}

pub(super) fn overflow(node: &Node) -> Result<u32, Expected> {
    whole(node, 0, 10_000)
}

pub(super) fn pulls(node: &Node) -> Result<NonZeroU32, Expected> {
    count(node, 32)
}

/// The expected text of an id is ours: the id's own error quotes what it got.
fn id<T: FromStr>(node: &Node, expected: &str) -> Result<T, Expected> {
    text(node, expected, |text| text.parse().ok())
}

pub(super) fn node_id(node: &Node) -> Result<NodeId, Expected> {
    id(node, "a node id: 1 to 63 of a-z, 0-9 and '-', starting with a letter, not ending with '-'")
}

pub(super) fn release(node: &Node) -> Result<ReleaseId, Expected> {
    id(node, "a release id such as 1.14.2")
}

/// A DNS host name by RFC 1123. All-numeric names are meant as addresses.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.len() <= 253 && text.split('.').all(label) && !numeric(text)
}

fn is_host(text: &str) -> bool {
    is_host_name(text) || text.parse::<Ipv4Addr>().is_ok()
}

/// `HOST` or `HOST:PORT`.
fn is_authority(text: &str) -> bool {
    match text.split_once(':') {
        Some((host, port)) => is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0),
        None => is_host(text),
    }
}

pub(super) fn host(node: &Node) -> Result<String, Expected> {
    text(node, "a host name or IPv4 address, without scheme or port", |text| {
        is_host(text).then(|| text.to_ascii_lowercase())
    })
}

pub(super) fn public_host(node: &Node) -> Result<String, Expected> {
    text(
        node,
        "the host name users type, such as dify.example.com, without scheme, port or path",
        |text| is_host_name(text).then(|| text.to_ascii_lowercase()),
    )
}

pub(super) fn authority(node: &Node) -> Result<String, Expected> {
    text(node, "HOST:PORT", |text| {
        (text.contains(':') && is_authority(text)).then(|| text.to_owned())
    })
}

pub(super) fn base_url(node: &Node) -> Result<String, Expected> {
    text(
        node,
        "an http:// or https:// URL of host, port and path, without a trailing slash",
        |text| {
            let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
            let (authority, path) = rest.split_once('/').unwrap_or((rest, "path"));
            (is_authority(authority) && is_url_path(path)).then(|| text.to_owned())
        },
    )
}

/// Segments of what needs no escape, none empty.
fn is_url_path(path: &str) -> bool {
    path.split('/').all(|segment| {
        !segment.is_empty()
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    })
}

pub(super) fn mirror(node: &Node) -> Result<String, Expected> {
    text(node, "HOST[:PORT][/PATH] of a registry, without scheme or trailing slash", |text| {
        let (authority, path) = text.split_once('/').unwrap_or((text, "path"));
        (is_authority(authority) && is_url_path(path)).then(|| text.to_owned())
    })
}

/// A PostgreSQL role or database. Stricter than PostgreSQL: Dify's plugin
/// daemon joins its connection string with spaces and quotes nothing.
pub(super) fn identifier(node: &Node) -> Result<String, Expected> {
    text(node, "1 to 63 letters, digits, '_', '-', '.' or '@'", |text| {
        let fits = (1..=63).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.@".contains(&byte));
        fits.then(|| text.to_owned())
    })
}

/// Cloud Storage, "Bucket naming": 3 to 63 characters, up to 222 with dots.
pub(super) fn bucket(node: &Node) -> Result<String, Expected> {
    text(
        node,
        "a bucket name without gs://: 3 to 63 of a-z, 0-9, '-', '_' and '.', \
         starting and ending with a letter or digit",
        |text| {
            let edge = |byte: Option<u8>| {
                byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            };
            let parts_fit = text.split('.').all(|part| (1..=63).contains(&part.len()));
            let fits = (3..=222).contains(&text.len())
                && parts_fit
                && edge(text.bytes().next())
                && edge(text.bytes().last())
                && text
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
            fits.then(|| text.to_owned())
        },
    )
}

pub(super) fn postgres_tls(node: &Node) -> Result<PostgresTls, Expected> {
    word(
        node,
        &[
            ("verify-ca", PostgresTls::VerifyCa),
            ("require", PostgresTls::Require),
            ("disable", PostgresTls::Disable),
        ],
    )
}

pub(super) fn redis_tls(node: &Node) -> Result<RedisTls, Expected> {
    word(
        node,
        &[
            ("verify", RedisTls::Verify),
            ("no-verify", RedisTls::NoVerify),
            ("disable", RedisTls::Disable),
        ],
    )
}

pub(super) fn secret(node: &Node) -> Result<SecretRef, Expected> {
    id(
        node,
        "a reference, sm://PROJECT/SECRET[/VERSION] or file:///PATH; \
         a secret itself never belongs in this document",
    )
}

pub(super) fn certificates(node: &Node) -> Result<String, Expected> {
    text(node, "PEM text of one or more CA certificates and no private key", |pem| {
        let no_key = PrivateKeyDer::pem_slice_iter(pem.as_bytes()).next().is_none();
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            store.add(certificate.ok()?).ok()?;
        }
        // What the parser passes over in silence (a cut-off block) must not
        // leave a CA out: every block that begins counts.
        let begun = pem.matches("-----BEGIN ").count();
        let whole = no_key && !store.is_empty() && store.len() == begun;
        whole.then(|| format!("{}\n", pem.trim()))
    })
}

pub(super) fn subnet(node: &Node) -> Result<NodeNetwork, Expected> {
    text(
        node,
        "a private /24 such as 10.213.7.0/24 (within 10/8, 172.16/12, 192.168/16 or 100.64/10)",
        |text| {
            let base: Ipv4Addr = text.strip_suffix("/24")?.parse().ok()?;
            let [a, b, _, last] = base.octets();
            let shared = a == 100 && (64..128).contains(&b);
            ((base.is_private() || shared) && last == 0).then_some(NodeNetwork { base })
        },
    )
}

/// At most an hour: the longest connection draining of Google's load balancer,
/// and what the shipped systemd unit waits for.
pub(super) fn duration(node: &Node) -> Result<Duration, Expected> {
    text(node, "a duration with its unit, such as 30s or 25m, at most 1h", |text| {
        let duration = humantime::parse_duration(text).ok()?;
        let unit = text.bytes().any(|byte| byte.is_ascii_alphabetic());
        (unit && duration <= Duration::from_hours(1)).then_some(duration)
    })
}

/// How long a fault is put up with: never not at all.
pub(super) fn patience(node: &Node) -> Result<Duration, Expected> {
    duration(node)
        .ok()
        .filter(|duration| *duration >= Duration::from_secs(1))
        .ok_or_else(|| "a duration with its unit, such as 2m, from 1s to 1h".to_owned())
}

pub(super) fn log_mode(node: &Node) -> Result<LogMode, Expected> {
    word(
        node,
        &[
            ("auto", LogMode::Auto),
            ("journald", LogMode::Journald),
            ("json", LogMode::Json),
            ("text", LogMode::Text),
        ],
    )
}

/// The part of tracing's directive syntax that names modules and levels.
pub(super) fn filter(node: &Node) -> Result<String, Expected> {
    text(
        node,
        "LEVEL or MODULE=LEVEL, joined by commas; levels are off, error, warn, info, debug, trace",
        |text| {
            let fits = text.split(',').all(|directive| {
                let (module, level) = directive.split_once('=').unwrap_or(("all", directive));
                !module.is_empty()
                    && module
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte))
                    && ["off", "error", "warn", "info", "debug", "trace"].contains(&level)
            });
            fits.then(|| text.to_owned())
        },
    )
}

pub(super) fn path(node: &Node) -> Result<PathBuf, Expected> {
    text(node, "an absolute path without '..' and spaces", |text| {
        let fits = text.starts_with('/')
            && text.split('/').all(|part| part != "..")
            && !text.contains(|c: char| c.is_whitespace() || c.is_control());
        fits.then(|| PathBuf::from(text))
    })
}

pub(super) fn run_path(node: &Node) -> Result<PathBuf, Expected> {
    path(node)
        .ok()
        .filter(|path| path.as_os_str().len() <= MAX_RUN_PATH)
        .ok_or_else(|| {
            format!(
                "an absolute path of at most {MAX_RUN_PATH} characters, as names of unix sockets are short"
            )
        })
}

pub(super) fn listen(node: &Node) -> Result<SocketAddr, Expected> {
    text(node, "ADDRESS:PORT, such as 10.0.0.5:1081", |text| text.parse().ok())
}

/// The value of an environment variable: text, or what needs no quotes.
pub(super) fn variable(node: &Node) -> Result<String, Expected> {
    let refused = match node {
        Node::Text(text) if text.contains(char::is_control) => {
            "a text without line breaks and other control characters"
        }
        Node::Text(text) if text.starts_with("sm://") || has_credentials(text) => {
            "no secret: those go under `secrets` and reach a service by its manifest"
        }
        Node::Text(text) => return Ok(text.clone()),
        Node::Whole(number) => return Ok(number.to_string()),
        Node::Switch(value) => return Ok(value.to_string()),
        Node::Empty | Node::Fraction | Node::List | Node::Section(_) | Node::Tagged => {
            "a text; put fractions and empty values in quotes"
        }
    };
    Err(refused.to_owned())
}

/// A URL with `user:password@` in it.
fn has_credentials(text: &str) -> bool {
    text.split("://").skip(1).any(|rest| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        authority.contains('@')
    })
}
