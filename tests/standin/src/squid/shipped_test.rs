//! The text the agent mounts for a node 10.88.1.0/24, as its wiring writes it,
//! and configurations that Squid refuses.

use std::net::SocketAddr;

use super::acl::Asked;
use super::configuration::Configuration;
use crate::failure::Failure;

const SHIPPED: &str = include_str!("shipped.conf");
const AGENT: &str = include_str!("shipped_agent.conf");

fn read(text: &str) -> Result<Configuration, Failure> {
    Configuration::read("squid.conf", &|path| match path {
        "squid.conf" => Ok(vec![(path.to_owned(), text.to_owned())]),
        other => Err(Failure::new(format!("no file {other}"))),
    })
}

/// `(http_access, peers, direct)` for a request of `client` at the port called `door`.
fn ask(
    text: &str,
    door: &str,
    client: &str,
    request: (&str, &str),
    to: &str,
) -> (bool, usize, bool) {
    let rules = read(text).unwrap();
    let port = rules.ports.iter().find(|port| port.name == door).unwrap();
    let (method, url) = request;
    let uri: http::Uri = url.parse().unwrap();
    let addresses = [to.parse().unwrap()];
    let asked = Asked {
        client: client.parse().unwrap(),
        port_name: door,
        local: SocketAddr::from(([10, 88, 1, 69], port.number)),
        method,
        url,
        path: uri.path_and_query().map_or("", |path| path.as_str()),
        host: uri.host().unwrap(),
        addresses: &addresses,
        port: uri.port_u16().unwrap_or(80),
    };
    let ways = rules.ways(port, asked);
    (rules.http_access.allows(&rules.acls, asked, false), ways.peers.len(), ways.direct)
}

#[test]
fn the_relay_serves_the_code_network_alone_and_goes_to_the_sandbox_alone() {
    let run = ("POST", "http://sandbox:8194/v1/sandbox/run");
    let relay = |client| ask(SHIPPED, "relay", client, run, "10.88.1.69");
    assert_eq!(relay("10.88.1.66"), (true, 1, false));
    assert!(!relay("10.88.1.102").0, "the sandbox itself");
    assert!(!relay("10.88.1.2").0, "the main network");
    let rules = read(SHIPPED).unwrap();
    assert_eq!((rules.peers[0].host.as_str(), rules.peers[0].port), ("10.88.1.102", 8194));
    assert!(rules.peers[0].origin && !rules.via && rules.forwarded_for == "delete");
    assert_eq!(rules.connect_timeout.as_secs(), 10);
    assert_eq!((rules.read_timeout.as_secs(), rules.shutdown_lifetime.as_secs()), (120, 3));
}

#[test]
fn user_code_reaches_the_world_and_nothing_private() {
    let from_sandbox = |request, to| ask(SHIPPED, "3128", "10.88.1.102", request, to);
    assert_eq!(from_sandbox(("GET", "http://a.org/"), "93.184.216.34"), (true, 0, true));
    assert!(from_sandbox(("CONNECT", "a.org:443"), "93.184.216.34").0);
    assert!(!from_sandbox(("CONNECT", "a.org:8443"), "93.184.216.34").0);
    assert!(!from_sandbox(("GET", "http://a.org:22/"), "93.184.216.34").0);
    for private in
        ["10.88.1.2", "169.254.169.254", "127.0.0.1", "::1", "fd00::1", "::ffff:10.0.0.1"]
    {
        assert!(!from_sandbox(("GET", "http://a.org/"), private).0, "{private}");
    }
    assert!(!from_sandbox(("GET", "http://a.org/squid-internal-mgr/info"), "93.184.216.34").0);
    let code = ask(SHIPPED, "3128", "10.88.1.66", ("GET", "http://a.org/"), "93.184.216.34");
    assert!(!code.0, "api uses the proxy from the main network");
}

#[test]
fn the_agents_proxy_has_two_doors_inwards() {
    let from = |method, url| ask(AGENT, "3128", "10.88.1.169", (method, url), "10.88.1.2").0;
    assert!(from("POST", "http://agent_backend:5050/agent-stub/x"));
    assert!(from("GET", "http://api:5001/files/a?sign=1"));
    for closed in [
        "http://agent_backend:5050/agent-stubborn",
        "http://agent_backend:5050/",
        "http://agent_backend:5001/agent-stub",
        "http://api:5001/inner/api/x",
        "http://api:5001/console/files/",
    ] {
        assert!(!from("GET", closed), "{closed}");
    }
    assert!(!from("CONNECT", "api:5001"));
}

