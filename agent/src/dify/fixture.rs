//! Inputs of the tests: a plain fleet, and one with everything on.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use dify_common::secret::Secret;
use dify_common::telemetry::LogMode;

use crate::config::settings::{
    Bucket, Capacity, DrainTimes, Endpoints, Features, Images, Liveness, Logs, NodeNetwork, Paths,
    Postgres, PostgresTls, Redis, RedisTls, SecretName, Settings,
};
use crate::engine::spec::{ContainerSpec, EnvValue};
use crate::release::{Library, Release};

use super::stack::{Machine, Stack};
use super::{WireError, wire};

pub(super) const RELEASES: [&str; 4] = ["1.14.2", "1.15.0", "1.16.1", "1.17.1"];
pub(super) const MACHINE: Machine = Machine { cores: 4, memory: 16 << 30 };

pub(super) type Secrets = BTreeMap<SecretName, Secret>;

pub(super) fn release(name: &str) -> Release {
    Library::default()
        .manifest(&name.parse().expect("an id"))
        .unwrap_or_else(|error| panic!("{}", dify_common::chain::Chain(&error)))
}

/// TLS checked everywhere, nothing optional.
pub(super) fn plain() -> Settings {
    let postgres = |host: &str, database: &str| Postgres {
        host: host.into(),
        port: 5432,
        database: database.into(),
        user: "dify".into(),
        tls: PostgresTls::VerifyCa,
    };
    Settings {
        node: "dify-x7f2".parse().expect("an id"),
        release: "1.14.2".parse().expect("an id"),
        public_host: "dify.example.com".into(),
        database: postgres("10.1.0.3", "dify"),
        vector: postgres("10.1.0.4", "vectors"),
        plugin_database: "dify_plugin".into(),
        redis: Redis { host: "10.1.0.5".into(), port: 6378, tls: RedisTls::Verify },
        bucket: Bucket { name: "files-of-dify".into(), plugins: "plugins-of-dify".into() },
        certificates: Some("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".into()),
        secrets: BTreeMap::new(),
        features: Features::default(),
        capacity: Capacity {
            max_vms: NonZeroU32::new(4).expect("not 0"),
            api_workers: None,
            api_connections: None,
            celery_concurrency: None,
            pool_size: None,
            pool_overflow: None,
        },
        images: Images {
            mirror: None,
            allow_unlocked: true,
            concurrency: NonZeroU32::new(3).expect("not 0"),
            releases_dir: None,
        },
        network: NodeNetwork { base: Ipv4Addr::new(10, 88, 1, 0) },
        drain: DrainTimes { notice: Duration::from_secs(15), bound: Duration::from_mins(20) },
        logs: Logs { mode: LogMode::default(), filter: "info".into() },
        liveness: Liveness {
            docker_after: Duration::from_mins(3),
            disk_after: Duration::from_mins(5),
            agent_after: Duration::from_mins(5),
        },
        paths: Paths {
            state: PathBuf::from("/var/lib/dify-agent"),
            run: PathBuf::from("/run/dify-agent"),
            docker: PathBuf::from("/var/run/docker.sock"),
            ops: SocketAddr::from(([127, 0, 0, 1], 1081)),
        },
        google: Endpoints {
            secret_manager: "https://secretmanager.googleapis.com".into(),
            storage: "https://storage.googleapis.com".into(),
            metadata: None,
        },
        environment: BTreeMap::new(),
    }
}

/// Every feature the release has, simulated Google, a mirror, the operator's own values.
pub(super) fn everything(release: &str) -> Settings {
    let mut settings = plain();
    settings.features = Features { collaboration: true, agent: has_agent(release) };
    settings.images.mirror = Some("europe-west3-docker.pkg.dev/p/dockerhub".into());
    settings.google.storage = "http://10.88.1.1:4443".into();
    settings.google.metadata = Some("10.88.1.1:8080".into());
    settings.capacity.api_workers = NonZeroU32::new(3);
    settings.capacity.api_connections = NonZeroU32::new(300);
    settings.environment.insert(
        "worker".into(),
        BTreeMap::from([("CELERY_WORKER_QUEUES".into(), "dataset,mail".into())]),
    );
    settings
        .environment
        .insert("api".into(), BTreeMap::from([("LOG_LEVEL".into(), "DEBUG".into())]));
    settings
}

pub(super) fn has_agent(release: &str) -> bool {
    self::release(release).service("agent_backend").is_some()
}

/// One planted, recognisable, valid secret for each name.
pub(super) fn secrets() -> Secrets {
    SecretName::ALL.into_iter().map(|name| (name, Secret::from(planted(name)))).collect()
}

pub(super) fn planted(name: SecretName) -> String {
    match name {
        // 32 bytes as base64url: 43 characters, the last of which has two spare bits.
        SecretName::AgentServerKey => format!("planted-agent_server_key-{}A", "x".repeat(17)),
        SecretName::InitPassword => "planted-init_password".into(),
        SecretName::SecretKey
        | SecretName::DatabasePassword
        | SecretName::VectorPassword
        | SecretName::RedisPassword
        | SecretName::PluginDaemonKey
        | SecretName::InnerApiKey
        | SecretName::CodeExecutionKey
        | SecretName::AgentApiToken
        | SecretName::ShellctlToken => {
            format!("planted-{}-{}", name.as_str(), "0123456789".repeat(3))
        }
    }
}

pub(super) fn wired(
    settings: &Settings,
    secrets: &Secrets,
    name: &str,
) -> Result<Stack, WireError> {
    wire(settings, secrets, &release(name), None, MACHINE)
}

/// A stack that must come out.
pub(super) fn stack(settings: &Settings, name: &str) -> Stack {
    wired(settings, &secrets(), name).unwrap_or_else(|error| panic!("{error}"))
}

/// Every container of a stack, one-shots too.
pub(super) fn all(stack: &Stack) -> impl Iterator<Item = &ContainerSpec> {
    stack.containers.iter().chain([&stack.migration, &stack.job])
}

pub(super) fn service<'a>(stack: &'a Stack, name: &str) -> &'a ContainerSpec {
    all(stack)
        .find(|container| container.service == name)
        .unwrap_or_else(|| panic!("{name} is not wired"))
}

/// The value of a key as the container would see it.
pub(super) fn value(stack: &Stack, name: &str, key: &str) -> Option<String> {
    service(stack, name).env.get(key).map(reveal)
}

pub(super) fn reveal(value: &EnvValue) -> String {
    use dify_common::secret::ExposeSecret as _;
    match value {
        EnvValue::Plain(text) => text.clone(),
        EnvValue::Secret(secret) => secret.expose_secret().to_owned(),
    }
}
