//! A place for one test: a registry of its own on the loopback, an image in
//! it, a site on the real engine; all of it gone afterwards, also after a panic.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dify_agent::engine::docker::Engine;
use dify_agent::engine::site::{LogDriver, Site};
use dify_agent::engine::spec::{Attachment, ContainerSpec, EnvValue, Limits, NetworkSpec, Probe};
use dify_agent::registry::{Reference, Registry};
use dify_common::ids::Digest;
use futures_util::FutureExt;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::guest;

/// Room for a busy machine; nothing here takes a tenth of it.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) struct Bed {
    pub(crate) engine: Engine,
    pub(crate) site: Site,
    /// Third octet of the test's subnet 10.231.N.0/24.
    octet: u8,
    /// To be removed at the end.
    images: Arc<Mutex<Vec<Reference>>>,
    _state: TempDir,
}

/// Runs a test on the engine and cleans up after it. `octet` is the test's own.
pub(crate) async fn on_engine<F: Future<Output = ()>>(
    name: &str,
    octet: u8,
    test: impl FnOnce(Bed) -> F,
) {
    let engine = Engine::connect(&socket()).await.expect("these tests need a Docker engine");
    let state = tempfile::tempdir().expect("temporary directory");
    let node = format!("wt-engine-{name}").parse().expect("a node id");
    let site = Site::open(state.path(), node, "1.0".parse().expect("id"), LogDriver::JsonFile)
        .expect("opens");
    clean(&engine, &site).await;
    let images = Arc::<Mutex<Vec<Reference>>>::default();
    let bed = Bed {
        images: images.clone(),
        engine: engine.clone(),
        site: site.clone(),
        octet,
        _state: state,
    };
    let outcome = AssertUnwindSafe(test(bed)).catch_unwind().await;
    clean(&engine, &site).await;
    let images = std::mem::take(&mut *images.lock().unwrap_or_else(PoisonError::into_inner));
    for image in images {
        engine.remove_image(&image).await.expect("removable");
    }
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

async fn clean(engine: &Engine, site: &Site) {
    let observed = engine.observe(site.node()).await.expect("the engine answers");
    let containers = observed.containers.values().map(|found| &found.id);
    for id in containers.chain(observed.one_shots.values().map(|found| &found.id)) {
        engine.remove(id).await.expect("removable");
    }
    for network in observed.networks.values() {
        engine.remove_network(&network.id).await.expect("removable");
    }
    for volume in &observed.volumes {
        engine.remove_volume(volume).await.expect("removable");
    }
}

#[expect(clippy::disallowed_methods, reason = "the variable every Docker client honours")]
fn socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    PathBuf::from(host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock"))
}

impl Bed {
    pub(crate) fn name(&self, word: &str) -> String {
        format!("{}-{word}", self.site.node())
    }

    /// Has an image removed at the end.
    pub(crate) fn will_pull(&self, image: &Reference) {
        self.images.lock().expect("no panic while held").push(image.clone());
    }

    pub(crate) fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 231, self.octet, last)
    }

    /// One half of the test's /24.
    pub(crate) fn network(&self, word: &str, half: u8) -> NetworkSpec {
        NetworkSpec {
            name: self.name(word),
            subnet: self.address(128 * half),
            prefix: 25,
            gateway: self.address(128 * half + 1),
            internal: false,
            options: BTreeMap::new(),
        }
    }

    /// A guest on network `main`.
    pub(crate) fn container(
        &self,
        service: &str,
        last: u8,
        task: &str,
        image: &Reference,
    ) -> ContainerSpec {
        ContainerSpec {
            service: service.to_owned(),
            name: self.name(service),
            image: image.to_string(),
            entrypoint: Some(guest::COMMAND.map(str::to_owned).to_vec()),
            command: None,
            hostname: None,
            user: Some("1000:1000".to_owned()),
            env: BTreeMap::from([(guest::TASK.to_owned(), EnvValue::Plain(task.to_owned()))]),
            files: Vec::new(),
            volumes: Vec::new(),
            networks: vec![Attachment {
                network: self.name("main"),
                address: self.address(last),
                aliases: vec![service.to_owned()],
            }],
            limits: Limits { memory: Some(64 << 20), cpu_shares: Some(512), pids: Some(64) },
            cap_drop: vec!["ALL".to_owned()],
            cap_add: Vec::new(),
            no_new_privileges: true,
            stop_signal: None,
            stop_timeout: Duration::from_secs(1),
            probe: Probe::Tcp { port: guest::PORT },
            after: Vec::new(),
            serving: true,
            stop_order: 0,
        }
    }
}

