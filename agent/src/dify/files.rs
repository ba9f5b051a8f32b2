//! The configuration files Dify's compose takes from its repository, in our
//! own words. They hold addresses of this node and never a secret.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dify_common::settings::Problems;

use crate::engine::spec::FileMount;
use crate::release::manifest::{Content, File, Network, Release};

use super::network::Plan;

/// Private, local, metadata and reserved destinations. Squid compares the
/// address a name resolves to, so `metadata.google.internal` is among them.
/// The list is that of Dify's squid template since 1.15.0 but for the IPv4 in
/// IPv6 forms: to squid `::ffff:0:0/96` is every IPv4 address, and `::/96`
/// swallows its neighbours. NAT64 and 6to4 stand in their place.
const PRIVATE: [&str; 15] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::",
    "::1",
    "64:ff9b::/96",
    "2002::/16",
    "fc00::/7",
    "fe80::/10",
];

/// Everything the files depend on.
pub(super) struct Files<'a> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) release: &'a Release,
    pub(super) certificates: Option<&'a str>,
    /// Private places user code may reach.
    pub(super) allowed: &'a Allowed,
}

/// Private destinations the operator opens to user code, in Dify's own keys
/// (docker/.env.example since 1.15.0): addresses or networks, and domains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    addresses: Vec<String>,
    domains: Vec<String>,
}

impl Allowed {
    /// Reads the operator's values; what could not stand in a squid ACL is noted.
    pub(super) fn read(own: Option<&BTreeMap<String, String>>, problems: &mut Problems) -> Self {
        let mut list = |key: &str, fits: fn(&str) -> bool, expected: &str| -> Vec<String> {
            let text = own.and_then(|own| own.get(key)).map_or("", String::as_str);
            let words = text.split([',', ' ']).filter(|word| !word.is_empty());
            let (good, bad): (Vec<&str>, Vec<&str>) = words.partition(|word| fits(word));
            if let Some(word) = bad.first() {
                problems.add(
                    format!("environment.ssrf_proxy.{key}"),
                    format!("{word:?} is not {expected}"),
                );
            }
            good.into_iter().map(str::to_owned).collect()
        };
        Self {
            addresses: list(
                "SSRF_PROXY_ALLOW_PRIVATE_IPS",
                is_network,
                "an IPv4 address or network of /8 or smaller",
            ),
            domains: list(
                "SSRF_PROXY_ALLOW_PRIVATE_DOMAINS",
                is_domain,
                "a host name, or a domain with a leading dot",
            ),
        }
    }

    fn rules(&self) -> String {
        let rule = |name: &str, kind: &str, values: &[String]| {
            if values.is_empty() {
                String::new()
            } else {
                let values = values.join(" ");
                format!("acl {name} {kind} {values}\nhttp_access allow clients web_ports {name}\n")
            }
        };
        rule("allowed_addresses", "dst", &self.addresses)
            + &rule("allowed_domains", "dstdomain", &self.domains)
    }
}

fn is_network(text: &str) -> bool {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
    address.parse::<Ipv4Addr>().is_ok() && prefix.parse().is_ok_and(|n: u8| (8..=32).contains(&n))
}

fn is_domain(text: &str) -> bool {
    !text.trim_matches('.').is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
}

impl Files<'_> {
    /// `None`: not wanted with these settings.
    pub(super) fn mount(&self, file: &File) -> Option<FileMount> {
        let content = match file.content {
            Content::Squid => self.squid(),
            Content::AgentSquid => self.agent_squid(),
            Content::Sandbox => SANDBOX.to_owned(),
            Content::Certificates => self.certificates?.to_owned(),
        };
        Some(FileMount { path: file.path.clone(), content, mode: 0o444 })
    }

    fn squid(&self) -> String {
        let sandbox = self.address("sandbox", Network::Sandbox);
        let port = self.port("sandbox");
        let code = self.plan.subnet(Network::Code);
        let clients = [Network::Main, Network::Sandbox].map(|n| self.plan.subnet(n)).join(" ");
        format!(
            "# Between user code and the world; and, on port {port}, the way from api and
# worker to the sandbox, with which they share no network.
http_port {port} accel vhost name=relay
cache_peer {sandbox} parent {port} 0 no-query no-digest originserver name=sandbox connect-timeout=2
acl relay myportname relay
acl relay_clients src {code}
http_access allow relay relay_clients
http_access deny relay
cache_peer_access sandbox allow relay
cache_peer_access sandbox deny all
never_direct allow relay

http_port 3128
acl clients src {clients}
{}{}",
            self.guard(&self.allowed.rules()),
            "http_access allow clients
http_access deny all
",
        ) + COMMON
    }

    fn agent_squid(&self) -> String {
        let clients = self.plan.subnet(Network::AgentProxy);
        let (stub, files) = (self.port("agent_backend"), self.port("api"));
        format!(
            "# Between the agent's sandbox and the world. Two doors inwards: the agent
# backend's stub and the api's signed files.
http_port 3128
acl clients src {clients}
acl stub_host dstdomain agent_backend
acl stub_port port {stub}
acl stub_path urlpath_regex ^/agent-stub(/|$)
acl files_host dstdomain api
acl files_port port {files}
acl files_path urlpath_regex ^/files/
acl climbing urlpath_regex (\\.|%2[eE])(\\.|%2[eE])
acl CONNECT method CONNECT
http_access deny climbing
http_access allow clients !CONNECT stub_host stub_port stub_path
http_access allow clients !CONNECT files_host files_port files_path
{}{}",
            self.guard("").replace("acl CONNECT method CONNECT\n", ""),
            "http_access allow clients
http_access deny all
",
        ) + COMMON
    }

    /// What is refused to anyone: this node's own containers and the metadata
    /// server whatever the operator opens, then private destinations, ports
    /// that are no web server's, tunnels to anything but 443, squid's own pages.
    fn guard(&self, opened: &str) -> String {
        format!(
            "acl never dst {}/24 127.0.0.0/8 169.254.0.0/16
acl to_private dst {}
acl web_ports port 80 443 1025-65535
acl tunnel_ports port 443
acl CONNECT method CONNECT
http_access deny manager
http_access deny never
http_access deny CONNECT !tunnel_ports
{opened}http_access deny to_private
http_access deny !web_ports
",
            self.plan.range.base,
            PRIVATE.join(" ")
        )
    }

    fn address(&self, service: &str, network: Network) -> String {
        let index =
            self.release.services.iter().position(|s| s.name == service).unwrap_or_default();
        self.plan.address(network, index).to_string()
    }

    fn port(&self, service: &str) -> u16 {
        self.release.service(service).and_then(|s| s.port).unwrap_or_default()
    }
}

/// Nothing is cached; long calls of workflows end by Dify's own timeouts.
const COMMON: &str = "
cache deny all
cache_mem 8 MB
pinger_enable off
forwarded_for delete
httpd_suppress_version_string on
client_request_buffer_max_size 100 MB
connect_timeout 10 seconds
read_timeout 2 minutes
request_timeout 2 minutes
client_lifetime 20 minutes
shutdown_lifetime 3 seconds
max_filedescriptors 65536
coredump_dir /var/spool/squid
access_log daemon:/var/log/squid/access.log squid
";

/// Every value but these comes from the environment; without the file the
/// sandbox panics (internal/static/config.go).
const SANDBOX: &str = "app:
  port: 8194
  debug: false
  key: \"\"
max_workers: 4
max_requests: 50
worker_timeout: 15
python_path: /opt/python/bin/python3
enable_network: true
enable_preload: false
allowed_syscalls: []
proxy:
  socks5: \"\"
  http: \"\"
  https: \"\"
";
