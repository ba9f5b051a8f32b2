//! The manifest's types. Strict: an unknown key is an error. Every block
//! carries its `source`, or `unconfirmed: true` with the source saying what is
//! known; the check insists on it.

use std::collections::BTreeMap;

use dify_common::ids::ReleaseId;
use serde::Deserialize;

use super::value::Value;

/// Where a block's facts come from.
pub type Source = Option<String>;

/// One Dify release.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Version, as in the image tags.
    pub release: ReleaseId,
    /// Where the whole comes from.
    pub source: Source,
    /// Not checked against Dify's own material.
    #[serde(default)]
    pub unconfirmed: bool,
    /// What an operator of this release should know.
    #[serde(default)]
    pub findings: Vec<Known>,
    /// Containers in start order: what serves first, then the rest.
    pub services: Vec<Service>,
    /// Groups of environment keys with one origin; services name them.
    pub environment: BTreeMap<String, Group>,
    /// What port 1080 does.
    pub front_door: FrontDoor,
    /// Background work.
    pub celery: Celery,
    /// The one-shot that migrates the main schema.
    pub migration: OneShot,
    /// The one-shot that runs `flask ARGS`.
    pub job: OneShot,
    /// Run once per release after the migration.
    pub post_migration: PostMigration,
    /// Facts about the main schema.
    pub schema: Schema,
    /// Which releases may serve at the same time on the same schema.
    pub beside: Beside,
}

/// A finding that belongs to the release.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// Short and stable.
    pub code: String,
    /// One sentence, with what to do.
    pub message: String,
    /// Origin.
    pub source: Source,
    /// Not checked.
    #[serde(default)]
    pub unconfirmed: bool,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Dify's name for it.
    pub name: String,
    /// `repo:tag`.
    pub image: String,
    /// Origin.
    pub source: Source,
    /// Not checked.
    #[serde(default)]
    pub unconfirmed: bool,
    /// Runs only with this feature.
    pub feature: Option<Feature>,
    /// Replaces the image's user.
    pub user: Option<String>,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub command: Option<Vec<String>>,
    /// Port other services reach it by.
    pub port: Option<u16>,
    /// Networks; the first is the one this machine reaches it on.
    pub networks: Vec<Leg>,
    /// Services that must be ready first.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Readiness of the node needs it.
    #[serde(default)]
    pub serving: bool,
    /// When it counts as ready.
    #[serde(with = "serde_yaml::with::singleton_map")]
    pub probe: Probe,
    /// How it is stopped.
    pub stop: Stop,
    /// MiB it needs at rest; their sum is held against the machine.
    pub memory_floor_mib: u32,
    /// Hard limits, where one is wise.
    #[serde(default)]
    pub limits: Limits,
    /// Files of ours.
    #[serde(default)]
    pub files: Vec<File>,
    /// Named volumes, node-local.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Groups of environment keys it takes.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Keys of its own.
    #[serde(default)]
    pub set: BTreeMap<String, Value>,
}

/// Optional part of Dify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// Several people in one workflow editor.
    Collaboration,
    /// Agent services.
    Agent,
}

/// A container's place on a network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leg {
    /// Which.
    pub on: Network,
    /// Further names on it, beside the service's own.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// The node's networks; `dify::network` says who may talk on which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The bridge with a route out.
    Main,
    /// Code execution, client side: api, worker and the relay.
    Code,
    /// Code execution, server side: sandbox and its proxy. No route out.
    Sandbox,
    /// Agent backend and its sandbox. No route out.
    Agent,
    /// Agent sandbox and its proxy. No route out.
    AgentProxy,
}

/// How readiness is asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Probe {
    /// 200 from a path.
    Http {
        /// Port in the container.
        port: u16,
        /// Path.
        path: String,
        /// One answer's deadline, in seconds.
        deadline_s: u32,
    },
    /// A connection: only for what speaks no HTTP of its own.
    Tcp {
        /// Port in the container.
        port: u16,
    },
    /// `celery inspect ping` of this very worker.
    Celery {
        /// One run's deadline, in seconds; Python starts first.
        deadline_s: u32,
    },
    /// Running without an exit.
    Running {
        /// Seconds.
        stable_for_s: u32,
    },
}

/// How a container is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// Lower stops first.
    pub order: u32,
    /// Seconds between the signal and SIGKILL.
    pub timeout_s: u32,
    /// Signal, when not the image's own.
    pub signal: Option<String>,
}

/// Limits of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// MiB.
    pub memory_mib: Option<u32>,
    /// Relative weight on busy cores; 1024 is the default.
    pub cpu_shares: Option<u32>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// A file of ours in a container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute path.
    pub path: String,
    /// Which of our files.
    pub content: Content,
}

/// The files this agent ships; `dify::files` writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Proxy between user code and the world, and relay to the sandbox.
    Squid,
    /// Proxy of the agent sandbox.
    AgentSquid,
    /// The sandbox's `config.yaml`.
    Sandbox,
    /// Every server CA; left out when none is configured.
    Certificates,
}

/// A named volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Name; the engine sees `dify-NODE-NAME`.
    pub name: String,
    /// Absolute path.
    pub path: String,
}

