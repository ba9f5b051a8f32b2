//! The document's shape: which keys there are, their defaults, and what must
//! hold between them. `docs/configuration.md` is the same for people.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use dify_common::ids::{NodeId, ReleaseId};
use dify_common::settings::Problems;
use dify_common::telemetry::LogMode;

use super::document::{self, Node};
use super::section::{Noted, Read, Section};
use super::settings::{
    Bucket, Capacity, DrainTimes, Endpoints, Features, Images, Liveness, Logs, NodeNetwork, Paths,
    Postgres, PostgresTls, Redis, RedisTls, SecretName, Settings,
};
use super::{SecretRef, value};

/// Subnet of a node that names none. It is local to the machine, so every VM
/// of a fleet can have the same; nodes that share a machine each name their own.
const DEFAULT_SUBNET: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 0);
/// Where the operator's endpoints listen. Loopback: they ask nobody who he is.
const OPS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1081);

/// What is known from outside the document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `dify-release` or a command line: wins over `release`.
    pub release: Option<ReleaseId>,
    /// A command line: wins over `node.id`.
    pub node: Option<NodeId>,
    /// Name of this machine; the node id when nobody names one.
    pub machine: Option<NodeId>,
}

impl Settings {
    /// Reads and checks a document. All of its mistakes come back at once.
    pub fn parse(yaml: &str, overrides: &Overrides) -> Result<Self, Problems> {
        let problems = RefCell::new(Problems::default());
        let tree = match document::parse(yaml) {
            Ok(tree) => tree,
            Err(message) => {
                problems.borrow_mut().add("document", message);
                return Err(problems.into_inner());
            }
        };
        let settings = Section::read("", &tree, &problems, |root| document(root, overrides));
        let problems = problems.into_inner();
        match settings {
            Ok(settings) if problems.is_empty() => Ok(settings),
            Ok(_) | Err(Noted) => Err(problems),
        }
    }
}

fn document(root: &mut Section<'_>, overrides: &Overrides) -> Read<Settings> {
    let schema = root.required("schema", value::schema);
    let release = match &overrides.release {
        // A mistake in the one that loses is noted all the same.
        Some(release) => root.optional("release", value::release).map(|_| release.clone()),
        None => root.required("release", value::release),
    };
    let public_host = root.required("public_host", value::public_host);
    let node = root.section("node", |node| read_node(node, overrides));

    let mut secrets = BTreeMap::new();
    let mut plugin_database = Err(Noted);
    let database = root.section("database", |server| {
        plugin_database = server.or("plugin_name", "dify_plugin".to_owned(), value::identifier);
        password(server, SecretName::DatabasePassword, &mut secrets);
        let database = postgres(server)?;
        if plugin_database.as_ref() == Ok(&database.database) {
            server.note("plugin_name", "is database.name too: expected a database of its own");
        }
        Ok(database)
    });
    let vector = root.section("vector", |server| {
        password(server, SecretName::VectorPassword, &mut secrets);
        postgres(server)
    });
    let redis = root.section("redis", |redis| {
        password(redis, SecretName::RedisPassword, &mut secrets);
        let host = redis.required("host", value::host);
        let tls = redis.or("tls", RedisTls::Verify, value::redis_tls);
        // Memorystore's ports: 6378 with TLS, 6379 without.
        let usual = if tls == Ok(RedisTls::Disable) { 6379 } else { 6378 };
        let port = redis.or("port", usual, value::port);
        Ok(Redis { host: host?, port: port?, tls: tls? })
    });
    let bucket = root.section("bucket", |bucket| {
        let name = bucket.required("name", value::bucket);
        let plugins = bucket.optional("plugins", value::bucket);
        let name = name?;
        Ok(Bucket { plugins: plugins?.unwrap_or_else(|| name.clone()), name })
    });
    let certificates = root.optional("certificates", value::certificates);
    let features = root.section("features", |features| {
        let collaboration = features.or("collaboration", false, value::switch);
        let agent = features.or("agent", false, value::switch);
        Ok(Features { collaboration: collaboration?, agent: agent? })
    });
    let agent = features.is_ok_and(|features| features.agent);
    let own_secrets = root.section("secrets", |section| {
        for (name, needed) in own_secrets(agent) {
            let found = if needed {
                section.required(name.as_str(), value::secret).map(Some)
            } else {
                section.optional(name.as_str(), value::secret)
            };
            if let Ok(Some(reference)) = found {
                secrets.insert(name, reference);
            }
        }
        Ok(())
    });
    let capacity = root.section("capacity", capacity);
    let images = root.section("images", images);
    let drain = root.section("drain", drain);
    let liveness = root.section("liveness", liveness);
    let logs = root.section("logs", |logs| {
        let mode = logs.or("mode", LogMode::Auto, value::log_mode);
        let filter = logs.or("filter", "info".to_owned(), value::filter);
        Ok(Logs { mode: mode?, filter: filter? })
    });
    let paths = root.section("paths", |paths| {
        let state = paths.or("state", PathBuf::from("/var/lib/dify-agent"), value::path);
        let run = paths.or("run", PathBuf::from("/run/dify-agent"), value::run_path);
        let docker = paths.or("docker", PathBuf::from("/var/run/docker.sock"), value::run_path);
        Ok((state?, run?, docker?))
    });
    let ops = root.section("ops", |ops| ops.or("listen", OPS_LISTEN, value::listen));
    let google = root.section("google", google);
    let environment = root.section("environment", |section| Ok(environment(section)));

    if let Ok((_, network)) = &node {
        let databases = [("database.host", &database), ("vector.host", &vector)];
        for (key, server) in databases {
            note_unreachable(root, key, server.as_ref().ok().map(|server| &server.host), *network);
        }
        note_unreachable(
            root,
            "redis.host",
            redis.as_ref().ok().map(|redis| &redis.host),
            *network,
        );
    }
    let checks_ca = |server: &Postgres| server.tls == PostgresTls::VerifyCa;
    let verifying = [
        ("database.tls", database.as_ref().is_ok_and(checks_ca)),
        ("vector.tls", vector.as_ref().is_ok_and(checks_ca)),
        ("redis.tls", redis.as_ref().is_ok_and(|redis| redis.tls == RedisTls::Verify)),
    ];
    note_missing_certificates(root, &certificates, verifying);

    schema?;
    own_secrets?;
    let (node, network) = node?;
    let (state, run, docker) = paths?;
    Ok(Settings {
        node,
        release: release?,
        public_host: public_host?,
        database: database?,
        vector: vector?,
        plugin_database: plugin_database?,
        redis: redis?,
        bucket: bucket?,
        certificates: certificates?,
        secrets,
        features: features?,
        capacity: capacity?,
        images: images?,
        network,
        drain: drain?,
        liveness: liveness?,
        logs: logs?,
        paths: Paths { state, run, docker, ops: ops? },
        google: google?,
        environment: environment?,
    })
}

