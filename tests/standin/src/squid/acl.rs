//! Squid's `acl` lines and the lists that use them.
//!
//! Read and matched as Squid 5 and 6 do, oddities included, since a list that is
//! right on paper and wrong in Squid is what a test wants to see: an IPv4-mapped
//! network is an IPv4 one (`::ffff:0:0/96` is everything), and a value that
//! overlaps an earlier one of the same list is ignored with a warning (Squid 7
//! merges them instead: squid-cache/squid pull request 1632).

use std::collections::HashMap;
use std::net::IpAddr;

use percent_encoding::percent_decode_str;
use regex_lite::{Regex, RegexBuilder};

use crate::failure::Failure;
use crate::log;

/// A request as the rules see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// Address of the client.
    pub(super) client: IpAddr,
    /// `name=` of the `http_port` it came in on.
    pub(super) port_name: &'a str,
    /// Address and port it came in on.
    pub(super) local: std::net::SocketAddr,
    /// CONNECT, GET, ...
    pub(super) method: &'a str,
    /// The whole URL.
    pub(super) url: &'a str,
    /// Path and query.
    pub(super) path: &'a str,
    /// Host of the URL as written.
    pub(super) host: &'a str,
    /// Every address it resolves to.
    pub(super) addresses: &'a [IpAddr],
    /// Destination port.
    pub(super) port: u16,
}

/// All named lists.
#[derive(Debug)]
pub(super) struct Acls(HashMap<String, Acl>);

#[derive(Debug)]
struct Acl {
    kind: String,
    matchers: Vec<Matcher>,
}

#[derive(Debug)]
enum Matcher {
    /// `src`, `dst`, `localip` by the kind of the list; first and last address.
    Network(IpAddr, IpAddr),
    Domain(String),
    /// `port`, `localport` by the kind of the list.
    Ports(u16, u16),
    Word(String),
    Pattern(Regex),
}

/// Types Squid knows and the stand-in does not play: accepted, never matching.
const OTHERS: &str = "adaptation_service all-of annotate_client annotate_transaction any-of arp at_step browser \
    ca_cert client_connection_mark clientside_mark connections_encrypted dst_as eui64 ext_user ext_user_regex \
    external has hier_code http_status ident ident_regex max_user_ip maxconn note peername peername_regex \
    proto proxy_auth proxy_auth_regex random referer_regex rep_header rep_mime_type req_header req_mime_type \
    server_cert_fingerprint snmp_community squid_error src_as srcdom_regex srcdomain tag time \
    transaction_initiator urlgroup urllogin user_cert";

impl Acls {
    /// The lists every Squid has.
    pub(super) fn built_in() -> Self {
        let mut acls = Self(HashMap::new());
        for line in [
            "all src all",
            "manager url_regex -i ^cache_object:// +i ^[^:]+://[^/]+/squid-internal-mgr/",
            "localhost src 127.0.0.1/32 ::1",
            "to_localhost dst 127.0.0.0/8 0.0.0.0/32 ::1/128 ::/128",
            "to_linklocal dst 169.254.0.0/16 fe80::/10",
            "CONNECT method CONNECT",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            acls.define(words[0], words[1], &words[2..])
                .expect("the built-in lists are well-formed");
        }
        acls
    }

    /// One `acl` line; lines of one name add up.
    pub(super) fn define(
        &mut self,
        name: &str,
        kind: &str,
        values: &[&str],
    ) -> Result<(), Failure> {
        let list = self
            .0
            .entry(name.to_owned())
            .or_insert_with(|| Acl { kind: kind.to_owned(), matchers: Vec::new() });
        if list.kind != kind {
            return Err(Failure::new(format!(
                "aclParseAclLine: ACL '{name}' already exists with different type."
            )));
        }
        let mut fold = false;
        for value in values {
            match *value {
                "-i" => fold = true,
                "+i" => fold = false,
                "-n" => {}
                _ => list.add(name, value, fold)?,
            }
        }
        if list.matchers.is_empty() {
            log::line(&format!("Warning: empty ACL: acl {name} {kind}"));
        }
        Ok(())
    }

    fn holds(&self, name: &str, asked: Asked<'_>) -> bool {
        let list = self.0.get(name);
        list.is_some_and(|list| list.matchers.iter().any(|m| m.matches(&list.kind, asked)))
    }
}

impl Acl {
    fn add(&mut self, name: &str, value: &str, fold: bool) -> Result<(), Failure> {
        let bad = || Failure::new(format!("acl {name} {}: cannot understand '{value}'", self.kind));
        let matcher = match self.kind.as_str() {
            "src" | "dst" | "localip" => {
                if value == "all" {
                    self.matchers.push(
                        network("::/0").map(|(l, h)| Matcher::Network(l, h)).ok_or_else(bad)?,
                    );
                }
                let (low, high) = network(value).ok_or_else(bad)?;
                if self.overlaps(low, high) {
                    log::line(&format!(
                        "WARNING: '{value}' overlaps an earlier value\nWARNING: because of this '{value}' is ignored to keep splay tree searching predictable\nWARNING: You should probably remove it from the ACL named '{name}'"
                    ));
                    return Ok(());
                }
                Matcher::Network(low, high)
            }
            "dstdomain" => {
                let domain = value.to_ascii_lowercase();
                let swallowed = |m: &Matcher| matches!(m, Matcher::Domain(d) if domain.starts_with('.') && within(d, &domain));
                if self.matchers.iter().any(swallowed) {
                    return Err(Failure::new(format!(
                        "ERROR: a value of the ACL named '{name}' is a subdomain of '{value}'"
                    )));
                }
                Matcher::Domain(domain)
            }
            "port" | "localport" => {
                let (low, high) = value.split_once('-').unwrap_or((value, value));
                let number = |text: &str| text.parse().map_err(|_| bad());
                Matcher::Ports(number(low)?, number(high)?)
            }
            "method" => Matcher::Word(value.to_ascii_uppercase()),
            "myportname" => Matcher::Word(value.to_owned()),
            "url_regex" | "urlpath_regex" | "dstdom_regex" => {
                match RegexBuilder::new(value).case_insensitive(fold).build() {
                    Ok(pattern) => Matcher::Pattern(pattern),
                    Err(problem) => {
                        log::line(&format!(
                            "ERROR: Skipping regular expression. Compile failed: '{value}': {problem}"
                        ));
                        return Ok(());
                    }
                }
            }
            kind if OTHERS.split_whitespace().any(|other| other == kind) => {
                log::line(&format!("standin: acl {name} {kind} never matches here"));
                return Ok(());
            }
            kind => return Err(Failure::new(format!("Invalid ACL type '{kind}'"))),
        };
        self.matchers.push(matcher);
        Ok(())
    }

