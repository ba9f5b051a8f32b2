//! A stack that may be shown: serialisable, every secret masked. For
//! `dify-agent plan --json` and the golden files.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::engine::spec::{ContainerSpec, EnvValue, FirewallRule, Probe};

use super::stack::Stack;

/// Stands for a secret.
const MASK: &str = "[REDACTED]";

/// A stack, shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// The release.
    pub release: String,
    /// `name subnet [internal] options`.
    pub networks: Vec<String>,
    /// Packet filter rules.
    pub firewall: Vec<String>,
    /// In start order.
    pub containers: Vec<ExplainedContainer>,
    /// Runs once per release.
    pub migration: ExplainedContainer,
    /// Template of `flask ARGS`.
    pub job: ExplainedContainer,
    /// flask arguments of each.
    pub post_migration: Vec<Vec<String>>,
    /// Forwarding targets.
    pub upstreams: BTreeMap<String, dify_common::wire::edge::Upstream>,
    /// Prefix, target.
    pub routes: Vec<dify_common::wire::edge::Route>,
    /// Never forwarded.
    pub refusals: Vec<dify_common::wire::edge::Refusal>,
    /// Not forwarded until Dify has an admin.
    pub setup_refusals: Vec<dify_common::wire::edge::Refusal>,
    /// What an operator should know.
    pub findings: Vec<dify_common::wire::status::Finding>,
    /// Connections to the main database, in words.
    pub database_connections: String,
    /// Connections to the vector database, in words.
    pub vector_connections: String,
}

/// A container, shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedContainer {
    /// Dify's name.
    pub service: String,
    /// Name on the engine.
    pub name: String,
    /// Host name inside, when set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// What runs.
    pub image: String,
    /// Replaced entrypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Replaced command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Replaced user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `network address (aliases)`.
    pub networks: Vec<String>,
    /// Variables, secrets masked.
    pub env: BTreeMap<String, String>,
    /// Path and content of our files.
    pub files: BTreeMap<String, String>,
    /// `volume:path`.
    pub volumes: Vec<String>,
    /// Limits and rights, in words.
    pub limits: String,
    /// Readiness, in words.
    pub probe: String,
    /// Must be ready before.
    pub after: Vec<String>,
    /// Readiness of the node needs it.
    pub serving: bool,
    /// `order n, signal, seconds`.
    pub stop: String,
}

/// The stack, shown.
pub fn explain(stack: &Stack) -> Explained {
    Explained {
        release: stack.release.to_string(),
        networks: stack
            .networks
            .iter()
            .map(|n| {
                let internal = if n.internal { " internal" } else { "" };
                let options: Vec<String> =
                    n.options.iter().map(|(k, v)| format!(" {k}={v}")).collect();
                format!("{} {}/{}{internal}{}", n.name, n.subnet, n.prefix, options.concat())
            })
            .collect(),
        firewall: stack
            .firewall
            .iter()
            .map(|rule| match rule {
                FirewallRule::CloseHost { bridge, subnet, prefix } => {
                    format!("from {bridge} ({subnet}/{prefix}) to this machine: only answers")
                }
            })
            .collect(),
        containers: stack.containers.iter().map(container).collect(),
        migration: container(&stack.migration),
        job: container(&stack.job),
        post_migration: stack.post_migration.clone(),
        upstreams: stack.upstreams.clone(),
        routes: stack.routes.clone(),
        refusals: stack.refusals.clone(),
        setup_refusals: stack.setup_refusals.clone(),
        findings: stack.findings.clone(),
        database_connections: stack.budget.database_arithmetic.clone(),
        vector_connections: stack.budget.vector_arithmetic.clone(),
    }
}

/// A container, shown.
pub fn container(spec: &ContainerSpec) -> ExplainedContainer {
    ExplainedContainer {
        service: spec.service.clone(),
        name: spec.name.clone(),
        hostname: spec.hostname.clone(),
        image: spec.image.clone(),
        entrypoint: spec.entrypoint.clone(),
        command: spec.command.clone(),
        user: spec.user.clone(),
        networks: spec
            .networks
            .iter()
            .map(|leg| format!("{} {} ({})", leg.network, leg.address, leg.aliases.join(", ")))
            .collect(),
        env: spec
            .env
            .iter()
            .map(|(key, value)| {
                let shown = match value {
                    EnvValue::Plain(text) => text.clone(),
                    EnvValue::Secret(_) => MASK.to_owned(),
                };
                (key.clone(), shown)
            })
            .collect(),
        files: spec
            .files
            .iter()
            .map(|file| (format!("{} {:04o}", file.path, file.mode), file.content.clone()))
            .collect(),
        volumes: spec.volumes.iter().map(|v| format!("{}:{}", v.volume, v.path)).collect(),
        limits: limits(spec),
        probe: probe(&spec.probe),
        after: spec.after.clone(),
        serving: spec.serving,
        stop: format!(
            "order {}, {}, {} s",
            spec.stop_order,
            spec.stop_signal.as_deref().unwrap_or("the image's signal"),
            spec.stop_timeout.as_secs()
        ),
    }
}

fn limits(spec: &ContainerSpec) -> String {
    let mut words = Vec::new();
    if let Some(bytes) = spec.limits.memory {
        words.push(format!("memory {} MiB", bytes >> 20));
    }
    if let Some(shares) = spec.limits.cpu_shares {
        words.push(format!("cpu shares {shares}"));
    }
    if let Some(pids) = spec.limits.pids {
        words.push(format!("pids {pids}"));
    }
    words.extend(spec.cap_drop.iter().map(|cap| format!("-{cap}")));
    words.extend(spec.cap_add.iter().map(|cap| format!("+{cap}")));
    if spec.no_new_privileges {
        words.push("no new privileges".to_owned());
    }
    words.join(", ")
}

fn probe(probe: &Probe) -> String {
    match probe {
        Probe::Http { port, path, deadline } => {
            format!("GET :{port}{path} within {} s", deadline.as_secs())
        }
        Probe::Tcp { port } => format!("connect :{port}"),
        Probe::Exec { command, deadline } => {
            format!("{} within {} s", command.join(" "), deadline.as_secs())
        }
        Probe::Running { stable_for } => format!("running for {} s", stable_for.as_secs()),
    }
}