/// Environment keys with one origin.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Origin.
    pub source: Source,
    /// Not checked.
    #[serde(default)]
    pub unconfirmed: bool,
    /// Given only with this feature.
    pub feature: Option<Feature>,
    /// Key and where its value comes from.
    pub keys: BTreeMap<String, Value>,
}

/// What port 1080 does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontDoor {
    /// Origin.
    pub source: Source,
    /// Not checked.
    #[serde(default)]
    pub unconfirmed: bool,
    /// Forwarding targets: services by name.
    pub upstreams: BTreeMap<String, Upstream>,
    /// Prefixes; the longest wins.
    pub routes: Vec<Route>,
    /// Prefixes answered with a refusal.
    #[serde(default)]
    pub refusals: Vec<Refusal>,
    /// Prefixes refused until the first admin exists, when no `INIT_PASSWORD` guards them.
    #[serde(default)]
    pub setup: Vec<String>,
}

/// A forwarding target.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Idle connections may be kept.
    pub pooled: bool,
    /// Requests at once.
    pub slots: Slots,
    /// Path whose 200 means it answers.
    pub probe: Option<String>,
    /// Readiness needs it.
    pub required: bool,
}

/// Requests an upstream can work on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Slots {
    /// As many.
    Number(u32),
    /// gunicorn processes x connections of each.
    Named(SlotName),
}

/// A computed number of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotName {
    /// Those of the api.
    Api,
}

/// A prefix and its target.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Raw path prefix.
    pub prefix: String,
    /// Key of an upstream.
    pub upstream: String,
    /// Add `Dify-Hook-Url`.
    #[serde(default)]
    pub hook_url: bool,
    /// Only with this feature.
    pub feature: Option<Feature>,
}

/// A prefix that is never forwarded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// Raw path prefix.
    pub prefix: String,
    /// HTTP status.
    pub status: u16,
    /// Sentence for the client.
    pub message: String,
    /// Only without this feature.
    pub without: Option<Feature>,
}

/// Background work.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Celery {
    /// Origin.
    pub source: Source,
    /// Not checked.
    #[serde(default)]
    pub unconfirmed: bool,
    /// Queues the image's own worker consumes. For reading load, never for
    /// `CELERY_QUEUES`: a hard-coded list leaves a new queue without a worker.
    pub queues: Vec<String>,
}

/// A container that runs once.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OneShot {
    /// Origin.
    pub source: Source,
    /// Not checked.
    #[serde(default)]
    pub unconfirmed: bool,
    /// Service whose image, user and network it takes.
    pub like: String,
    /// Groups of environment keys it takes.
    pub environment: Vec<String>,
    /// Keys of its own.
    #[serde(default)]
    pub set: BTreeMap<String, Value>,
}

/// Commands after the migration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostMigration {
    /// Origin.
    pub source: Source,
    /// Not checked.
    #[serde(default)]
    pub unconfirmed: bool,
    /// flask arguments of each.
    pub commands: Vec<Vec<String>>,
}

/// Facts about the main schema.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// Origin.
    pub source: Source,
    /// Not checked.
    #[serde(default)]
    pub unconfirmed: bool,
    /// Alembic head, where known. The gate trusts only what the image says;
    /// this is for an early warning.
    pub head: Option<String>,
    /// Migrations since the release before that do not go back: what they do.
    #[serde(default)]
    pub irreversible: Vec<String>,
}

/// Which releases may serve at the same time on the same schema.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beside {
    /// Origin.
    pub source: Source,
    /// Not checked.
    #[serde(default)]
    pub unconfirmed: bool,
    /// Older releases that may still serve after this one has migrated.
    pub releases: Vec<ReleaseId>,
}

impl Release {
    /// A service by name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// Every image, once, in start order.
    pub fn images(&self) -> Vec<&str> {
        let mut images: Vec<&str> = Vec::new();
        for service in &self.services {
            if !images.contains(&service.image.as_str()) {
                images.push(&service.image);
            }
        }
        images
    }

    /// Environment keys of a service with these features: its groups', then its own.
    pub fn keys<'a>(
        &'a self,
        service: &'a Service,
        on: impl Fn(Option<Feature>) -> bool,
    ) -> BTreeMap<&'a str, &'a Value> {
        self.select(&service.environment, &service.set, on)
    }

    /// Environment keys of a one-shot with these features.
    pub fn one_shot_keys<'a>(
        &'a self,
        one_shot: &'a OneShot,
        on: impl Fn(Option<Feature>) -> bool,
    ) -> BTreeMap<&'a str, &'a Value> {
        self.select(&one_shot.environment, &one_shot.set, on)
    }

    fn select<'a>(
        &'a self,
        groups: &'a [String],
        own: &'a BTreeMap<String, Value>,
        on: impl Fn(Option<Feature>) -> bool,
    ) -> BTreeMap<&'a str, &'a Value> {
        groups
            .iter()
            .filter_map(|name| self.environment.get(name))
            .filter(|group| on(group.feature))
            .flat_map(|group| &group.keys)
            .chain(own)
            .map(|(key, value)| (key.as_str(), value))
            .collect()
    }
}