    fn overlaps(&self, low: IpAddr, high: IpAddr) -> bool {
        self.matchers.iter().any(|matcher| {
            matches!(matcher, Matcher::Network(l, h) if l.is_ipv4() == low.is_ipv4() && *l <= high && low <= *h)
        })
    }
}

impl Matcher {
    fn matches(&self, kind: &str, asked: Asked<'_>) -> bool {
        match self {
            Self::Network(low, high) => {
                let inside = |address: IpAddr| {
                    let address = address.to_canonical();
                    low.is_ipv4() == address.is_ipv4() && (low..=high).contains(&&address)
                };
                match kind {
                    "src" => inside(asked.client),
                    "localip" => inside(asked.local.ip()),
                    _ => asked.addresses.iter().copied().any(inside),
                }
            }
            Self::Domain(domain) => within(&asked.host.to_ascii_lowercase(), domain),
            Self::Ports(low, high) => {
                let port = if kind == "localport" { asked.local.port() } else { asked.port };
                (*low..=*high).contains(&port)
            }
            Self::Word(word) => {
                word == if kind == "method" { asked.method } else { asked.port_name }
            }
            Self::Pattern(pattern) => match kind {
                "url_regex" => pattern.is_match(asked.url),
                "dstdom_regex" => pattern.is_match(asked.host),
                // Squid decodes it first.
                _ => pattern.is_match(&percent_decode_str(asked.path).decode_utf8_lossy()),
            },
        }
    }
}

/// `.example.com` is the domain and all below, `example.com` that name alone.
fn within(host: &str, domain: &str) -> bool {
    domain.strip_prefix('.').map_or(host == domain, |name| {
        host.trim_start_matches('.') == name || host.ends_with(domain)
    })
}

/// The rules of one directive, in order.
#[derive(Debug, Default)]
pub(super) struct Access(Vec<(bool, Vec<(bool, String)>)>);

impl Access {
    /// Adds `allow|deny [!]acl ...`; any other first word is ignored, as by Squid.
    pub(super) fn add(&mut self, words: &[&str], acls: &Acls) -> Result<(), Failure> {
        let (Some(verdict @ ("allow" | "deny")), names) =
            (words.first().copied(), words.get(1..).unwrap_or_default())
        else {
            log::line("aclParseAccessLine: expecting 'allow' or 'deny'; line ignored");
            return Ok(());
        };
        let mut conditions = Vec::new();
        for name in names {
            let (wanted, name) = name.strip_prefix('!').map_or((true, *name), |n| (false, n));
            if !acls.0.contains_key(name) {
                return Err(Failure::new(format!("ACL not found: {name}")));
            }
            conditions.push((wanted, name.to_owned()));
        }
        self.0.push((verdict == "allow", conditions));
        Ok(())
    }

    /// The first rule all of whose conditions hold; else the opposite of the last; `default` without a rule.
    pub(super) fn allows(&self, acls: &Acls, asked: Asked<'_>, default: bool) -> bool {
        let decided = self.0.iter().find(|(_, conditions)| {
            conditions.iter().all(|(wanted, name)| acls.holds(name, asked) == *wanted)
        });
        match (decided, self.0.last()) {
            (Some((allow, _)), _) => *allow,
            (None, Some((last, _))) => !last,
            (None, None) => default,
        }
    }
}

/// `all`, an address, `a-b`, `address/bits`: the first and last address.
fn network(text: &str) -> Option<(IpAddr, IpAddr)> {
    if text == "all" {
        return network("0.0.0.0/0");
    }
    if let Some((low, high)) = text.split_once('-') {
        return Some((low.parse().ok()?, high.parse().ok()?));
    }
    let Some((address, bits)) = text.split_once('/') else {
        let address = text.parse::<IpAddr>().ok()?.to_canonical();
        return Some((address, address));
    };
    let bits: u32 = bits.parse().ok()?;
    let address: IpAddr = address.parse().ok()?;
    let (address, bits) = match (address, address.to_canonical()) {
        (IpAddr::V6(_), mapped @ IpAddr::V4(_)) if bits >= 96 => (mapped, bits - 96),
        _ => (address, bits),
    };
    Some(match address {
        IpAddr::V4(address) => {
            let host = u32::MAX.checked_shr(bits).unwrap_or(0);
            let first = address.to_bits() & !host;
            (IpAddr::V4(first.into()), IpAddr::V4((first | host).into()))
        }
        IpAddr::V6(address) => {
            let host = u128::MAX.checked_shr(bits).unwrap_or(0);
            let first = address.to_bits() & !host;
            (IpAddr::V6(first.into()), IpAddr::V6((first | host).into()))
        }
    })
}
