//! A fleet: its own databases, Redis, bucket, secrets, images and links, and
//! the nodes that share them.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use futures_util::future::join_all;
use serde_json::json;
use sim::{Sim, SimOptions};
use tokio::runtime::Builder;

use crate::bed::{Endpoints, claim_subnet};
use crate::catalog::{self, Entry};
use crate::config::{Parts, secret_id};
use crate::docker::Engine;
use crate::images::{Behaviour, MANIFEST, Press};
use crate::link::Link;
use crate::logs::Logs;
use crate::node::Node;
use crate::secrets::{Planted, random};
use crate::stores::{CertificateNames, Postgres, Redis, RedisOptions, Rights};
use crate::{Broken, Doing as _, Outcome};

/// What an edge says whose agent a test took away.
const BEREFT: [&str; 2] = ["lost the agent", "agent is silent"];

/// Service account of every VM.
pub const ACCOUNT: &str = "dify-vm@dify-sim.iam.gserviceaccount.com";

/// How a fleet differs from the usual one.
#[derive(Clone, Debug)]
pub struct Options {
    /// Dify release to begin with.
    pub release: &'static str,
    /// Further releases whose images are in the registry.
    pub also: Vec<&'static str>,
    /// Redis.
    pub redis: RedisOptions,
    /// Stand-in images.
    pub behaviour: Behaviour,
    /// Rights of the fleet's role on the vector server.
    pub vector_rights: Rights,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            release: "1.14.2",
            also: Vec::new(),
            redis: RedisOptions::default(),
            behaviour: Behaviour::default(),
            vector_rights: Rights::Extensions,
        }
    }
}

/// Paths to the servers; cut them.
#[derive(Debug)]
pub struct Links {
    /// Main PostgreSQL.
    pub main: Link,
    /// PostgreSQL with pgvector.
    pub vector: Link,
    /// Redis.
    pub redis: Link,
    /// Registry.
    pub registry: Link,
}

/// An image in the fleet's registry.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Release it belongs to.
    pub release: String,
    /// Repository, tag and role.
    pub entry: Entry,
    /// Manifest digest.
    pub digest: String,
}

/// A fleet. End it with [`close`](Self::close): that is where the checks are.
#[derive(Debug)]
pub struct Fleet {
    /// The servers it shares with other fleets.
    pub bed: Endpoints,
    /// Google Cloud. Nothing else is in its project.
    pub sim: Sim,
    /// Its paths.
    pub links: Links,
    /// Its Redis.
    pub redis: Redis,
    /// Its secrets.
    pub secrets: Planted,
    /// Docker.
    pub engine: Engine,
    /// Everything its programs print.
    pub logs: Logs,
    /// Makes images; [`images`](Self::images) are those made so far.
    pub press: Press,
    /// Images in the registry.
    pub images: Vec<Pushed>,
    /// Role, and name of the main and the vector database.
    pub role: String,
    /// Name of the plugin database.
    pub plugin_database: String,
    /// Bucket.
    pub bucket: String,
    /// Folder with the manifests and locks its nodes read.
    pub releases: PathBuf,
    options: Options,
    id: String,
    folder: PathBuf,
    nodes: Mutex<Vec<File>>,
    closed: bool,
}

