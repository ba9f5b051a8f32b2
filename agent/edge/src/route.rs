//! Orders made ready for use: which path goes where. Pure.
//!
//! Dify's nginx matches raw prefixes, longest first (`docker/nginx/conf.d/
//! default.conf.template`), and so does this. What nginx does by normalising, we
//! do by refusing: a path that would go elsewhere once decoded is ambiguous.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use dify_common::wire::edge::{Orders, Refusal};

use crate::answer::Violation;
use crate::inflight::Counts;
use crate::upstream::Upstream;

/// Dify's api answers the plugin daemon here; whoever reaches it acts for any
/// tenant. Never routed, unless a route names it in full.
const PRIVATE: &str = "/inner/api";

/// Compiled orders.
#[derive(Debug)]
pub(crate) struct Table {
    /// As received.
    pub(crate) orders: Orders,
    /// Longest prefix first.
    routes: Vec<Target>,
    refusals: Vec<Refusal>,
    pub(crate) upstreams: BTreeMap<String, Arc<Upstream>>,
}

/// A route with its upstream resolved.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    prefix: String,
    /// `None`: the orders name one they do not describe.
    pub(crate) upstream: Option<Arc<Upstream>>,
    pub(crate) hook_url: bool,
}

/// What is to be done with a path.
#[derive(Debug)]
pub(crate) enum Decision<'a> {
    /// Send it there.
    Forward(&'a Target),
    /// Answer by the orders.
    Refuse(&'a Refusal),
    /// Nothing takes it.
    NoRoute,
}

impl Table {
    /// Compiles orders; upstreams that did not change keep their queues.
    pub(crate) fn new(orders: Orders, counts: &Counts, before: Option<&Self>) -> Self {
        let upstreams: BTreeMap<_, _> = orders
            .upstreams
            .iter()
            .map(|(name, spec)| {
                let kept = before.and_then(|table| table.upstreams.get(name));
                let upstream = kept.filter(|kept| kept.spec == *spec).cloned();
                let made = upstream
                    .unwrap_or_else(|| Arc::new(Upstream::new(name, spec, counts.upstream(name))));
                (name.clone(), made)
            })
            .collect();
        let mut routes: Vec<_> = orders
            .routes
            .iter()
            .map(|route| Target {
                prefix: route.prefix.clone(),
                upstream: upstreams.get(&route.upstream).cloned(),
                hook_url: route.hook_url,
            })
            .collect();
        routes.sort_by_key(|route| std::cmp::Reverse(route.prefix.len()));
        let mut refusals = orders.refusals.clone();
        let named = |prefix: &str| prefix.starts_with(PRIVATE);
        if !orders.routes.iter().any(|route| named(&route.prefix)) {
            refusals.push(Refusal {
                prefix: PRIVATE.to_owned(),
                status: 404,
                message: "nothing is served at this path".to_owned(),
            });
        }
        refusals.sort_by_key(|refusal| std::cmp::Reverse(refusal.prefix.len()));
        Self { orders, routes, refusals, upstreams }
    }

    /// Decides by the raw path, and refuses one that reads differently when
    /// decoded.
    pub(crate) fn decide(&self, path: &str) -> Result<Decision<'_>, Violation> {
        let decoded = plain(path)?;
        let decision = self.lookup(path);
        if let Cow::Owned(decoded) = decoded
            && !decision.same(&self.lookup(&decoded))
        {
            return Err(Violation::Path);
        }
        Ok(decision)
    }

    fn lookup(&self, path: &str) -> Decision<'_> {
        if let Some(refusal) = self.refusals.iter().find(|r| path.starts_with(&r.prefix)) {
            return Decision::Refuse(refusal);
        }
        self.routes
            .iter()
            .find(|route| path.starts_with(&route.prefix))
            .map_or(Decision::NoRoute, Decision::Forward)
    }

    /// Where probes of the edge itself go: what readiness needs.
    pub(crate) fn required(&self) -> impl Iterator<Item = (&str, SocketAddr, Option<&str>)> {
        let required = |(_, upstream): &(&String, &Arc<Upstream>)| upstream.spec.required;
        self.upstreams.iter().filter(required).map(|(name, upstream)| {
            let spec = &upstream.spec;
            (name.as_str(), spec.address, spec.probe.as_deref())
        })
    }
}

impl Decision<'_> {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Forward(a), Self::Forward(b)) => std::ptr::eq(*a, *b),
            (Self::Refuse(a), Self::Refuse(b)) => std::ptr::eq(*a, *b),
            (Self::NoRoute, Self::NoRoute) => true,
            (Self::Forward(_) | Self::Refuse(_) | Self::NoRoute, _) => false,
        }
    }
}

/// The path with percent-encodings undone, when it has any. Refuses dot
/// segments, however encoded, however often, behind whatever kind of slash, and
/// NUL: browsers send none of these, and each upstream reads them its own way.
fn plain(path: &str) -> Result<Cow<'_, str>, Violation> {
    let mut once = None;
    let mut current = Cow::Borrowed(path.as_bytes());
    // Decoding twice-encoded text shortens it each time, so this ends.
    loop {
        if has_dot_segment(&current) || current.contains(&0) {
            return Err(Violation::Path);
        }
        let decoded = decode(&current);
        if decoded.len() == current.len() {
            break;
        }
        once.get_or_insert_with(|| String::from_utf8_lossy(&decoded).into_owned());
        current = Cow::Owned(decoded);
    }
    Ok(once.map_or(Cow::Borrowed(path), Cow::Owned))
}

fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\'))
        // Java-style parameters: `..;x` is `..` to some.
        .map(|segment| segment.split(|byte| *byte == b';').next().unwrap_or_default())
        .any(|segment| segment == b"." || segment == b"..")
}

fn decode(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| {
        let byte = text.get(at).copied().map(char::from)?;
        byte.to_digit(16).and_then(|digit| u8::try_from(digit).ok())
    };
    let mut plain = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        if text[at] == b'%'
            && let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2))
        {
            plain.push(high * 16 + low);
            at += 3;
        } else {
            plain.push(text[at]);
            at += 1;
        }
    }
    plain
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use dify_common::wire::edge::{Route, Upstream as Spec};
    use dify_common::wire::status::Phase;

    /// The routes of Dify's own nginx.
    pub(crate) fn dify() -> Orders {
        let spec = |port, pooled| Spec {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            pooled,
            max_in_flight: 10,
            probe: Some("/health".to_owned()),
            required: true,
        };
        let route = |(prefix, upstream): (&str, &str)| Route {
            prefix: prefix.to_owned(),
            upstream: upstream.to_owned(),
            hook_url: prefix == "/e/",
        };
        Orders {
            node: "n".to_owned(),
            sequence: 1,
            release: Some("1.14.2".to_owned()),
            adopting: false,
            phase: Phase::Serving,
            ready: true,
            missing: Vec::new(),
            live: true,
            faults: Vec::new(),
            drain: None,
            upstreams: [
                ("api", spec(5001, false)),
                ("web", spec(3000, true)),
                ("plugin_daemon", spec(5002, true)),
            ]
            .map(|(name, spec)| (name.to_owned(), spec))
            .into(),
            routes: [
                ("/console/api", "api"),
                ("/api", "api"),
                ("/v1", "api"),
                ("/files", "api"),
                ("/mcp", "api"),
                ("/triggers", "api"),
                ("/e/", "plugin_daemon"),
                ("/socket.io/", "api_websocket"),
                ("/explore", "web"),
                ("/", "web"),
            ]
            .map(route)
            .into(),
            refusals: vec![Refusal {
                prefix: "/console/api/setup".to_owned(),
                status: 403,
                message: "set-up is closed".to_owned(),
            }],
            stale_after_ms: 5_000,
            silent_fault_after_ms: 60_000,
        }
    }

    fn table(orders: Orders) -> Table {
        Table::new(orders, &Counts::default(), None)
    }

    fn goes(table: &Table, path: &str) -> String {
        match table.decide(path) {
            Ok(Decision::Forward(target)) => target
                .upstream
                .as_ref()
                .map_or("absent".to_owned(), |upstream| upstream.name.clone()),
            Ok(Decision::Refuse(refusal)) => refusal.status.to_string(),
            Ok(Decision::NoRoute) => "none".to_owned(),
            Err(violation) => violation.kind().to_owned(),
        }
    }

    #[test]
    fn the_longest_raw_prefix_wins_as_in_difys_nginx() {
        let table = table(dify());
        for (path, upstream) in [
            ("/", "web"),
            ("/apps", "web"),
            ("/console/api/login", "api"),
            ("/console/apiary", "api"),
            ("/apix", "api"),
            ("/v1/chat-messages", "api"),
            ("/e/hook/x", "plugin_daemon"),
            ("/e", "web"),
            ("/explore/apps", "web"),
            ("/socket.io/?EIO=4", "absent"),
            ("/console/api/setup", "403"),
            ("/console/api/setup/x", "403"),
            ("/inner/api/plugin", "404"),
            ("/inner/apix", "404"),
            ("/inner", "web"),
        ] {
            assert_eq!(goes(&table, path), upstream, "{path}");
        }
    }

    #[test]
    fn encodings_cannot_change_the_route() {
        let table = table(dify());
        for path in [
            "/api/../inner/api",
            "/api/%2e%2e/inner/api",
            "/api/.%2E/x",
            "/api/%252e%252e/x",
            "/api/..%2fx",
            "/api/..%5cx",
            "/api/..\\x",
            "/api/..;a=b/x",
            "/api/./x",
            "/..",
            "/%69nner/api/x",
            "/inner%2fapi/x",
            "/%65/x",
            "/x%00y",
        ] {
            assert_eq!(goes(&table, path), "ambiguous-path", "{path}");
        }
        for (path, upstream) in [
            ("/v1/a%2fb", "api"),
            ("/files/%E4%BD%A0.png", "api"),
            ("/v1/100%", "api"),
            ("/files/a..b", "api"),
            ("/files/...", "api"),
            ("/_next/%5Bslug%5D.js", "web"),
        ] {
            assert_eq!(goes(&table, path), upstream, "{path}");
        }
    }

    #[test]
    fn the_private_api_is_reached_only_by_a_route_that_names_it() {
        let mut orders = dify();
        orders.routes.push(Route {
            prefix: "/inner/api/ping".to_owned(),
            upstream: "api".to_owned(),
            hook_url: false,
        });
        assert_eq!(goes(&table(orders), "/inner/api/ping"), "api");
    }

    #[test]
    fn an_upstream_that_did_not_change_keeps_its_queue() {
        let counts = Counts::default();
        let first = Table::new(dify(), &counts, None);
        let mut orders = dify();
        orders.sequence = 2;
        if let Some(web) = orders.upstreams.get_mut("web") {
            web.address.set_port(3001);
        }
        let second = Table::new(orders, &counts, Some(&first));
        let same = |name: &str| Arc::ptr_eq(&first.upstreams[name], &second.upstreams[name]);
        assert!(same("api") && !same("web"));
    }
}
