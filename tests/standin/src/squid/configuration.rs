//! `squid.conf` as the stand-in obeys it.
//!
//! A directive Squid does not know, a value it refuses, a list it cannot find:
//! each ends the program as it ends Squid (tried with 5.7). What decides nothing
//! about who reaches what (caches, logs, timers) is accepted and has no effect.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::acl::{Access, Acls, Asked};
use crate::failure::Failure;
use crate::log;

/// Names of Squid 5's manual, removed ones included: Squid still reads them.
const DIRECTIVES: &str = include_str!("directives.txt");

/// A read configuration.
#[derive(Debug)]
pub(super) struct Configuration {
    pub(super) ports: Vec<Port>,
    pub(super) peers: Vec<Peer>,
    pub(super) acls: Acls,
    pub(super) http_access: Access,
    never_direct: Access,
    /// `via on`: adds the header.
    pub(super) via: bool,
    /// `forwarded_for`: on, off, transparent, delete, truncate.
    pub(super) forwarded_for: String,
    pub(super) connect_timeout: Duration,
    pub(super) read_timeout: Duration,
    pub(super) shutdown_lifetime: Duration,
    log_formats: Vec<String>,
    unrecognized: u8,
}

/// One `http_port`.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) host: String,
    pub(super) number: u16,
    /// `name=`, otherwise the address as written.
    pub(super) name: String,
    /// `accel`: takes requests as an origin server does.
    pub(super) accel: bool,
    allow_direct: bool,
    /// False with `no-vhost`: the Host header does not count.
    pub(super) vhost: bool,
    pub(super) default_site: Option<String>,
}

/// One `cache_peer`; only `parent` ones are used.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) host: String,
    pub(super) port: u16,
    name: String,
    parent: bool,
    /// `originserver`: asked as a web server, not as a proxy.
    pub(super) origin: bool,
    access: Access,
    /// Failures left until Squid calls it dead; as in Squid it starts dead.
    lives: AtomicU32,
}

/// Squid's `connect-fail-limit`.
const LIVES: u32 = 10;

/// Where a request may go, in the order of trying.
#[derive(Debug)]
pub(super) struct Ways<'a> {
    pub(super) peers: Vec<&'a Peer>,
    pub(super) direct: bool,
}

type Load<'a> = &'a dyn Fn(&str) -> Result<Vec<(String, String)>, Failure>;

impl Configuration {
    /// Reads the file at `path`; `load` gives the paths and texts behind an `include` pattern.
    pub(super) fn read(path: &str, load: Load<'_>) -> Result<Self, Failure> {
        let mut read = Self {
            ports: Vec::new(),
            peers: Vec::new(),
            acls: Acls::built_in(),
            http_access: Access::default(),
            never_direct: Access::default(),
            via: true,
            forwarded_for: "on".to_owned(),
            connect_timeout: Duration::from_mins(1),
            read_timeout: Duration::from_mins(15),
            shutdown_lifetime: Duration::from_secs(30),
            log_formats: ["squid", "common", "combined", "referrer", "useragent", "icap_squid"]
                .map(str::to_owned)
                .to_vec(),
            unrecognized: 0,
        };
        read.include(path, load)?;
        if read.unrecognized > 0 {
            let text = format!("{} unrecognized directives", read.unrecognized);
            return Err(Failure::new(text).with_status(read.unrecognized));
        }
        if read.ports.is_empty() {
            return Err(Failure::new("FATAL: No HTTP, HTTPS, or FTP ports configured"));
        }
        Ok(read)
    }

