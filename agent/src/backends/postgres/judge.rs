//! What the facts of a PostgreSQL server mean for Dify. Pure.

use std::borrow::Cow;

use dify_common::chain::Chain;

use super::{
    Connections, Extension, Facts, Fault, Need, PluginDatabase, Question, Server, TlsFault,
};
use crate::backends::tls::{Certificate, HandshakeError};
use crate::backends::{CheckLine, Group};
use crate::config::settings::PostgresTls;

/// Oldest server Dify's migrations run on.
const OLDEST: u32 = 130_000;
/// Seconds of clock difference that are worth a look; NTP keeps milliseconds.
const SKEW_WARN: f64 = 2.0;
/// Seconds at which tokens and certificates begin to fail.
const SKEW_FAIL: f64 = 60.0;

/// The lines for one server.
pub fn judge(question: &Question<'_>, facts: &Facts, need: &Need) -> Vec<CheckLine> {
    let group = question.group;
    let place = format!("{}:{}", question.server.host, question.server.port);
    let took = match &facts.reach {
        Ok(took) => took,
        Err(error) => {
            let found = format!("{place}: {}", Chain(error));
            return vec![CheckLine::fail(group, "reach", found, error.advice())];
        }
    };
    let mut lines = vec![CheckLine::ok(group, "reach", format!("{place} in {took:.0?}"))];
    lines.push(tls(question, facts));
    match &facts.server {
        None => {}
        Some(Err(fault)) => lines.push(login(question, fault)),
        Some(Ok(server)) => {
            let role = &question.server.user;
            let found = format!(
                "{role} on {}, {:.0?} a question",
                question.server.database, server.latency
            );
            lines.push(CheckLine::ok(group, "login", found));
            lines.extend(inside(question, server, need));
        }
    }
    lines
}

fn tls(question: &Question<'_>, facts: &Facts) -> CheckLine {
    let group = question.group;
    let fail = |found: &str, advice: &str| CheckLine::fail(group, "tls", found, advice);
    match (&facts.tls, question.server.tls) {
        (None, _) => CheckLine::warn(
            group,
            "tls",
            "off",
            "use tls: verify-ca unless the server is on this machine",
        ),
        (Some(Err(fault)), _) => match fault {
            TlsFault::NotOffered => fail("the server offers no TLS", "switch TLS on at the server"),
            TlsFault::Handshake(HandshakeError::Bundle) => {
                fail("`certificates` is not a bundle of PEM certificates", "correct `certificates`")
            }
            TlsFault::Handshake(_) | TlsFault::Question(_) => {
                fail(&Chain(fault).to_string(), "is this PostgreSQL's port?")
            }
        },
        (Some(Ok(_)), PostgresTls::Require | PostgresTls::Disable) => CheckLine::warn(
            group,
            "tls",
            "encrypted, certificate not checked",
            "put the server's CA into `certificates` and use tls: verify-ca",
        ),
        (Some(Ok(certificate)), PostgresTls::VerifyCa) => match certificate {
            Certificate::Good => {
                CheckLine::ok(group, "tls", "certificate from `certificates`, name matches")
            }
            Certificate::OtherName { .. } => CheckLine::ok(
                group,
                "tls",
                "certificate from `certificates` (name not checked by verify-ca)",
            ),
            Certificate::UnknownAuthority => fail(
                "certificate signed by unknown authority",
                "is the instance's server CA in `certificates`? During a rotation both old and new belong there",
            ),
            Certificate::OutOfDate(why) => {
                fail(why, "rotate the server certificate, or set this VM's clock")
            }
            Certificate::Bad(why) => fail(why, "replace the server certificate"),
            Certificate::NoBundle => fail(
                "nothing to check the certificate against",
                "put the instance's server CA into `certificates`",
            ),
        },
    }
}

fn login(question: &Question<'_>, fault: &Fault) -> CheckLine {
    let found = Chain(fault).to_string();
    let (user, database) = (&question.server.user, &question.server.database);
    let code = match fault {
        Fault::Login(sqlx::Error::Database(error)) => error.code().map(Cow::into_owned),
        Fault::Login(_) | Fault::Ask(..) | Fault::Silent(_) => None,
    };
    // SQLSTATE, appendix A of PostgreSQL's manual.
    let advice = match code.as_deref() {
        Some("28P01") => {
            format!("wrong password for role {user}: correct the secret or the role's password")
        }
        Some("28000") => format!(
            "the server lets {user} not in this way: does the role exist, is `tls` as the server wants it \
             (Cloud SQL: SSL mode), may this address connect?"
        ),
        Some("3D000") => format!("create database {database}"),
        Some("53300") => {
            "no connection left: raise max_connections or lower the fleet's pools".to_owned()
        }
        Some("57P03") => "the server is starting up; wait for it".to_owned(),
        Some("42501") => format!("grant CONNECT on {database} to {user}"),
        Some(_) | None => "see the server's log".to_owned(),
    };
    CheckLine::fail(question.group, "login", found, advice)
}

