//! The managed services and this machine, asked before anything starts and
//! while it serves.
//!
//! Preflight ([`check`]): each probe collects facts (I/O) and a pure `judge`
//! turns them into [`CheckLine`]s; every line has a verdict and, unless it is
//! well, what to do. Readiness ([`probes`]): small questions asked for as long
//! as the agent runs, with [`freshness`] deciding when a service is away.
//!
//! One door each: `postgres` is this folder's only user of sqlx, `redis` of the
//! redis crate, `bucket` of the Cloud Storage API.

pub mod bucket;
pub mod freshness;
pub mod machine;
pub mod postgres;
pub mod probes;
mod reach;
pub mod redis;
pub mod tls;

use std::fmt;

use dify_common::chain::Chain;
use dify_common::gcp::token::Tokens;
use dify_common::wire::status::Finding;
use serde::Serialize;

use crate::config::Settings;
use crate::config::settings::SecretName;
use crate::dify::stack::Budget;
use crate::exit::Exit;
use crate::secrets::{SecretErrors, Secrets};

/// What a line is about. Its word is the kind used in `/health` and `/status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Main PostgreSQL.
    Database,
    /// PostgreSQL with pgvector.
    Vector,
    /// Memorystore.
    Redis,
    /// Cloud Storage.
    Bucket,
    /// Secret Manager and the references into it.
    Secrets,
    /// Image registry.
    Registry,
    /// This VM.
    Machine,
}

impl Group {
    /// The word on the wire and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Vector => "vector",
            Self::Redis => "redis",
            Self::Bucket => "bucket",
            Self::Secrets => "secrets",
            Self::Registry => "registry",
            Self::Machine => "machine",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a line came out; ordered from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works; better would be better.
    Warn,
    /// Dify would not work, or not safely.
    Fail,
}

/// One line of the preflight table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckLine {
    /// What it is about.
    pub group: Group,
    /// What was looked at: `reach`, `tls`, `version`, ...
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found; never a secret.
    pub found: String,
    /// What to do; absent when it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl CheckLine {
    /// All is well.
    pub fn ok(group: Group, name: &'static str, found: impl Into<String>) -> Self {
        let found = found.into();
        Self { group, name, verdict: Verdict::Ok, found, advice: None }
    }

    /// The line as one sentence, for a log or a status.
    pub fn sentence(&self) -> String {
        let Self { group, name, found, .. } = self;
        match &self.advice {
            Some(advice) => format!("{group} {name}: {found} ({advice})"),
            None => format!("{group} {name}: {found}"),
        }
    }

    /// Works; better would be better.
    pub fn warn(
        group: Group,
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let (found, advice) = (found.into(), Some(advice.into()));
        Self { group, name, verdict: Verdict::Warn, found, advice }
    }

    /// Dify would not work, or not safely.
    pub fn fail(
        group: Group,
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let (found, advice) = (found.into(), Some(advice.into()));
        Self { group, name, verdict: Verdict::Fail, found, advice }
    }
}

/// The lines for secrets.
pub fn secret_lines(fetched: &Result<Secrets, SecretErrors>) -> Vec<CheckLine> {
    let group = Group::Secrets;
    match fetched {
        Ok(secrets) => {
            let mut lines: Vec<_> = secrets
                .versions()
                .iter()
                .map(|(name, version)| CheckLine::ok(group, name.as_str(), version))
                .collect();
            let findings = secrets.findings().iter();
            lines
                .extend(findings.map(|finding| {
                    CheckLine::warn(group, "form", &finding.code, &finding.message)
                }));
            lines
        }
        Err(errors) => errors
            .iter()
            .map(|(name, error)| {
                CheckLine::fail(group, name.as_str(), error.kind(), Chain(error).to_string())
            })
            .collect(),
    }
}

/// What works but deserves a look, for `/status`.
pub fn findings(lines: &[CheckLine]) -> Vec<Finding> {
    let warned = lines.iter().filter(|line| line.verdict == Verdict::Warn);
    warned
        .map(|line| Finding {
            code: format!("{}-{}", line.group, line.name.replace(' ', "-")),
            message: match &line.advice {
                Some(advice) => format!("{}; {advice}", line.found),
                None => line.found.clone(),
            },
        })
        .collect()
}

