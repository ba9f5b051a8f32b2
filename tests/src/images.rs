//! Stand-in images, made and pushed over the registry's own protocol (Docker
//! registry HTTP API V2, image manifest version 2 schema 2). No engine builds
//! them, so none holds their layers before an agent pulls them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use crate::catalog::{Entry, Role, revisions};
use crate::{Broken, Doing as _, Outcome, child};

/// Media type of the manifests pushed here.
pub const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Says gzip; the engine looks at the bytes and takes plain tar as well.
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// How the images of a fleet behave.
#[derive(Clone, Debug, PartialEq)]
pub struct Behaviour {
    /// Factor on every start-up time of the real images.
    pub scale: f64,
    /// Faults by role, in the stand-in's words (`STANDIN_FAULT`).
    pub faults: BTreeMap<Role, String>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { scale: 0.05, faults: BTreeMap::new() }
    }
}

/// Makes images and pushes them to one registry.
#[derive(Debug)]
pub struct Press {
    client: Client,
    registry: SocketAddr,
    program: Bytes,
}

/// The program `standin` without its symbols, for [`Press`].
pub async fn strip(program: &Path, into: &Path) -> Outcome<PathBuf> {
    let stripped = into.join("standin");
    child::run(Command::new("strip").arg("-o").arg(&stripped).arg(program)).await?;
    Ok(stripped)
}

impl Press {
    /// For `registry`, from a static program.
    pub fn new(registry: SocketAddr, program: &Path) -> Outcome<Self> {
        dify_common::gcp::install_tls_provider();
        let client = Client::builder()
            .no_proxy()
            .timeout(Duration::from_mins(1))
            .build()
            .doing(|| "make a registry client".into())?;
        let program = std::fs::read(program).doing(|| format!("read {}", program.display()))?;
        Ok(Self { client, registry, program: program.into() })
    }

