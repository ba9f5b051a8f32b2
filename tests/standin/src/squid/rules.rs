//! The part of squid.conf that decides: `acl`, `http_access`, `http_port`, `include`.
//!
//! The mounted file is really evaluated, first match wins, so a configuration that
//! forgets to deny a private range is seen to forget it. Types understood: `dst`,
//! `src` (addresses, networks, ranges), `dstdomain`, `port`, `method`; other types
//! are accepted and never match. Directives that do not decide are skipped.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::failure::Failure;

/// A request as the rules see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// Address of the client.
    pub(super) client: IpAddr,
    /// CONNECT, GET, ...
    pub(super) method: &'a str,
    /// Host as the client wrote it.
    pub(super) host: &'a str,
    /// Every address it resolves to.
    pub(super) addresses: &'a [IpAddr],
    /// Destination port.
    pub(super) port: u16,
}

/// A read configuration.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// `http_port`, 3128 if there is none.
    pub(super) port: Option<u16>,
    acls: HashMap<String, Vec<Matcher>>,
    access: Vec<(bool, Vec<(bool, String)>)>,
}

#[derive(Debug)]
enum Matcher {
    Destination(IpAddr, IpAddr),
    Source(IpAddr, IpAddr),
    Domain(String),
    Port(u16, u16),
    Method(String),
    Never,
}

impl Rules {
    /// Reads a file's text; `load` gives the text of an included path.
    pub(super) fn parse(
        text: &str,
        load: &dyn Fn(&str) -> Result<String, Failure>,
    ) -> Result<Self, Failure> {
        let mut rules = Self::default();
        for (name, values) in [
            ("all", "0.0.0.0/0"),
            ("localhost", "127.0.0.0/8"),
            ("to_localhost", "127.0.0.0/8"),
            ("to_linklocal", "169.254.0.0/16"),
        ] {
            let kind = if name.starts_with("to_") { "dst" } else { "src" };
            rules.acl(name, kind, &[values])?;
        }
        rules.acl("all", "src", &["::/0"])?;
        rules.acl("CONNECT", "method", &["CONNECT"])?;
        rules.acl("manager", "proto", &["cache_object"])?;
        rules.read(text, load)?;
        Ok(rules)
    }