fn inside(question: &Question<'_>, server: &Server, need: &Need) -> Vec<CheckLine> {
    let group = question.group;
    let role = &question.server.user;
    let mut lines = Vec::new();

    let version = format!("PostgreSQL {}.{}", server.version / 10_000, server.version % 10_000);
    lines.push(if server.version < OLDEST {
        CheckLine::fail(group, "version", version, "Dify needs PostgreSQL 13 or later")
    } else {
        CheckLine::ok(group, "version", version)
    });

    lines.push(if server.read_only {
        let advice = "point `host` at the primary instance";
        CheckLine::fail(group, "writable", "a replica, or read-only", advice)
    } else {
        CheckLine::ok(group, "writable", "yes")
    });

    // Only the main database holds schema dify_fleet.
    let schema = server.may_create_schema || group == Group::Vector;
    lines.push(match (schema, server.may_create_table) {
        (true, true) => CheckLine::ok(group, "rights", format!("{role} may create what is needed")),
        (false, _) => CheckLine::fail(
            group,
            "rights",
            format!("{role} may not create schema dify_fleet"),
            format!(
                "GRANT CREATE ON DATABASE {} TO {role}, or make it the owner",
                question.server.database
            ),
        ),
        (true, false) => CheckLine::fail(
            group,
            "rights",
            format!("{role} may not create tables"),
            format!(
                "GRANT CREATE ON SCHEMA public TO {role} (not given by default since PostgreSQL 15)"
            ),
        ),
    });

    lines.push(extension(question, &server.extension));
    if let (Some(plugin), Some(name)) = (&server.plugin, question.plugin_database) {
        lines.push(plugin_database(group, plugin, name, role));
    }
    lines.push(connections(group, server.connections, need));

    let skew = format!("{:+.1} s against this machine", server.skew);
    let advice = "have this VM's clock set by NTP (chrony, metadata.google.internal)";
    lines.push(match server.skew.abs() {
        ahead if ahead > SKEW_FAIL => CheckLine::fail(group, "clock", skew, advice),
        ahead if ahead > SKEW_WARN => CheckLine::warn(group, "clock", skew, advice),
        _ => CheckLine::ok(group, "clock", skew),
    });
    lines
}

fn extension(question: &Question<'_>, state: &Extension) -> CheckLine {
    let (group, name) = (question.group, question.extension);
    match state {
        Extension::Present(version) if name == "vector" && older(version, [0, 5]) => {
            CheckLine::fail(
                group,
                "extension",
                format!("vector {version}"),
                "Dify builds HNSW indexes: ALTER EXTENSION vector UPDATE to 0.5 or later",
            )
        }
        Extension::Present(version) => {
            CheckLine::ok(group, "extension", format!("{name} {version}"))
        }
        Extension::Created => CheckLine::ok(group, "extension", format!("{name} created")),
        Extension::Unavailable => CheckLine::fail(
            group,
            "extension",
            format!("{name} is not installed on the server"),
            "install it there (PostgreSQL contrib, pgvector), or use a server that has it",
        ),
        Extension::Refused(said) => CheckLine::fail(
            group,
            "extension",
            format!("{name} is missing: {said}"),
            format!(
                "CREATE EXTENSION \"{name}\" in database {} as an administrator (Cloud SQL: a user of \
                 cloudsqlsuperuser)",
                question.server.database
            ),
        ),
    }
}

/// `0.4.4` is older than `[0, 5]`; a version without numbers is not.
fn older(version: &str, least: [u32; 2]) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => [major, minor] < least,
        (Some(_) | None, _) => false,
    }
}

fn plugin_database(group: Group, state: &PluginDatabase, name: &str, role: &str) -> CheckLine {
    let line = "plugin database";
    match state {
        PluginDatabase::Present => CheckLine::ok(group, line, name),
        PluginDatabase::Created => CheckLine::ok(group, line, format!("{name} created")),
        PluginDatabase::NotOurs => CheckLine::fail(
            group,
            line,
            format!("{role} may not create tables in {name}"),
            format!("ALTER DATABASE {name} OWNER TO {role}"),
        ),
        PluginDatabase::Refused(said) => CheckLine::fail(
            group,
            line,
            format!("{name} cannot be used: {said}"),
            format!("CREATE DATABASE {name} OWNER {role} as an administrator"),
        ),
    }
}

fn connections(group: Group, room: Connections, need: &Need) -> CheckLine {
    let line = "connections";
    let Connections { max, reserved, ours, others } = room;
    let free = max.saturating_sub(reserved);
    let found = format!(
        "fleet at most {} = {}; server {max} - {reserved} reserved = {free}, in use: {ours} by this role, \
         {others} by others",
        need.connections, need.arithmetic
    );
    if need.connections > free {
        let advice = format!(
            "raise max_connections to {} at least, or lower capacity.max_vms, pool_size or api_workers",
            need.connections + reserved + others
        );
        CheckLine::fail(group, line, found, advice)
    } else if need.connections + others > free {
        let advice =
            "what others hold may be missing when the fleet is full: raise max_connections";
        CheckLine::warn(group, line, found, advice)
    } else {
        CheckLine::ok(group, line, found)
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
