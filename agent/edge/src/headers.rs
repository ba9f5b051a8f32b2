//! What happens to headers on the way through. Pure.
//!
//! Hop-by-hop fields end here, in both directions, with every field `Connection`
//! names (RFC 9110, 7.6.1). The forwarding fields are set after that, so that
//! `Connection: X-Forwarded-For` cannot take them away again.

use std::net::{IpAddr, SocketAddr};

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{StatusCode, Uri, request};

use crate::answer::ERROR_HEADER;
use crate::settings::Network;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// Tells Dify's plugin daemon the public URL of a webhook call; its nginx sets
/// it on `/e/` only.
const HOOK_URL: HeaderName = HeaderName::from_static("dify-hook-url");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// How a request leaves towards its upstream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leg<'a> {
    pub(crate) peer: SocketAddr,
    pub(crate) trust: &'a [Network],
    pub(crate) hook_url: bool,
    /// The upstream's connection may carry another request after this one.
    pub(crate) keep: bool,
}

/// Makes a client's request fit for the upstream. Returns the protocol it wants
/// to upgrade to, if any.
pub(crate) fn towards_upstream(head: &mut request::Parts, leg: Leg<'_>) -> Option<HeaderValue> {
    let headers = &mut head.headers;
    let upgrade = wanted_upgrade(headers);
    strip_hop_by_hop(headers);
    // hyper has said 100 to the client by the time the body is asked for.
    headers.remove(EXPECT);
    headers.remove(HOOK_URL);
    headers.remove(ERROR_HEADER);
    strip_underscores(headers);

    let trusted = leg.trust.iter().any(|network| network.contains(leg.peer.ip()));
    let https = scheme_is_https(headers);
    let host = headers.get(HOST).cloned();
    forwarded_for(headers, leg.peer.ip(), trusted);
    let scheme = if https { "https" } else { "http" };
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    if let Some(host) = host {
        let port = port_of(&host).unwrap_or(if https { 443 } else { 80 });
        if !trusted || !valid_port(headers.get(FORWARDED_PORT)) {
            headers.insert(FORWARDED_PORT, HeaderValue::from(port));
        }
        if leg.hook_url
            && let Some(url) = hook_url(scheme, &host, &head.uri)
        {
            headers.insert(HOOK_URL, url);
        }
        if !trusted || !headers.contains_key(FORWARDED_HOST) {
            headers.insert(FORWARDED_HOST, host);
        }
    }
    if let Some(protocol) = &upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    } else if !leg.keep {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    head.uri = origin_form(&head.uri);
    head.version = http::Version::HTTP_11;
    upgrade
}

/// Makes an upstream's answer fit for the client.
pub(crate) fn towards_client(status: StatusCode, headers: &mut HeaderMap, close: bool) {
    let upgrade = (status == StatusCode::SWITCHING_PROTOCOLS)
        .then(|| headers.get(UPGRADE).cloned())
        .flatten();
    strip_hop_by_hop(headers);
    // Only the edge may say that an answer is the edge's.
    headers.remove(ERROR_HEADER);
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    } else if close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// The protocol of a well-formed upgrade. HTTP/2 is none: a tunnel of it would
/// hide every later request from the checks.
fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(UPGRADE)?;
    let text = protocol.to_str().ok()?;
    let h2 = text.split(',').any(|word| word.trim().to_ascii_lowercase().starts_with("h2"));
    let body = headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
    (named && !h2 && !body).then(|| protocol.clone())
}

fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(',')).map(str::trim)
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers)
            .filter_map(|token| token.parse().ok())
            // Framing and authority are not the sender's to withdraw.
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// `X_Forwarded_For` and `X-Forwarded-For` are one variable to a WSGI server.
fn strip_underscores(headers: &mut HeaderMap) {
    let odd = |name: &&HeaderName| name.as_str().contains('_');
    let names: Vec<HeaderName> = headers.keys().filter(odd).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Extended behind a load balancer, replaced otherwise.
fn forwarded_for(headers: &mut HeaderMap, peer: IpAddr, trusted: bool) {
    let peer = peer.to_canonical().to_string();
    let mut chain = String::new();
    if trusted {
        for value in headers.get_all(FORWARDED_FOR) {
            if let Ok(text) = value.to_str() {
                chain.push_str(text);
                chain.push_str(", ");
            }
        }
    }
    chain.push_str(&peer);
    // Made of header values and an address: always a valid header value.
    if let Ok(value) = HeaderValue::from_str(&chain) {
        headers.insert(FORWARDED_FOR, value);
    }
}

/// What the client spoke: the load balancer's word when it is one of the two.
fn scheme_is_https(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(FORWARDED_PROTO).into_iter();
    let (first, second) = (values.next(), values.next());
    second.is_none() && first.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"https"))
}

fn port_of(host: &HeaderValue) -> Option<u16> {
    let text = host.to_str().ok()?;
    let (_, port) =
        text.rsplit_once(':').filter(|(name, _)| !name.starts_with('[') || name.ends_with(']'))?;
    port.parse().ok()
}