/// TLS checks need the CAs to check against. `certificates` is the key as
/// read; a mistake in it is noted already.
fn note_missing_certificates(
    root: &Section<'_>,
    certificates: &Read<Option<String>>,
    verifying: [(&'static str, bool); 3],
) {
    let keys: Vec<&str> =
        verifying.into_iter().filter_map(|(key, verifies)| verifies.then_some(key)).collect();
    if *certificates == Ok(None) && !keys.is_empty() {
        let keys = keys.join(", ");
        root.note(
            "certificates",
            format!("is missing: expected PEM text of the CAs that {keys} verifies against"),
        );
    }
}

/// A server in the containers' own /24 cannot be reached from any of them.
fn note_unreachable(root: &Section<'_>, key: &str, host: Option<&String>, network: NodeNetwork) {
    let inside = host
        .and_then(|host| host.parse::<Ipv4Addr>().ok())
        .is_some_and(|host| host.octets()[..3] == network.base.octets()[..3]);
    if inside {
        root.note(
            key,
            "lies inside node.subnet: expected an address outside the containers' own network",
        );
    }
}

/// The secret beside the server it opens.
fn password(
    section: &mut Section<'_>,
    name: SecretName,
    secrets: &mut BTreeMap<SecretName, SecretRef>,
) {
    if let Ok(reference) = section.required("password", value::secret) {
        secrets.insert(name, reference);
    }
}

/// The secrets with a key under `secrets:`, and whether they are needed. The
/// passwords stand beside the server they open.
fn own_secrets(agent: bool) -> impl Iterator<Item = (SecretName, bool)> {
    SecretName::ALL.into_iter().filter_map(move |name| match name {
        SecretName::SecretKey
        | SecretName::PluginDaemonKey
        | SecretName::InnerApiKey
        | SecretName::CodeExecutionKey => Some((name, true)),
        SecretName::AgentServerKey | SecretName::AgentApiToken | SecretName::ShellctlToken => {
            Some((name, agent))
        }
        SecretName::InitPassword => Some((name, false)),
        SecretName::DatabasePassword | SecretName::VectorPassword | SecretName::RedisPassword => {
            None
        }
    })
}

fn read_node(section: &mut Section<'_>, overrides: &Overrides) -> Read<(NodeId, NodeNetwork)> {
    let default = NodeNetwork { base: DEFAULT_SUBNET };
    let network = section.or("subnet", default, value::subnet);
    let id = section.optional("id", value::node_id)?;
    let node = overrides.node.clone().or(id).or_else(|| overrides.machine.clone());
    let unnamed = "is missing: expected a node id, as this machine's name is not one";
    let node = node.ok_or_else(|| section.note("id", unnamed));
    Ok((node?, network?))
}

fn postgres(section: &mut Section<'_>) -> Read<Postgres> {
    let host = section.required("host", value::host);
    let port = section.or("port", 5432, value::port);
    let database = section.or("name", "dify".to_owned(), value::identifier);
    let user = section.or("user", "postgres".to_owned(), value::identifier);
    let tls = section.or("tls", PostgresTls::VerifyCa, value::postgres_tls);
    Ok(Postgres { host: host?, port: port?, database: database?, user: user?, tls: tls? })
}

fn capacity(section: &mut Section<'_>) -> Read<Capacity> {
    let max_vms = section.required("max_vms", value::machines);
    let api_workers = section.optional("api_workers", value::processes);
    let api_connections = section.optional("api_connections", value::connections);
    let celery_concurrency = section.optional("celery_concurrency", value::processes);
    let pool_size = section.optional("pool_size", value::connections);
    let pool_overflow = section.optional("pool_overflow", value::overflow);
    Ok(Capacity {
        max_vms: max_vms?,
        api_workers: api_workers?,
        api_connections: api_connections?,
        celery_concurrency: celery_concurrency?,
        pool_size: pool_size?,
        pool_overflow: pool_overflow?,
    })
}

fn images(section: &mut Section<'_>) -> Read<Images> {
    const AT_ONCE: NonZeroU32 = NonZeroU32::new(4).expect("four is not zero");
    let mirror = section.optional("mirror", value::mirror);
    let allow_unlocked = section.or("allow_unlocked", false, value::switch);
    let concurrency = section.or("concurrency", AT_ONCE, value::pulls);
    let releases_dir = section.optional("releases_dir", value::path);
    Ok(Images {
        mirror: mirror?,
        allow_unlocked: allow_unlocked?,
        concurrency: concurrency?,
        releases_dir: releases_dir?,
    })
}

fn drain(section: &mut Section<'_>) -> Read<DrainTimes> {
    let notice = section.or("notice", Duration::from_secs(30), value::duration);
    let bound = section.or("bound", Duration::from_mins(25), value::duration);
    let (notice, bound) = (notice?, bound?);
    if notice >= bound {
        let longer = "is not shorter than drain.bound: expected less, it is part of it";
        return Err(section.note("notice", longer));
    }
    Ok(DrainTimes { notice, bound })
}

/// The defaults are several times what repair takes: systemd brings dockerd or
/// an agent back within seconds, and dockerd loads its containers for up to a
/// minute; a full disk may be freed by log rotation, which runs by the minute.
fn liveness(section: &mut Section<'_>) -> Read<Liveness> {
    let docker_after = section.or("docker_after", Duration::from_mins(2), value::patience);
    let disk_after = section.or("disk_after", Duration::from_mins(5), value::patience);
    let agent_after = section.or("agent_after", Duration::from_mins(5), value::patience);
    Ok(Liveness { docker_after: docker_after?, disk_after: disk_after?, agent_after: agent_after? })
}

fn google(section: &mut Section<'_>) -> Read<Endpoints> {
    let url = |host: &str| format!("https://{host}.googleapis.com");
    let secret_manager = section.or("secret_manager", url("secretmanager"), value::base_url);
    let storage = section.or("storage", url("storage"), value::base_url);
    let metadata = section.optional("metadata", value::authority);
    Ok(Endpoints { secret_manager: secret_manager?, storage: storage?, metadata: metadata? })
}

/// Shape only; whether a service takes a key is its manifest's to say.
fn environment(section: &mut Section<'_>) -> BTreeMap<String, BTreeMap<String, String>> {
    let services = section.each(|section, service, node| {
        if !is_service(service) {
            let expected = "is not a service name: expected a-z, 0-9 and '_'";
            return Err(section.note(service, expected));
        }
        let path = section.path_of(service);
        Section::read(&path, node, section.problems(), |variables| {
            Ok(variables.each(variable).into_iter().collect())
        })
    });
    services.into_iter().collect()
}

fn variable(section: &mut Section<'_>, key: &str, node: &Node) -> Read<String> {
    const SECRET_ENDINGS: [&str; 5] = ["PASSWORD", "SECRET", "SECRET_KEY", "API_KEY", "TOKEN"];
    if !is_variable(key) {
        return Err(section.note(key, "is not a variable name: expected A-Z, 0-9 and '_'"));
    }
    if SECRET_ENDINGS.iter().any(|ending| key.ends_with(ending)) {
        let expected = "is named like a secret: expected those under `secrets`, by reference";
        return Err(section.note(key, expected));
    }
    value::variable(node)
        .map_err(|expected| section.note(key, format!("{}: expected {expected}", node.class())))
}

fn is_service(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn is_variable(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_uppercase())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}