    fn read(
        &mut self,
        text: &str,
        load: &dyn Fn(&str) -> Result<String, Failure>,
    ) -> Result<(), Failure> {
        for line in text.lines() {
            let words: Vec<&str> =
                line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
            match words.as_slice() {
                ["acl", name, kind, values @ ..] => self.acl(name, kind, values)?,
                ["http_access", verdict @ ("allow" | "deny"), names @ ..] => {
                    let conditions = names.iter().map(|name| {
                        name.strip_prefix('!').map_or((true, *name), |name| (false, name))
                    });
                    let conditions: Vec<_> =
                        conditions.map(|(wanted, name)| (wanted, name.to_owned())).collect();
                    if let Some((_, unknown)) =
                        conditions.iter().find(|(_, name)| !self.acls.contains_key(name))
                    {
                        return Err(Failure::new(format!(
                            "FATAL: ACL name '{unknown}' not defined in http_access"
                        )));
                    }
                    self.access.push((*verdict == "allow", conditions));
                }
                ["http_port", address, ..] => {
                    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
                    self.port = Some(port.ok_or_else(|| {
                        Failure::new(format!("FATAL: invalid http_port {address}"))
                    })?);
                }
                ["include", path] => {
                    let included = load(path)?;
                    self.read(&included, load)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn acl(&mut self, name: &str, kind: &str, values: &[&str]) -> Result<(), Failure> {
        let bad = |value: &str| {
            Failure::new(format!("FATAL: acl {name} {kind}: cannot understand '{value}'"))
        };
        let list = self.acls.entry(name.to_owned()).or_default();
        for value in values.iter().filter(|value| **value != "-n") {
            list.push(match kind {
                "dst" | "src" => {
                    let (low, high) = network(value).ok_or_else(|| bad(value))?;
                    if kind == "dst" {
                        Matcher::Destination(low, high)
                    } else {
                        Matcher::Source(low, high)
                    }
                }
                "dstdomain" => Matcher::Domain(value.to_ascii_lowercase()),
                "port" => {
                    let (low, high) = value.split_once('-').unwrap_or((value, value));
                    Matcher::Port(
                        low.parse().map_err(|_| bad(value))?,
                        high.parse().map_err(|_| bad(value))?,
                    )
                }
                "method" => Matcher::Method(value.to_ascii_uppercase()),
                _ => Matcher::Never,
            });
        }
        Ok(())
    }

    /// The verdict: the first rule all of whose conditions hold; otherwise the opposite of the
    /// last rule, and deny without any rule.
    pub(super) fn allow(&self, asked: Asked<'_>) -> bool {
        let holds = |name: &str| {
            self.acls
                .get(name)
                .is_some_and(|list| list.iter().any(|matcher| matcher.matches(asked)))
        };
        let decided = self
            .access
            .iter()
            .find(|(_, conditions)| conditions.iter().all(|(wanted, name)| holds(name) == *wanted));
        match (decided, self.access.last()) {
            (Some((allow, _)), _) => *allow,
            (None, Some((last, _))) => !last,
            (None, None) => false,
        }
    }
}

impl Matcher {
    fn matches(&self, asked: Asked<'_>) -> bool {
        let within = |low: &IpAddr, high: &IpAddr, address: &IpAddr| {
            low.is_ipv4() == address.is_ipv4() && (low..=high).contains(&address)
        };
        match self {
            Self::Destination(low, high) => {
                asked.addresses.iter().any(|address| within(low, high, &address.to_canonical()))
            }
            Self::Source(low, high) => within(low, high, &asked.client.to_canonical()),
            Self::Domain(domain) => {
                let host = asked.host.to_ascii_lowercase();
                domain.strip_prefix('.').map_or(host == *domain, |suffix| {
                    host == suffix || host.ends_with(domain.as_str())
                })
            }
            Self::Port(low, high) => (low..=high).contains(&&asked.port),
            Self::Method(method) => asked.method == method,
            Self::Never => false,
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
        let address = text.parse().ok()?;
        return Some((address, address));
    };
    let bits: u32 = bits.parse().ok()?;
    match address.parse().ok()? {
        IpAddr::V4(address) => {
            let host = u32::MAX.checked_shr(bits).unwrap_or(0);
            Some((
                IpAddr::V4((address.to_bits() & !host).into()),
                IpAddr::V4((address.to_bits() | host).into()),
            ))
        }
        IpAddr::V6(address) => {
            let host = u128::MAX.checked_shr(bits).unwrap_or(0);
            Some((
                IpAddr::V6((address.to_bits() & !host).into()),
                IpAddr::V6((address.to_bits() | host).into()),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = "
        acl SSL_ports port 443
        acl Safe_ports port 80 1025-65535
        acl Safe_ports port 443
        acl private dst 10.0.0.0/8 169.254.0.0/16 fc00::/7
        acl friend dstdomain .example.com
        http_access deny !Safe_ports
        http_access deny CONNECT !SSL_ports
        http_access allow friend
        http_access deny private   # by address, whatever the name
        http_access allow all
        http_port 3129";

    fn allows(conf: &str, method: &str, host: &str, address: &str, port: u16) -> bool {
        let rules = Rules::parse(conf, &|_| Err(Failure::new("no include"))).unwrap();
        rules.allow(Asked {
            client: "172.18.0.2".parse().unwrap(),
            method,
            host,
            addresses: &[address.parse().unwrap()],
            port,
        })
    }

    #[test]
    fn first_match_decides() {
        assert!(allows(CONF, "GET", "a.org", "1.2.3.4", 80));
        assert!(!allows(CONF, "GET", "metadata.google.internal", "169.254.169.254", 80));
        assert!(!allows(CONF, "GET", "v6.org", "fd00::1", 80));
        assert!(!allows(CONF, "GET", "mapped.org", "::ffff:10.0.0.1", 80));
        assert!(allows(CONF, "GET", "in.example.com", "10.1.1.1", 80));
        assert!(!allows(CONF, "GET", "a.org", "1.2.3.4", 22));
        assert!(!allows(CONF, "CONNECT", "a.org", "1.2.3.4", 8443));
        assert!(allows(CONF, "CONNECT", "a.org", "1.2.3.4", 443));
    }

    #[test]
    fn without_a_match_the_opposite_of_the_last_rule() {
        assert!(!allows("", "GET", "a.org", "1.2.3.4", 80));
        assert!(allows("acl p dst 10.0.0.0/8\nhttp_access deny p", "GET", "a.org", "1.2.3.4", 80));
    }

    #[test]
    fn mistakes_are_fatal() {
        let parse = |conf: &str| Rules::parse(conf, &|_| Err(Failure::new("no include")));
        assert!(parse("http_access deny nobody").unwrap_err().to_string().contains("nobody"));
        assert!(parse("acl p dst 10.0.0.300").is_err());
        assert_eq!(parse(CONF).unwrap().port, Some(3129));
    }
}