fn valid_port(value: Option<&HeaderValue>) -> bool {
    let text = value.and_then(|value| value.to_str().ok());
    text.is_some_and(|text| text.parse::<u16>().is_ok())
}

fn hook_url(scheme: &str, host: &HeaderValue, uri: &Uri) -> Option<HeaderValue> {
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    HeaderValue::from_str(&format!("{scheme}://{}{target}", host.to_str().ok()?)).ok()
}

/// The target without scheme and authority, which `Host` repeats.
fn origin_form(uri: &Uri) -> Uri {
    if uri.authority().is_none() {
        return uri.clone();
    }
    let target = uri.path_and_query().cloned();
    target.map_or_else(|| Uri::from_static("/"), Uri::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LB: &str = "35.191.1.1:4000";
    const STRANGER: &str = "172.17.0.9:4000";

    fn request(
        headers: &[(&str, &str)],
        peer: &str,
        hook_url: bool,
    ) -> (request::Parts, Option<HeaderValue>) {
        let mut builder = http::Request::builder().uri("/e/hook?x=1").header(HOST, "dify.example");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let (mut parts, ()) = builder.body(()).expect("valid").into_parts();
        let trust = ["35.191.0.0/16".parse().expect("a network")];
        let peer = peer.parse().expect("an address");
        let leg = Leg { peer, trust: &trust, hook_url, keep: true };
        let upgrade = towards_upstream(&mut parts, leg);
        (parts, upgrade)
    }

    fn text<'a>(parts: &'a request::Parts, name: &str) -> &'a str {
        parts.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    #[test]
    fn behind_the_load_balancer_the_clients_address_and_scheme_are_kept() {
        let sent = [("x-forwarded-for", "203.0.113.9, 34.1.1.1"), ("x-forwarded-proto", "https")];
        let (parts, _) = request(&sent, LB, true);
        assert_eq!(text(&parts, "x-forwarded-for"), "203.0.113.9, 34.1.1.1, 35.191.1.1");
        assert_eq!(text(&parts, "x-forwarded-proto"), "https");
        assert_eq!(text(&parts, "x-forwarded-port"), "443");
        assert_eq!(text(&parts, "x-forwarded-host"), "dify.example");
        assert_eq!(text(&parts, "host"), "dify.example");
        assert_eq!(text(&parts, "dify-hook-url"), "https://dify.example/e/hook?x=1");
    }

    #[test]
    fn a_strangers_forwarding_headers_are_replaced() {
        let sent = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-port", "1"),
            ("dify-hook-url", "https://evil/"),
        ];
        let (parts, _) = request(&sent, STRANGER, false);
        assert_eq!(text(&parts, "x-forwarded-for"), "172.17.0.9");
        assert_eq!(text(&parts, "x-forwarded-proto"), "http");
        assert_eq!(text(&parts, "x-forwarded-host"), "dify.example");
        assert_eq!(text(&parts, "x-forwarded-port"), "80");
        assert_eq!(text(&parts, "dify-hook-url"), "");
    }

    #[test]
    fn hop_by_hop_ends_here_and_connection_cannot_name_the_forwarding_headers() {
        let sent = [
            ("connection", "close, X-Forwarded-For, x-secret, host"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("x_forwarded_for", "9.9.9.9"),
            ("proxy-authorization", "Basic x"),
            ("x-end-to-end", "1"),
        ];
        let (parts, upgrade) = request(&sent, LB, false);
        assert_eq!(upgrade, None);
        for gone in
            ["connection", "x-secret", "keep-alive", "te", "x_forwarded_for", "proxy-authorization"]
        {
            assert_eq!(text(&parts, gone), "", "{gone}");
        }
        assert_eq!(text(&parts, "x-forwarded-for"), "35.191.1.1");
        assert_eq!(text(&parts, "host"), "dify.example");
        assert_eq!(text(&parts, "x-end-to-end"), "1");
    }

    #[test]
    fn upgrades_pass_when_they_are_one() {
        let ws = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        let (parts, upgrade) = request(&ws, LB, false);
        assert_eq!(upgrade.expect("an upgrade"), "websocket");
        assert_eq!((text(&parts, "connection"), text(&parts, "upgrade")), ("upgrade", "websocket"));
        for not in [
            &[("upgrade", "websocket")][..],
            &[("connection", "upgrade"), ("upgrade", "h2c")],
            &[("connection", "upgrade"), ("upgrade", "websocket"), ("content-length", "3")],
        ] {
            assert_eq!(request(not, LB, false).1, None, "{not:?}");
        }
    }

    #[test]
    fn an_answer_loses_its_hop_and_cannot_pose_as_ours() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "keep-alive, x-hop"), ("x-hop", "1"), ("x-dify-edge-error", "no")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        towards_client(StatusCode::OK, &mut headers, true);
        assert_eq!(headers.len(), 1);
        assert_eq!(headers[CONNECTION], "close");
    }

    #[test]
    fn ports_are_read_off_the_host() {
        for (host, port) in
            [("a:8443", Some(8443)), ("a", None), ("[::1]:81", Some(81)), ("[::1]", None)]
        {
            assert_eq!(port_of(&HeaderValue::from_static(host)), port, "{host}");
        }
    }
}