/// How a command that ends on these lines ends; `Done` when none failed.
pub fn exit(lines: &[CheckLine]) -> Exit {
    let mut failed = lines.iter().filter(|line| line.verdict == Verdict::Fail).peekable();
    if failed.peek().is_none() {
        return Exit::Done;
    }
    // What is local and certain goes before what a service may be to blame for.
    let mut exit = Exit::Dependency;
    for line in failed {
        match (line.group, line.name) {
            (Group::Machine, "disk") => return Exit::Disk,
            (Group::Secrets, _) => exit = Exit::Secret,
            (Group::Registry, "image") => exit = Exit::Manifest,
            (_, "connections" | "budget") => exit = Exit::Configuration,
            _ => {}
        }
    }
    exit
}

/// Asks both databases, Redis and the buckets at once. Creates what is allowed
/// and missing: the extensions `uuid-ossp` and `vector`, the plugin database.
pub async fn check(
    settings: &Settings,
    secrets: &Secrets,
    budget: &Budget,
    tokens: Option<&Tokens>,
) -> Vec<CheckLine> {
    dify_common::gcp::install_tls_provider();
    let certificates = settings.certificates.as_deref();
    let same_server = (&settings.database.host, settings.database.port)
        == (&settings.vector.host, settings.vector.port);
    let main = postgres::Question {
        group: Group::Database,
        server: &settings.database,
        password: secrets.get(SecretName::DatabasePassword),
        certificates,
        extension: "uuid-ossp",
        plugin_database: Some(&settings.plugin_database),
    };
    let vector = postgres::Question {
        group: Group::Vector,
        server: &settings.vector,
        password: secrets.get(SecretName::VectorPassword),
        certificates,
        extension: "vector",
        plugin_database: None,
    };
    let (main_facts, vector_facts, redis_facts, bucket_lines) = tokio::join!(
        postgres::look(&main),
        postgres::look(&vector),
        redis::look(
            &settings.redis,
            secrets.get(SecretName::RedisPassword),
            certificates,
            settings.features.agent,
        ),
        buckets(settings, tokens),
    );
    let mut need = (
        postgres::Need {
            connections: budget.database,
            arithmetic: budget.database_arithmetic.clone(),
        },
        postgres::Need { connections: budget.vector, arithmetic: budget.vector_arithmetic.clone() },
    );
    if same_server {
        let both = format!("{}; {}", need.0.arithmetic, need.1.arithmetic);
        let sum = need.0.connections + need.1.connections;
        need.0 = postgres::Need { connections: sum, arithmetic: both };
        need.1 = need.0.clone();
    }
    let mut lines = postgres::judge(&main, &main_facts, &need.0);
    lines.extend(postgres::judge(&vector, &vector_facts, &need.1));
    lines.extend(redis::judge(&settings.redis, &redis_facts));
    lines.extend(bucket_lines);
    lines
}

async fn buckets(settings: &Settings, tokens: Option<&Tokens>) -> Vec<CheckLine> {
    let Some(tokens) = tokens else {
        return vec![CheckLine::fail(
            Group::Bucket,
            "identity",
            "no Google credentials on this machine",
            "run on a VM with a service account, or provide application default credentials",
        )];
    };
    let storage = bucket::Storage::new(&settings.google.storage, tokens.clone());
    let mut names = vec![&settings.bucket.name];
    if settings.bucket.plugins != settings.bucket.name {
        names.push(&settings.bucket.plugins);
    }
    let mut lines = Vec::new();
    for name in names {
        let facts = storage.look(name, &settings.node).await;
        lines.extend(bucket::judge(name, &facts));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_become_findings_and_failures_do_not() {
        let lines = [
            CheckLine::warn(Group::Redis, "plugin database", "found", "do this"),
            CheckLine::fail(Group::Redis, "reach", "", ""),
        ];
        let findings = findings(&lines);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].code, "redis-plugin-database");
        assert_eq!(findings[0].message, "found; do this");
    }

    #[test]
    fn the_worst_local_reason_decides_the_exit_code() {
        let fail = |group, name| CheckLine::fail(group, name, "", "");
        assert_eq!(exit(&[]), Exit::Done);
        assert_eq!(exit(&[CheckLine::warn(Group::Redis, "policy", "", "")]), Exit::Done);
        assert_eq!(exit(&[fail(Group::Redis, "reach")]), Exit::Dependency);
        assert_eq!(exit(&[fail(Group::Database, "connections")]), Exit::Configuration);
        assert_eq!(exit(&[fail(Group::Redis, "reach"), fail(Group::Machine, "disk")]), Exit::Disk);
    }
}
