//! What the facts of a Redis server mean for Dify. Pure.

use dify_common::chain::Chain;

use super::{Facts, Fault, Server};
use crate::backends::tls::{Certificate, HandshakeError};
use crate::backends::{CheckLine, Group};
use crate::config::settings::{Redis, RedisTls};

const GROUP: Group = Group::Redis;
/// Share of `maxmemory` in use, in percent, that deserves a look: queues and
/// streams need room to grow while a worker is away.
const FULL_WARN: u64 = 80;
/// Share at which writes are about to fail.
const FULL_FAIL: u64 = 95;

/// The lines for one server.
pub fn judge(server: &Redis, facts: &Facts) -> Vec<CheckLine> {
    let place = format!("{}:{}", server.host, server.port);
    let took = match &facts.reach {
        Ok(took) => took,
        Err(error) => {
            let found = format!("{place}: {}", Chain(error));
            return vec![CheckLine::fail(GROUP, "reach", found, error.advice())];
        }
    };
    let mut lines = vec![CheckLine::ok(GROUP, "reach", format!("{place} in {took:.0?}"))];
    lines.push(tls(server, facts));
    match &facts.server {
        None => {}
        Some(Err(fault)) => lines.push(login(fault)),
        Some(Ok(told)) => lines.extend(inside(told)),
    }
    lines
}

fn tls(server: &Redis, facts: &Facts) -> CheckLine {
    let fail = |found: String, advice: &str| CheckLine::fail(GROUP, "tls", found, advice);
    let certificate = match &facts.tls {
        None => {
            let advice = "switch in-transit encryption on unless the server is on this machine";
            return CheckLine::warn(GROUP, "tls", "off", advice);
        }
        Some(Err(HandshakeError::Bundle)) => {
            let found = "`certificates` is not a bundle of PEM certificates".to_owned();
            return fail(found, "correct `certificates`");
        }
        Some(Err(error)) => {
            let advice =
                "is this the TLS port (Memorystore: 6378), and is in-transit encryption on?";
            return fail(Chain(error).to_string(), advice);
        }
        Some(Ok(certificate)) => certificate,
    };
    if server.tls == RedisTls::NoVerify {
        return if *certificate == Certificate::Good {
            let found = "encrypted; certificate would pass, but is not checked";
            CheckLine::warn(GROUP, "tls", found, "use tls: verify")
        } else {
            CheckLine::ok(GROUP, "tls", "encrypted, certificate not checked")
        };
    }
    match certificate {
        Certificate::Good => {
            CheckLine::ok(GROUP, "tls", "certificate from `certificates`, name matches")
        }
        Certificate::OtherName { presented } => {
            let names =
                if presented.is_empty() { "no name".to_owned() } else { presented.join(", ") };
            // Dify's clients check the name whenever they check the chain.
            fail(
                format!("the certificate does not carry {}, but {names}", server.host),
                "use a DNS name the certificate carries as `host`, or tls: no-verify",
            )
        }
        Certificate::UnknownAuthority => fail(
            "certificate signed by unknown authority".to_owned(),
            "is the instance's server CA in `certificates`? During a rotation both old and new belong there",
        ),
        Certificate::OutOfDate(why) => {
            fail(why.clone(), "rotate the server certificate, or set this VM's clock")
        }
        Certificate::Bad(why) => fail(why.clone(), "replace the server certificate"),
        Certificate::NoBundle => fail(
            "nothing to check the certificate against".to_owned(),
            "put the instance's server CA into `certificates`, or use tls: no-verify",
        ),
    }
}

fn login(fault: &Fault) -> CheckLine {
    let advice = match fault {
        Fault::Auth(_) => {
            "correct the secret: it must be the instance's AUTH string (and AUTH switched on)"
        }
        Fault::Ask(_) => "is this a Redis, and does it speak TLS exactly when `tls` says so?",
        Fault::Silent(_) => "is the server overloaded, or `tls` off while the server wants it?",
    };
    CheckLine::fail(GROUP, "login", Chain(fault).to_string(), advice)
}

fn inside(told: &Server) -> Vec<CheckLine> {
    let mut lines = vec![CheckLine::ok(GROUP, "login", format!("{:.0?} a question", told.latency))];

    let version = format!("Redis {}", told.version);
    let major = told.version.split('.').next().and_then(|text| text.parse::<u32>().ok());
    lines.push(match major {
        Some(6..) => CheckLine::ok(GROUP, "version", version),
        Some(_) | None => CheckLine::fail(
            GROUP,
            "version",
            version,
            "Dify speaks RESP3: Redis 6 or later is needed",
        ),
    });

    if told.mode == "cluster" {
        let advice = "use Memorystore for Redis (not Cluster): Dify needs several databases";
        lines.push(CheckLine::fail(GROUP, "mode", "a cluster: it has database 0 only", advice));
    }

    lines.push(match (&told.write, told.role.as_str()) {
        (Ok(()), _) => CheckLine::ok(GROUP, "write", "a key was written, read back and deleted"),
        (Err(_), "slave") => {
            let advice = "point `host` at the primary endpoint";
            CheckLine::fail(GROUP, "write", "this is a replica", advice)
        }
        (Err(why), _) => {
            CheckLine::fail(GROUP, "write", why.clone(), "free memory, or correct the rights")
        }
    });

    lines.push(if told.closed.is_empty() {
        CheckLine::ok(GROUP, "databases", "all that Dify uses can be selected")
    } else {
        let list: Vec<_> = told.closed.iter().map(|(n, why)| format!("{n} ({why})")).collect();
        let advice = "Dify keeps cache, queues and agent apart by database: allow 3 at least";
        CheckLine::fail(GROUP, "databases", format!("cannot select {}", list.join(", ")), advice)
    });

    lines.push(policy(told.policy.as_deref()));
    lines.push(memory(told));
    lines
}

/// Celery's queues are keys without expiry: a policy that evicts those loses
/// tasks without a word; one that evicts keys with expiry loses locks and event
/// streams of runs that go on.
fn policy(policy: Option<&str>) -> CheckLine {
    let advice = "set maxmemory-policy to noeviction";
    match policy {
        Some("noeviction") => CheckLine::ok(GROUP, "policy", "noeviction"),
        Some(name) if name.starts_with("volatile-") => CheckLine::warn(
            GROUP,
            "policy",
            format!("{name}: when memory is full, locks and event streams may vanish"),
            advice,
        ),
        Some(name) => CheckLine::fail(
            GROUP,
            "policy",
            format!("{name}: when memory is full, queued tasks vanish"),
            advice,
        ),
        None => CheckLine::warn(GROUP, "policy", "INFO memory does not tell", advice),
    }
}

fn memory(told: &Server) -> CheckLine {
    let mebi = |bytes: u64| bytes / (1 << 20);
    if told.max == 0 {
        return CheckLine::ok(
            GROUP,
            "memory",
            format!("{} MiB in use, no limit set", mebi(told.used)),
        );
    }
    let percent = told.used.saturating_mul(100) / told.max;
    let found = format!("{} of {} MiB in use ({percent} %)", mebi(told.used), mebi(told.max));
    let advice = "enlarge the instance";
    match percent {
        FULL_FAIL.. => CheckLine::fail(GROUP, "memory", found, advice),
        FULL_WARN.. => CheckLine::warn(GROUP, "memory", found, advice),
        _ => CheckLine::ok(GROUP, "memory", found),
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
