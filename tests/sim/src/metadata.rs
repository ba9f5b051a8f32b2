//! The metadata server of one VM: `http://169.254.169.254/computeMetadata/v1/`.
//!
//! Rules, from Google's documentation of querying metadata and from answers published by others:
//! - `Metadata-Flavor: Google` is required (403 else), `X-Forwarded-For` is refused (403);
//! - a directory lists its names; without its slash it redirects; a slash after a value is 404;
//! - `recursive=true` gives JSON, `alt=json` and `wait_for_change` on a plain directory are 400;
//! - the ETag depends on content and on `recursive` alone, so it comes back when the content does;
//! - `wait_for_change` answers at once when `last_etag` is not the present one, else at the next change or, when
//!   `timeout_sec` is over, with what is there; a deletion wakes with 404. Without `timeout_sec` it waits on (inferred).

mod credentials;
mod guest;
mod tree;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use http::{Method, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::{
    Instance, Project, Service,
    clock::Clock,
    iam::Iam,
    locked,
    server::Answer,
    signing::Signer,
    wire::{self, Call, Reply},
};
use credentials::CachedToken;
use guest::Guest;
use tree::Node;

/// What all metadata servers of a project share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) project: Project,
    pub(crate) attributes: Mutex<BTreeMap<String, String>>,
    /// Counts changes; every waiter listens.
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) iam: Iam,
    pub(crate) signer: Arc<Signer>,
    pub(crate) clock: Clock,
}

/// One VM's metadata.
#[derive(Debug)]
pub(crate) struct Metadata {
    common: Arc<Common>,
    state: Mutex<State>,
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct State {
    instance: Instance,
    guest: Guest,
    token: Option<CachedToken>,
}

/// A value on its way out.
struct Found {
    body: String,
    content_type: &'static str,
    etag: String,
}

/// Counts a waiting request as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Answer for Metadata {
    fn service(&self, _path: &str) -> Service {
        Service::Metadata
    }

    fn refuse(&self, _service: Service, status: StatusCode) -> Reply {
        page(status, status.canonical_reason().unwrap_or("Error"))
    }

    fn answer(&self, _service: Service, call: Call) -> BoxFuture<'_, Reply> {
        async move {
            let mut reply = self.respond(&call).await;
            wire::set(&mut reply, "metadata-flavor", "Google");
            wire::set(&mut reply, "server", "Metadata Server for VM");
            wire::set(&mut reply, "x-xss-protection", "0");
            wire::set(&mut reply, "x-frame-options", "SAMEORIGIN");
            reply
        }
        .boxed()
    }
}