#[test]
fn a_peer_without_rules_takes_plain_requests_of_the_forward_port_too() {
    let text = "http_port 3128\nhttp_port 8194 accel vhost\nhttp_access allow all\ncache_peer sandbox parent 8194 0 no-query originserver";
    let ask = |door, request| ask(text, door, "10.0.0.1", request, "1.2.3.4");
    assert_eq!(ask("3128", ("GET", "http://a.org/")), (true, 1, true));
    assert_eq!(ask("3128", ("CONNECT", "a.org:443")), (true, 0, true));
    assert_eq!(ask("8194", ("GET", "http://sandbox:8194/")), (true, 1, false));
}

#[test]
fn squids_reading_of_addresses() {
    let denied = |list: &str, to| {
        !ask(
            &format!("http_port 1\nacl p dst {list}\nhttp_access deny p"),
            "1",
            "10.0.0.1",
            ("GET", "http://a.org/"),
            to,
        )
        .0
    };
    assert!(denied("::ffff:0:0/96", "8.8.8.8"), "an IPv4-mapped network is all of IPv4");
    assert!(!denied("10.0.0.0/8 ::ffff:0:0/96", "8.8.8.8"), "an overlapping value is ignored");
    assert!(denied("10.0.0.1-10.0.0.9", "10.0.0.9") && !denied("10.0.0.1-10.0.0.9", "10.0.0.10"));
}

#[test]
fn lists_by_local_port_and_by_pattern() {
    let text = "http_port 8194\nacl here localport 8194\nacl p urlpath_regex -i ^/A+b$\nhttp_access allow here p";
    let path = |url| ask(text, "8194", "10.0.0.1", ("GET", url), "1.2.3.4").0;
    assert!(path("http://a.org/aaB") && path("http://a.org/%61b") && !path("http://a.org/b"));
    assert!(
        ask(
            "http_port 1\nacl p dst 10.0.0.0/8\nhttp_access deny p",
            "1",
            "1.1.1.1",
            ("GET", "http://a.org/"),
            "1.2.3.4"
        )
        .0
    );
    assert!(!ask("http_port 1", "1", "1.1.1.1", ("GET", "http://a.org/"), "1.2.3.4").0);
}

#[test]
fn what_squid_refuses_is_refused() {
    for (line, said) in [
        ("http_access deny nobody", "nobody"),
        ("acl x nosuchtype 1", "nosuchtype"),
        ("acl p dst 10.0.0.300", "10.0.0.300"),
        ("acl p port http", "http"),
        ("acl a dst 10.0.0.0/8\nacl a src 10.0.0.0/8", "different type"),
        ("acl a dstdomain b.a.org .a.org", "subdomain"),
        ("http_port 8194 strange", "strange"),
        ("cache_peer a parent 80 0\ncache_peer a parent 81 0", "twice"),
        ("via", "no value"),
        ("via maybe", "on"),
        ("connect_timeout 10 parsecs", "parsecs"),
        ("cache_mem eight", "eight"),
        ("access_log daemon:/x nosuchformat", "nosuchformat"),
        ("include /nowhere", "/nowhere"),
    ] {
        let failure = read(&format!("http_port 3128\n{line}")).unwrap_err();
        assert!(failure.to_string().contains(said), "{line}: {failure}");
        assert_eq!(failure.status(), 1, "{line}");
    }
    // The exit status of Squid is their number.
    assert_eq!(read("http_port 1\nfoo a\nhttp_acces allow all").unwrap_err().status(), 2);
    assert!(read("http_access allow all").unwrap_err().to_string().contains("No HTTP"));
    for fine in [
        "cache_peer_access nobody allow all",
        "acl t time MTWHF 9:00-17:00",
        "cache_peer a parent 80 0 wat",
        "logformat mine %ts\naccess_log stdio:/dev/stdout mine",
        "refresh_pattern . 0 20% 4320",
    ] {
        assert!(read(&format!("http_port 3128\n{fine}")).is_ok(), "{fine}");
    }
}

#[test]
fn a_peer_is_dead_until_reached_and_after_ten_failures() {
    let rules = read(SHIPPED).unwrap();
    let peer = &rules.peers[0];
    assert!(peer.is_dead());
    peer.connected(true);
    (0..9).for_each(|_| peer.connected(false));
    assert!(!peer.is_dead());
    peer.connected(false);
    assert!(peer.is_dead());
}