impl Fleet {
    /// A fleet without nodes: databases empty, images pushed.
    pub async fn start(options: Options) -> Outcome<Self> {
        let bed = Endpoints::attach()?;
        let engine = Engine::connect().await?;
        let id = random(4).to_lowercase();
        let folder = bed.folder.join(&id);
        let releases = folder.join("releases");
        copy_manifests(&releases)?;
        let secrets = Planted::random();
        let role = format!("fleet_{id}");
        let plugin_database = format!("{role}_plugin");
        let addresses = bed.link_addresses();
        let press = Press::new(bed.registry, &bed.standin)?;
        let prefix = format!("{}-{id}", bed.image_prefix());
        let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let main_databases = [role.as_str(), plugin_database.as_str()];
        let vector_databases = [role.as_str()];
        let (redis, images, (), ()) = tokio::try_join!(
            Redis::start(&folder, secrets.get("redis_password"), &options.redis, &addresses),
            push(&press, &prefix, &releases, &options),
            bed.main.create(
                &role,
                secrets.get("database_password"),
                Rights::Creator,
                &main_databases
            ),
            bed.vector.create(
                &role,
                secrets.get("vector_password"),
                options.vector_rights,
                &vector_databases
            ),
        )?;
        let links = Links {
            main: Link::open(&addresses, loopback(bed.main.port)).await?,
            vector: Link::open(&addresses, loopback(bed.vector.port)).await?,
            redis: Link::open(&addresses, loopback(redis.port)).await?,
            registry: Link::open(&addresses, bed.registry).await?,
        };
        let sim = Sim::start(SimOptions { bind: bed.host, ..SimOptions::default() })
            .await
            .doing(|| "start the simulated Google Cloud".into())?;
        for (name, value) in secrets.iter() {
            sim.secrets().add_version(&secret_id(name), value.to_owned());
        }
        let bucket = format!("dify-{id}");
        sim.storage().create_bucket(&bucket);
        Ok(Self {
            bed,
            sim,
            links,
            redis,
            secrets,
            engine,
            press,
            images,
            role,
            plugin_database,
            bucket,
            releases,
            options,
            id,
            folder,
            logs: Logs::default(),
            nodes: Mutex::new(Vec::new()),
            closed: false,
        })
    }

    /// A node that is not started yet.
    pub async fn node(&self) -> Outcome<Node> {
        let (subnet, claim) = claim_subnet()?;
        let number = {
            let mut nodes =
                self.nodes.lock().map_err(|_| Broken::new("another test thread panicked"))?;
            nodes.push(claim);
            nodes.len()
        };
        let id = format!("{}{number}", self.node_prefix());
        Node::new(self, &id, subnet).await
    }

    /// Start of the ids of this fleet's nodes.
    pub fn node_prefix(&self) -> String {
        format!("{}{}-", self.bed.node_prefix(), self.id)
    }

    /// Where the fleet's images are, as the agents are told.
    pub fn mirror(&self) -> String {
        format!("127.0.0.1:{}/{}", self.links.registry.port(), self.image_prefix())
    }

    /// Repository prefix of the fleet's images in the registry.
    pub fn image_prefix(&self) -> String {
        format!("{}-{}", self.bed.image_prefix(), self.id)
    }

    /// The fleet's folder.
    pub fn folder(&self) -> &PathBuf {
        &self.folder
    }

    /// What goes into the document of a node.
    pub fn parts(&self, node: &str, subnet: u8, ops: SocketAddr, folders: [PathBuf; 2]) -> Parts {
        let certificates =
            [Some(&self.bed.main.ca), Some(&self.bed.vector.ca), self.redis.ca.as_ref()];
        Parts {
            node: node.to_owned(),
            subnet,
            release: self.options.release.to_owned(),
            host: self.bed.host,
            ports: [self.links.main.port(), self.links.vector.port(), self.links.redis.port()],
            database: [self.role.clone(), self.role.clone(), self.plugin_database.clone()],
            bucket: self.bucket.clone(),
            certificates: certificates.into_iter().flatten().map(String::as_str).collect(),
            redis_tls: match (self.options.redis.tls, self.options.redis.names) {
                (false, _) => "disable",
                (true, CertificateNames::WithAddresses) => "verify",
                (true, CertificateNames::OtherHost) => "no-verify",
            },
            project: self.sim.project().id.clone(),
            mirror: self.mirror(),
            releases: self.releases.clone(),
            folders,
            ops,
            google: self.sim.urls().googleapis,
            metadata: String::new(),
        }
    }

    /// A link of one test's own, from the fleet's addresses to another server of the bed.
    pub async fn link_to(&self, server: &Postgres) -> Outcome<Link> {
        Link::open(&self.bed.link_addresses(), SocketAddr::from(([127, 0, 0, 1], server.port)))
            .await
    }

    /// Addresses containers and agents use.
    pub fn host(&self) -> IpAddr {
        self.bed.host
    }

    /// Migrations recorded by Dify's own table: the revision the schema is at.
    pub async fn schema_revision(&self) -> Outcome<Option<String>> {
        self.bed.main.text(&self.role, "SELECT version_num FROM alembic_version").await
    }