impl Metadata {
    pub(crate) fn new(common: Arc<Common>, instance: Instance) -> Self {
        let state = State { instance, guest: Guest::default(), token: None };
        Self { common, state: Mutex::new(state), waiting: AtomicUsize::new(0) }
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Instance)) {
        change(&mut locked(&self.state).instance);
        self.changed();
    }

    pub(crate) fn guest_attributes(&self) -> BTreeMap<String, String> {
        let state = locked(&self.state);
        let flat = |(namespace, keys): (&String, &BTreeMap<String, String>)| {
            keys.iter()
                .map(|(key, value)| (format!("{namespace}/{key}"), value.clone()))
                .collect::<Vec<_>>()
        };
        state.guest.values.iter().flat_map(flat).collect()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    fn changed(&self) {
        self.common.changes.send_modify(|count| *count += 1);
    }

    async fn respond(&self, call: &Call) -> Reply {
        let parts = call.parts();
        match parts.as_slice() {
            // The root answers without the header: Google's libraries use it to find out where they run.
            [] => {
                return wire::reply(StatusCode::OK, "application/text", "0.1/\ncomputeMetadata/\n");
            }
            _ if call.header("x-forwarded-for").is_some() => {
                return page(
                    StatusCode::FORBIDDEN,
                    "Requests with an X-Forwarded-For header are forbidden.",
                );
            }
            _ if call.header("metadata-flavor") != Some("Google") => {
                return page(StatusCode::FORBIDDEN, "Missing Metadata-Flavor:Google header.");
            }
            ["computeMetadata"] => return wire::reply(StatusCode::OK, "application/text", "v1/\n"),
            _ => {}
        }
        let ["computeMetadata", "v1", place @ ..] = parts.as_slice() else {
            return not_found();
        };
        if let ["instance", "guest-attributes", rest @ ..] = place {
            if !self.guest_attributes_enabled() {
                return wire::reply(
                    StatusCode::FORBIDDEN,
                    "text/html; charset=UTF-8",
                    "Guest attributes endpoint access is disabled.",
                );
            }
            if call.method != Method::GET && call.method != Method::HEAD {
                return self.write_guest(call, rest);
            }
            if !locked(&self.state).guest.within_rate(self.common.clock.now()) {
                return page(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable");
            }
        }
        if call.method != Method::GET && call.method != Method::HEAD {
            return page(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        }
        if let ["instance", "service-accounts", account, leaf @ ("token" | "identity")] = place
            && !call.path.ends_with('/')
        {
            return self.credential(call, account, leaf);
        }
        self.read(call, place).await
    }

    async fn read(&self, call: &Call, place: &[&str]) -> Reply {
        // Subscribed before the first look, so that no change between look and wait is missed.
        let mut changes = self.common.changes.subscribe();
        let first = match self.find(call, place) {
            Ok(found) => found,
            Err(reply) => return *reply,
        };
        if call.query("wait_for_change").is_none_or(|value| !value.eq_ignore_ascii_case("true")) {
            return first.reply();
        }
        let known = call.query("last_etag").unwrap_or(&first.etag).to_owned();
        if first.etag != known {
            return first.reply();
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(&self.waiting);
        let changed = async {
            loop {
                // The sender lives as long as we do.
                let _ = changes.changed().await;
                match self.find(call, place) {
                    Ok(found) if found.etag == known => {}
                    other => return other,
                }
            }
        };
        let outcome = match call.number("timeout_sec") {
            Some(seconds) => {
                match tokio::time::timeout(Duration::from_secs(seconds), changed).await {
                    Ok(outcome) => outcome,
                    Err(_) => self.find(call, place),
                }
            }
            None => changed.await,
        };
        outcome.map_or_else(|reply| *reply, Found::reply)
    }

    fn find(&self, call: &Call, place: &[&str]) -> Result<Found, Box<Reply>> {
        let document = {
            let attributes = locked(&self.common.attributes).clone();
            let state = locked(&self.state);
            tree::document(&self.common.project, &attributes, &state.instance, &state.guest)
        };
        let node = document.at(place).ok_or_else(|| Box::new(not_found()))?;
        let flag =
            |name: &str| call.query(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let (slash, recursive, as_json) =
            (call.path.ends_with('/'), flag("recursive"), call.query("alt") == Some("json"));
        if node.is_directory() && !slash {
            let query = call
                .target
                .split_once('?')
                .map(|(_, query)| format!("?{query}"))
                .unwrap_or_default();
            let mut reply = page(StatusCode::MOVED_PERMANENTLY, "Moved Permanently");
            wire::set(&mut reply, "location", &format!("{}{}/{query}", call.origin(), call.path));
            return Err(Box::new(reply));
        }
        if (!node.is_directory() && slash) || *node == Node::Hidden {
            return Err(Box::new(not_found()));
        }
        if node.is_directory() && !recursive && (as_json || flag("wait_for_change")) {
            return Err(Box::new(page(
                StatusCode::BAD_REQUEST,
                "This parameter needs recursive=true on a directory.",
            )));
        }
        let (body, content_type) = if node.is_directory() && !recursive {
            (node.listing(), "application/text")
        } else if recursive && call.query("alt") == Some("text") {
            (node.lines(""), "application/text")
        } else if let (Node::Leaf { text, .. }, false) = (node, as_json) {
            (text.clone(), "application/text")
        } else {
            (node.json().to_string(), "application/json")
        };
        let digest =
            Sha256::new().chain_update([u8::from(recursive)]).chain_update(&body).finalize();
        let head = digest[..8].try_into().expect("a digest has 32 bytes");
        let etag = format!("{:016x}", u64::from_be_bytes(head));
        Ok(Found { body, content_type, etag })
    }

    fn guest_attributes_enabled(&self) -> bool {
        const KEY: &str = "enable-guest-attributes";
        let own = locked(&self.state).instance.attributes.get(KEY).cloned();
        own.or_else(|| locked(&self.common.attributes).get(KEY).cloned())
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    fn write_guest(&self, call: &Call, rest: &[&str]) -> Reply {
        // A namespace is mandatory.
        let [namespace, key] = rest else {
            return page(StatusCode::BAD_REQUEST, "Bad Request");
        };
        if !guest::is_name(namespace) || !guest::is_name(key) {
            return page(StatusCode::BAD_REQUEST, "Bad Request");
        }
        let done = wire::reply(StatusCode::OK, "application/text", "");
        let reply = {
            let mut state = locked(&self.state);
            let kept = state.guest.within_rate(self.common.clock.now());
            match call.method {
                Method::PUT if kept => {
                    state.guest.set(
                        namespace,
                        key,
                        String::from_utf8_lossy(&call.body).into_owned(),
                    );
                    done
                }
                Method::DELETE if kept => {
                    if state.guest.remove(namespace, key) {
                        done
                    } else {
                        not_found()
                    }
                }
                Method::PUT | Method::DELETE => done,
                _ => page(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
            }
        };
        self.changed();
        reply
    }
}

impl Found {
    fn reply(self) -> Reply {
        let mut reply = wire::reply(StatusCode::OK, self.content_type, self.body);
        wire::set(&mut reply, "etag", &self.etag);
        reply
    }
}

fn not_found() -> Reply {
    page(StatusCode::NOT_FOUND, "The requested URL was not found on this server.")
}

fn page(status: StatusCode, text: &str) -> Reply {
    let (code, reason) = (status.as_u16(), status.canonical_reason().unwrap_or("Error"));
    let html = format!(
        "<!DOCTYPE html>\n<html lang=en>\n  <title>Error {code} ({reason})!!1</title>\n  \
         <p><b>{code}.</b> <ins>That\u{2019}s an error.</ins>\n  <p>{text}\n</html>\n"
    );
    wire::reply(status, "text/html; charset=UTF-8", html)
}