    /// Makes and pushes one image of `release` under `prefix`; its digest.
    pub async fn push(
        &self,
        prefix: &str,
        release: &str,
        entry: &Entry,
        behaviour: &Behaviour,
    ) -> Outcome<String> {
        let name = format!("{prefix}/{}", entry.repository);
        let layers = [
            layer(&system())?,
            layer(&[File::program("standin", self.program.clone())])?,
            layer(&own_files(entry, release))?,
        ];
        let mut described = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in layers {
            let size = layer.len();
            // Not compressed: the layer's digest is that of its content.
            let digest = self.blob(prefix, &name, layer).await?;
            described.push(json!({ "mediaType": LAYER, "size": size, "digest": digest }));
            diff_ids.push(digest);
        }
        let config = Bytes::from(config(release, entry, behaviour, &diff_ids).to_string());
        let size = config.len();
        let digest = self.blob(prefix, &name, config).await?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": described,
            "config": { "mediaType": CONFIG, "size": size, "digest": digest },
        });
        self.manifest(&name, &entry.tag, manifest.to_string()).await
    }

    /// Removes an image's manifest, so that pulling its digest finds nothing.
    pub async fn remove(&self, prefix: &str, repository: &str, digest: &str) -> Outcome {
        let url = self.url(&format!("{prefix}/{repository}/manifests/{digest}"));
        let answer = self.client.delete(url).send().await;
        self.expect(answer, StatusCode::ACCEPTED, "remove a manifest").await.map(drop)
    }

    /// Uploads a blob unless the registry has it, here or in this prefix's
    /// shared repository.
    async fn blob(&self, prefix: &str, name: &str, content: Bytes) -> Outcome<String> {
        let digest = digest(&content);
        let held = self.client.head(self.url(&format!("{name}/blobs/{digest}"))).send().await;
        if held.is_ok_and(|answer| answer.status() == StatusCode::OK) {
            return Ok(digest);
        }
        let from = format!("{prefix}/layers");
        let start = |name: &str, query: &str| {
            self.client
                .post(self.url(&format!("{name}/blobs/uploads/{query}")))
                .header("content-length", "0")
                .send()
        };
        let shared = self.client.head(self.url(&format!("{from}/blobs/{digest}"))).send().await;
        if !shared.is_ok_and(|answer| answer.status() == StatusCode::OK) {
            let started = self
                .expect(start(&from, "").await, StatusCode::ACCEPTED, "start an upload")
                .await?;
            let location = started.headers().get("location").and_then(|value| value.to_str().ok());
            let location =
                location.ok_or_else(|| Broken::new("the registry named no place for an upload"))?;
            let join = if location.contains('?') { '&' } else { '?' };
            let place = if location.starts_with('/') {
                format!("http://{}{location}{join}digest={digest}", self.registry)
            } else {
                format!("{location}{join}digest={digest}")
            };
            let put = self
                .client
                .put(place)
                .header("content-type", "application/octet-stream")
                .body(content)
                .send()
                .await;
            self.expect(put, StatusCode::CREATED, "upload a layer").await?;
        }
        let mounted = start(name, &format!("?mount={digest}&from={from}")).await;
        self.expect(mounted, StatusCode::CREATED, "mount a layer").await?;
        Ok(digest)
    }

    async fn manifest(&self, name: &str, tag: &str, manifest: String) -> Outcome<String> {
        let digest = digest(manifest.as_bytes());
        let url = self.url(&format!("{name}/manifests/{tag}"));
        let put = self.client.put(url).header("content-type", MANIFEST).body(manifest).send().await;
        self.expect(put, StatusCode::CREATED, "push a manifest").await?;
        Ok(digest)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}", self.registry)
    }

    async fn expect(
        &self,
        answer: reqwest::Result<Response>,
        status: StatusCode,
        doing: &str,
    ) -> Outcome<Response> {
        let answer = answer.doing(|| format!("{doing} at {}", self.registry))?;
        if answer.status() == status {
            return Ok(answer);
        }
        let found = answer.status();
        let body = answer.text().await.unwrap_or_default();
        Err(Broken::new(format!("{doing}: expected {status}, found {found}: {body}")))
    }
}

/// One file of a layer.
struct File {
    path: String,
    content: Content,
}

enum Content {
    Folder(u32),
    Text(String),
    Program(Bytes),
    Link(&'static str),
}

impl File {
    fn program(path: &str, content: Bytes) -> Self {
        Self { path: path.to_owned(), content: Content::Program(content) }
    }

    fn link(path: &str, to: &'static str) -> Self {
        Self { path: path.to_owned(), content: Content::Link(to) }
    }

    fn text(path: &str, text: String) -> Self {
        Self { path: path.to_owned(), content: Content::Text(text) }
    }