    /// Stops the nodes as systemd would and judges the fleet: no unannounced
    /// WARN or ERROR (`expected` holds parts of announced ones), no secret
    /// anywhere it does not belong, nothing running, no one-shot left behind.
    pub async fn close(mut self, nodes: Vec<Node>, expected: &[&str]) -> Outcome {
        self.closed = true;
        let mut wrong = Vec::new();
        for node in &nodes {
            wrong.extend(node.misplaced_secrets(&self.secrets).await?);
        }
        let mut expected = expected.to_vec();
        if nodes.iter().any(|node| node.bereft) {
            expected.extend(BEREFT);
        }
        for ended in join_all(nodes.into_iter().map(Node::end)).await {
            wrong.extend(ended.err().map(|broken| format!("{broken:?}")));
        }
        let left = self.engine.holdings(&self.node_prefix()).await?;
        for container in left.containers {
            if container.state == "running" {
                wrong.push(format!("{} still runs after its agent was stopped", container.name));
            } else if container.service.is_empty() {
                wrong.push(format!(
                    "{} is left behind: a one-shot, or without our labels",
                    container.name
                ));
            }
        }
        wrong.extend(self.logs.judge(&expected, &self.secrets));
        self.engine.remove(&self.node_prefix()).await?;
        self.engine.remove_images(&self.image_prefix()).await?;
        self.bed.main.remove(&self.role).await?;
        self.bed.vector.remove(&self.role).await?;
        if wrong.is_empty() {
            Ok(())
        } else {
            let count = wrong.len();
            Err(Broken::new(format!(
                "{count} thing(s) wrong with the fleet:\n  {}",
                wrong.join("\n  ")
            )))
        }
    }
}

impl Drop for Fleet {
    /// What runs on the engine would outlive a failed test; its programs and
    /// databases end with it, and with the bed.
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        let (engine_prefix, images) = (self.node_prefix(), self.image_prefix());
        let cleaning = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .build()
                .doing(|| "make a runtime".into())?;
            runtime.block_on(async {
                let engine = Engine::connect().await?;
                engine.remove(&engine_prefix).await?;
                engine.remove_images(&images).await
            })
        });
        let cleaned = cleaning.join();
        if !std::thread::panicking() {
            // A test that returned an error gets here too; its error is the message then.
            tracing::warn!(?cleaned, "a fleet was dropped without being closed");
        }
    }
}

fn copy_manifests(to: &PathBuf) -> Outcome {
    std::fs::create_dir_all(to).doing(|| format!("create {}", to.display()))?;
    for release in catalog::RELEASES {
        let name = format!("{release}.yaml");
        let from = catalog::manifests().join(&name);
        std::fs::copy(&from, to.join(&name)).doing(|| format!("copy {}", from.display()))?;
    }
    Ok(())
}

/// Writes `<release>.lock.yaml` as `dify-agent releases lock` does.
pub fn write_lock(releases: &Path, release: &str, images: &[Pushed]) -> Outcome {
    let locked = images.iter().filter(|image| image.release == release).map(|image| {
        let Entry { repository, tag, .. } = &image.entry;
        let locked = json!({
            "digest": image.digest, "media_type": MANIFEST, "registry": "127.0.0.1",
            "resolved_at": "2026-01-01T00:00:00Z",
        });
        (format!("{repository}:{tag}"), locked)
    });
    let lock = json!({ "release": release, "images": locked.collect::<serde_json::Map<_, _>>() });
    let path = releases.join(format!("{release}.lock.yaml"));
    let text = serde_yaml::to_string(&lock).doing(|| "write a lock".into())?;
    std::fs::write(&path, text).doing(|| format!("write {}", path.display()))
}

/// Pushes the releases' images and writes their locks.
async fn push(
    press: &Press,
    prefix: &str,
    releases: &Path,
    options: &Options,
) -> Outcome<Vec<Pushed>> {
    let mut pushed = Vec::new();
    for release in std::iter::once(options.release).chain(options.also.iter().copied()) {
        for entry in catalog::entries(releases, release)? {
            let digest = press.push(prefix, release, &entry, &options.behaviour).await?;
            pushed.push(Pushed { release: release.to_owned(), entry, digest });
        }
        write_lock(releases, release, &pushed)?;
    }
    Ok(pushed)
}