    fn include(&mut self, pattern: &str, load: Load<'_>) -> Result<(), Failure> {
        for (path, text) in load(pattern)? {
            for (number, line) in text.lines().enumerate() {
                let words: Vec<&str> =
                    line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
                let place = format!("{path} line {}", number + 1);
                match words.as_slice() {
                    [] => {}
                    ["include", patterns @ ..] => {
                        for pattern in patterns {
                            self.include(pattern, load)?;
                        }
                    }
                    [name, ..] if !DIRECTIVES.split_whitespace().any(|known| known == *name) => {
                        log::line(&format!("{path}({}): unrecognized: '{name}'", number + 1));
                        self.unrecognized = self.unrecognized.saturating_add(1);
                    }
                    words => self.directive(words).map_err(|failure| {
                        failure.while_doing(&format!("FATAL: Bungled {place}: {line}"))
                    })?,
                }
            }
        }
        Ok(())
    }

    fn directive(&mut self, words: &[&str]) -> Result<(), Failure> {
        match words {
            [_] => return Err(Failure::new("no value")),
            ["acl", name, kind, values @ ..] => self.acls.define(name, kind, values)?,
            ["http_access", rule @ ..] => self.http_access.add(rule, &self.acls)?,
            ["never_direct", rule @ ..] => self.never_direct.add(rule, &self.acls)?,
            // The rules that cannot matter here must still name lists that exist.
            ["cache" | "always_direct" | "miss_access" | "http_reply_access", rule @ ..] => {
                Access::default().add(rule, &self.acls)?;
            }
            ["http_port", spec, options @ ..] => self.ports.push(Port::parse(spec, options)?),
            ["cache_peer", host, kind, port, _icp, options @ ..] => {
                let peer = Peer::parse(host, kind, port, options)?;
                if self.peers.iter().any(|known| known.name == peer.name) {
                    return Err(Failure::new(format!(
                        "ERROR: cache_peer {} specified twice",
                        peer.name
                    )));
                }
                self.peers.push(peer);
            }
            ["cache_peer_access", name, rule @ ..] => {
                match self.peers.iter_mut().find(|peer| peer.name == *name) {
                    Some(peer) => peer.access.add(rule, &self.acls)?,
                    None => log::line(&format!("ERROR: No cache_peer '{name}'")),
                }
            }
            ["via", value] => self.via = switch(value)?,
            ["forwarded_for", value] => (*value).clone_into(&mut self.forwarded_for),
            [
                "httpd_suppress_version_string"
                | "pinger_enable"
                | "client_db"
                | "server_persistent_connections"
                | "client_persistent_connections",
                value,
            ] => {
                switch(value)?;
            }
            ["connect_timeout", value @ ..] => self.connect_timeout = time(value)?,
            ["read_timeout", value @ ..] => self.read_timeout = time(value)?,
            ["shutdown_lifetime", value @ ..] => self.shutdown_lifetime = time(value)?,
            [name, value @ ..] if name.ends_with("_timeout") || *name == "client_lifetime" => {
                time(value)?;
            }
            ["cache_mem" | "client_request_buffer_max_size" | "max_filedescriptors", size, ..] => {
                size.parse::<u64>().map_err(|_| Failure::new(format!("no digits in '{size}'")))?;
            }
            ["logformat", name, ..] => self.log_formats.push((*name).to_owned()),
            ["access_log", place, rest @ ..] if *place != "none" => {
                let formats = &self.log_formats;
                let named = |word: &&str| word.contains('=') || formats.iter().any(|f| f == word);
                let skipped = usize::from(rest.first().is_some_and(named));
                let rule: Vec<&str> = std::iter::once("allow")
                    .chain(rest[skipped..].iter().copied().filter(|w| !w.contains('=')))
                    .collect();
                Access::default().add(&rule, &self.acls)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Peers first, as Squid prefers them; an accelerator goes nowhere else.
    pub(super) fn ways(&self, port: &Port, asked: Asked<'_>) -> Ways<'_> {
        let usable = |peer: &&Peer| {
            // A tunnel goes through an origin server only to that server's own port.
            let fits = asked.method != "CONNECT" || !peer.origin || peer.port == asked.port;
            peer.parent && fits && peer.access.allows(&self.acls, asked, true)
        };
        Ways {
            peers: self.peers.iter().filter(usable).collect(),
            direct: (!port.accel || port.allow_direct)
                && !self.never_direct.allows(&self.acls, asked, false),
        }
    }
}

impl Port {
    fn parse(spec: &str, options: &[&str]) -> Result<Self, Failure> {
        let (host, number) = spec.rsplit_once(':').unwrap_or(("0.0.0.0", spec));
        let mut port = Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            number: number
                .parse()
                .map_err(|_| Failure::new(format!("FATAL: http_port: missing Port: {spec}")))?,
            name: spec.to_owned(),
            accel: false,
            allow_direct: false,
            vhost: true,
            default_site: None,
        };
        for option in options {
            match option.split_once('=').unwrap_or((option, "")) {
                ("accel", "") => port.accel = true,
                ("vhost", "") => {
                    if !port.accel {
                        log::line(
                            "WARNING: http_port: vhost option is deprecated. Use 'accel' mode flag instead.",
                        );
                    }
                    port.accel = true;
                }
                ("no-vhost", "") => port.vhost = false,
                ("allow-direct", "") => port.allow_direct = true,
                ("defaultsite", site) => port.default_site = Some(site.to_owned()),
                ("name", name) => name.clone_into(&mut port.name),
                (
                    "act-as-origin"
                    | "ignore-cc"
                    | "connection-auth"
                    | "disable-pmtu-discovery"
                    | "tcpkeepalive",
                    _,
                ) => {}
                ("intercept" | "tproxy" | "ssl-bump" | "vport" | "require-proxy-header", _) => {
                    return Err(Failure::new(format!(
                        "standin: http_port option '{option}' is not played here"
                    )));
                }
                _ => {
                    return Err(Failure::new(format!(
                        "FATAL: Unknown http_port option '{option}'."
                    )));
                }
            }
        }
        Ok(port)
    }
}

impl Peer {
    pub(super) fn is_dead(&self) -> bool {
        self.lives.load(Ordering::Relaxed) == 0
    }

    /// Notes how a connection to it went.
    pub(super) fn connected(&self, well: bool) {
        let lives = if well { LIVES } else { self.lives.load(Ordering::Relaxed).saturating_sub(1) };
        self.lives.store(lives, Ordering::Relaxed);
    }

    fn parse(host: &str, kind: &str, port: &str, options: &[&str]) -> Result<Self, Failure> {
        let mut peer = Self {
            host: host.to_owned(),
            port: port.parse().map_err(|_| Failure::new(format!("cache_peer port '{port}'")))?,
            name: host.to_owned(),
            parent: kind == "parent",
            origin: false,
            access: Access::default(),
            lives: AtomicU32::new(0),
        };
        for option in options {
            match option.split_once('=').unwrap_or((option, "")) {
                ("originserver", "") => peer.origin = true,
                ("name", name) => name.clone_into(&mut peer.name),
                ("no-query" | "no-digest" | "no-netdb-exchange" | "default" | "proxy-only", "")
                | ("connect-timeout" | "connect-fail-limit" | "max-conn" | "weight", _) => {}
                _ => log::line(&format!("ERROR: Ignoring unknown cache_peer option '{option}'")),
            }
        }
        Ok(peer)
    }
}

fn switch(value: &str) -> Result<bool, Failure> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(Failure::new("ERROR: Invalid option: Boolean options can only be 'on' or 'off'.")),
    }
}

/// `10 seconds`, `2 minutes`, `20`.
fn time(words: &[&str]) -> Result<Duration, Failure> {
    let number = words.first().and_then(|n| n.parse::<u64>().ok());
    let number = number.ok_or_else(|| Failure::new(format!("no time: {words:?}")))?;
    let unit = words.get(1).copied().unwrap_or("seconds");
    let factor = match unit.trim_end_matches('s') {
        "second" => 1,
        "minute" => 60,
        "hour" => 3600,
        "day" => 86_400,
        "millisecond" => return Ok(Duration::from_millis(number)),
        _ => {
            return Err(Failure::new(format!("configuration error: unknown time unit '{unit}'")));
        }
    };
    Ok(Duration::from_secs(number * factor))
}