    fn folder(path: &str, mode: u32) -> Self {
        Self { path: path.to_owned(), content: Content::Folder(mode) }
    }
}

/// What any Linux image has.
fn system() -> Vec<File> {
    let users = "root:x:0:0::/root:/bin/bash\ndify:x:1000:1000::/home/dify:/bin/bash\napp:x:1001:1001::/home:/bin/bash\n";
    vec![
        File::folder("etc/", 0o755),
        File::text("etc/passwd", users.into()),
        File::folder("tmp/", 0o1777),
        File::folder("var/", 0o755),
        File::folder("run/", 0o755),
    ]
}

fn own_files(entry: &Entry, release: &str) -> Vec<File> {
    let note = format!("stand-in for {}:{} of Dify {release}\n", entry.repository, entry.tag);
    let mut files = vec![File::text("STANDIN", note)];
    // The writable places of the real image belong to whoever runs in it.
    let writable: &[&str] = match entry.role {
        Role::Api => {
            files.push(File::folder("bin/", 0o755));
            files.push(File::link("bin/bash", "/standin"));
            files.push(File::folder("usr/", 0o755));
            files.push(File::folder("usr/local/", 0o755));
            files.push(File::folder("usr/local/bin/", 0o755));
            files.push(File::link("usr/local/bin/flask", "/standin"));
            files.push(File::link("usr/local/bin/celery", "/standin"));
            files.push(File::text(
                "entrypoint.sh",
                "# carried out by /bin/bash, the stand-in\n".into(),
            ));
            &["app/api/", "app/api/storage/"]
        }
        Role::Web => &["app/web/"],
        Role::PluginDaemon => &["app/storage/"],
        Role::Sandbox => &["conf/", "dependencies/"],
        Role::Squid => &["etc/squid/", "var/log/squid/", "var/spool/squid/"],
        Role::AgentBackend => &["app/api/"],
        Role::LocalSandbox => &["home/dify/", "workspace/"],
    };
    for path in writable {
        for (end, _) in path.match_indices('/') {
            let folder = &path[..=end];
            let known =
                files.iter().any(|file| file.path == folder) || ["etc/", "var/"].contains(&folder);
            if !known {
                files.push(File::folder(folder, 0o777));
            }
        }
    }
    files
}

/// An uncompressed tar that is the same for the same files.
fn layer(files: &[File]) -> Outcome<Bytes> {
    let mut archive = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        let (kind, mode, content): (_, _, &[u8]) = match &file.content {
            Content::Folder(mode) => (tar::EntryType::Directory, *mode, &[]),
            Content::Text(text) => (tar::EntryType::Regular, 0o644, text.as_bytes()),
            Content::Program(program) => (tar::EntryType::Regular, 0o755, program),
            Content::Link(_) => (tar::EntryType::Symlink, 0o777, &[]),
        };
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(u64::try_from(content.len()).expect("files fit"));
        let added = match file.content {
            Content::Link(to) => archive.append_link(&mut header, &file.path, to),
            Content::Folder(_) | Content::Text(_) | Content::Program(_) => {
                archive.append_data(&mut header, &file.path, content)
            }
        };
        added.doing(|| format!("put {} into a layer", file.path))?;
    }
    archive.into_inner().map(Bytes::from).doing(|| "close a layer".into())
}

fn config(release: &str, entry: &Entry, behaviour: &Behaviour, diff_ids: &[String]) -> Value {
    let revisions = revisions(release);
    let mut env = vec![
        "PATH=/usr/local/bin:/usr/bin:/bin".to_owned(),
        format!("STANDIN_RELEASE={release}"),
        format!("STANDIN_SCALE={}", behaviour.scale),
    ];
    if entry.role == Role::Api {
        env.push(format!("STANDIN_REVISIONS={}", revisions.join(",")));
        env.push(format!("STANDIN_HEAD={}", revisions.last().map_or("", String::as_str)));
    }
    if let Some(fault) = behaviour.faults.get(&entry.role) {
        env.push(format!("STANDIN_FAULT={fault}"));
    }
    // Users and folders of the real images (Dify's compose file and Dockerfiles).
    let (user, folder) = match entry.role {
        Role::Api | Role::AgentBackend => ("1001", "/app/api"),
        Role::Web => ("1001", "/app/web"),
        Role::LocalSandbox => ("1000", "/workspace"),
        Role::PluginDaemon | Role::Sandbox | Role::Squid => ("", "/"),
    };
    let entrypoint = if entry.role == Role::Api {
        json!(["/bin/bash", "/entrypoint.sh"])
    } else {
        json!(["/standin", entry.role.word()])
    };
    json!({
        "architecture": architecture(), "os": "linux", "created": "1970-01-01T00:00:00Z",
        "config": { "Env": env, "Entrypoint": entrypoint, "User": user, "WorkingDir": folder },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": diff_ids.iter().map(|_| json!({ "created": "1970-01-01T00:00:00Z" })).collect::<Vec<_>>(),
    })
}

/// This machine's, in the registry's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}
