//! The settings in force, written as a document again: what
//! `dify-agent config` shows. Parsing it gives the same settings. Nothing in
//! it is secret, because nothing in [`Settings`] is: secrets are references.

use std::fmt::Display;
use std::time::Duration;

use dify_common::telemetry::LogMode;
use serde_yaml::{Mapping, Value};

use super::settings::{Postgres, RedisTls, SecretName, Settings};

impl Settings {
    /// The whole document, every default filled in.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(&self.document()).expect("a mapping of text keys can be written")
    }

    fn document(&self) -> Value {
        let secret = |name| self.secrets.get(&name).map(text);
        section([
            ("schema", Some(1.into())),
            ("release", Some(text(&self.release))),
            ("public_host", Some(text(&self.public_host))),
            (
                "node",
                Some(section([
                    ("id", Some(text(&self.node))),
                    ("subnet", Some(text(format_args!("{}/24", self.network.base)))),
                ])),
            ),
            (
                "database",
                Some(section(
                    postgres(&self.database, secret(SecretName::DatabasePassword))
                        .into_iter()
                        .chain([("plugin_name", Some(text(&self.plugin_database)))]),
                )),
            ),
            ("vector", Some(section(postgres(&self.vector, secret(SecretName::VectorPassword))))),
            (
                "redis",
                Some(section([
                    ("host", Some(text(&self.redis.host))),
                    ("port", Some(self.redis.port.into())),
                    ("tls", Some(text(redis_tls(self.redis.tls)))),
                    ("password", secret(SecretName::RedisPassword)),
                ])),
            ),
            (
                "bucket",
                Some(section([
                    ("name", Some(text(&self.bucket.name))),
                    ("plugins", Some(text(&self.bucket.plugins))),
                ])),
            ),
            ("certificates", self.certificates.as_ref().map(text)),
            ("secrets", Some(section(self.own_secrets()))),
            (
                "features",
                Some(section([
                    ("collaboration", Some(self.features.collaboration.into())),
                    ("agent", Some(self.features.agent.into())),
                ])),
            ),
            ("capacity", Some(self.capacity_section())),
            (
                "images",
                Some(section([
                    ("mirror", self.images.mirror.as_ref().map(text)),
                    ("allow_unlocked", Some(self.images.allow_unlocked.into())),
                    ("concurrency", Some(self.images.concurrency.get().into())),
                    (
                        "releases_dir",
                        self.images.releases_dir.as_ref().map(|path| text(path.display())),
                    ),
                ])),
            ),
            (
                "drain",
                Some(section([
                    ("notice", Some(duration(self.drain.notice))),
                    ("bound", Some(duration(self.drain.bound))),
                ])),
            ),
            (
                "liveness",
                Some(section([
                    ("docker_after", Some(duration(self.liveness.docker_after))),
                    ("disk_after", Some(duration(self.liveness.disk_after))),
                    ("agent_after", Some(duration(self.liveness.agent_after))),
                ])),
            ),
            (
                "logs",
                Some(section([
                    ("mode", Some(text(log_mode(self.logs.mode)))),
                    ("filter", Some(text(&self.logs.filter))),
                ])),
            ),
            (
                "paths",
                Some(section([
                    ("state", Some(text(self.paths.state.display()))),
                    ("run", Some(text(self.paths.run.display()))),
                    ("docker", Some(text(self.paths.docker.display()))),
                ])),
            ),
            ("ops", Some(section([("listen", Some(text(self.paths.ops)))]))),
            (
                "google",
                Some(section([
                    ("secret_manager", Some(text(&self.google.secret_manager))),
                    ("storage", Some(text(&self.google.storage))),
                    ("metadata", self.google.metadata.as_ref().map(text)),
                ])),
            ),
            ("environment", Some(self.environment_section())),
        ])
    }

    fn own_secrets(&self) -> impl Iterator<Item = (&'static str, Option<Value>)> {
        let beside_their_server =
            [SecretName::DatabasePassword, SecretName::VectorPassword, SecretName::RedisPassword];
        self.secrets
            .iter()
            .filter(move |(name, _)| !beside_their_server.contains(name))
            .map(|(name, reference)| (name.as_str(), Some(text(reference))))
    }

    fn capacity_section(&self) -> Value {
        let capacity = &self.capacity;
        let count = |count: Option<std::num::NonZeroU32>| count.map(|count| count.get().into());
        section([
            ("max_vms", Some(capacity.max_vms.get().into())),
            ("api_workers", count(capacity.api_workers)),
            ("api_connections", count(capacity.api_connections)),
            ("celery_concurrency", count(capacity.celery_concurrency)),
            ("pool_size", count(capacity.pool_size)),
            ("pool_overflow", capacity.pool_overflow.map(Into::into)),
        ])
    }

    fn environment_section(&self) -> Value {
        let services = self.environment.iter().map(|(service, variables)| {
            let variables = variables.iter().map(|(key, value)| (text(key), text(value)));
            (text(service), Value::Mapping(variables.collect()))
        });
        Value::Mapping(services.collect())
    }
}

fn postgres(server: &Postgres, password: Option<Value>) -> [(&'static str, Option<Value>); 6] {
    [
        ("host", Some(text(&server.host))),
        ("port", Some(server.port.into())),
        ("name", Some(text(&server.database))),
        ("user", Some(text(&server.user))),
        ("tls", Some(text(server.tls.sslmode()))),
        ("password", password),
    ]
}

fn redis_tls(tls: RedisTls) -> &'static str {
    match tls {
        RedisTls::Disable => "disable",
        RedisTls::NoVerify => "no-verify",
        RedisTls::Verify => "verify",
    }
}

fn log_mode(mode: LogMode) -> &'static str {
    match mode {
        LogMode::Auto => "auto",
        LogMode::Journald => "journald",
        LogMode::Json => "json",
        LogMode::Text => "text",
    }
}

fn duration(value: Duration) -> Value {
    text(humantime::format_duration(value))
}

fn text(value: impl Display) -> Value {
    Value::String(value.to_string())
}

/// Keys in the order given; what has no value has no key.
fn section(entries: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Value {
    let entries = entries.into_iter();
    let present: Mapping = entries.filter_map(|(key, value)| Some((text(key), value?))).collect();
    Value::Mapping(present)
}