/// Asks until the answer is yes.
pub(crate) async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let mut every = tokio::time::interval(Duration::from_millis(50));
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition().await {
            every.tick().await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain for: {what}");
}

/// A registry on the loopback, gone with this value.
pub(crate) struct LocalRegistry {
    pub(crate) host: String,
    pub(crate) storage: TempDir,
    process: Child,
}

impl LocalRegistry {
    pub(crate) async fn start() -> Self {
        let storage = tempfile::tempdir().expect("temporary directory");
        let port =
            TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let host = format!("127.0.0.1:{port}");
        let config = storage.path().join("config.yml");
        let root = storage.path().display();
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\nhttp: {{addr: '{host}'}}\n"
        );
        std::fs::write(&config, text).expect("writable");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("docker-registry (Debian package docker-registry) is installed");
        let registry = Self { host, storage, process };
        let any = registry.reference("any:1");
        let client = Registry::new(None).expect("client");
        wait_for("the local registry", async || client.ping(&any).await.is_ok()).await;
        registry
    }

    pub(crate) async fn stop(&mut self) {
        self.process.kill().await.expect("it runs");
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        format!("{}/wt-engine/{name}", self.host).parse().expect("a reference")
    }

    /// Puts this executable into an image; `note` makes it another image.
    pub(crate) async fn push_guest(&self, name: &str, note: &str) -> (Reference, Digest) {
        let mut layer = tar::Builder::new(Vec::new());
        // Docker's tar reader knows no sparse files.
        layer.sparse(false);
        let executable = std::env::current_exe().expect("known");
        layer.append_path_with_name(executable, "guest").expect("readable");
        let layer = layer.into_inner().expect("in memory");
        let config = serde_json::json!({
            "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
            "os": "linux",
            "config": {"Labels": {"note": note}},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer).as_str()]},
        });
        let config = config.to_string().into_bytes();
        let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": digest(bytes).as_str(), "size": bytes.len()});
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let reference = self.reference(name);
        let client = reqwest::Client::builder().no_proxy().build().expect("client");
        for blob in [layer, config] {
            let begun = client
                .post(format!("http://{}/v2/{}/blobs/uploads/", self.host, reference.path()))
                .send()
                .await;
            let begun = begun.expect("the registry answers");
            let place = begun.headers()["location"].to_str().expect("text").to_owned();
            let put = client
                .put(format!("{place}&digest={}", digest(&blob)))
                .body(blob)
                .send()
                .await
                .expect("answered");
            assert!(put.status().is_success(), "{}", put.status());
        }
        let manifest = manifest.to_string().into_bytes();
        let pushed = digest(&manifest);
        let url = format!(
            "http://{}/v2/{}/manifests/{}",
            self.host,
            reference.path(),
            reference.target()
        );
        let put = client
            .put(url)
            .header("content-type", "application/vnd.oci.image.manifest.v1+json")
            .body(manifest)
            .send()
            .await
            .expect("answered");
        assert!(put.status().is_success(), "{}", put.status());
        (reference, pushed)
    }
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes))).parse().expect("a digest")
}

/// An image of the guest on this engine, pulled by digest.
pub(crate) async fn guest_image(bed: &Bed) -> Reference {
    let registry = LocalRegistry::start().await;
    let (reference, digest) = registry.push_guest("guest:1", "plain").await;
    let pinned = reference.pinned(digest);
    bed.will_pull(&pinned);
    bed.engine.pull(&pinned, None, drop).await.expect("pulled");
    pinned
}
