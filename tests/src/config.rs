//! The document a node is told, as an operator would write it for this fleet.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::secrets::NAMES;

/// What the document is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Node id.
    pub node: String,
    /// Third number of the node's /24 under 10.213.
    pub subnet: u8,
    /// Dify release.
    pub release: String,
    /// Address of all links.
    pub host: IpAddr,
    /// Ports of the links to the main database, the vector database and Redis.
    pub ports: [u16; 3],
    /// Database, its role, and the plugin database, on the main server.
    pub database: [String; 3],
    /// Bucket.
    pub bucket: String,
    /// CA bundle.
    pub certificates: String,
    /// `require`, `verify` or `disable` for Redis.
    pub redis_tls: &'static str,
    /// Project of the secrets.
    pub project: String,
    /// Mirror prefix of the images.
    pub mirror: String,
    /// Manifests and locks.
    pub releases: PathBuf,
    /// State and run folders.
    pub folders: [PathBuf; 2],
    /// Operator endpoints.
    pub ops: SocketAddr,
    /// Base URL of the simulated Google APIs.
    pub google: String,
    /// `host:port` of the node's simulated metadata server.
    pub metadata: String,
}

impl Parts {
    /// The document. Tests change what they are about before it is handed out.
    pub fn document(&self) -> Value {
        let secret = |name: &str| format!("sm://{}/{}", self.project, secret_id(name));
        let own =
            NAMES.iter().filter(|name| !name.ends_with("_password") || **name == "init_password");
        let secrets: serde_json::Map<String, Value> =
            own.map(|name| ((*name).to_owned(), secret(name).into())).collect();
        let [main, vector, redis] = self.ports;
        let [database, role, plugins] = &self.database;
        json!({
            "schema": 1,
            "release": self.release,
            "public_host": "dify.example.com",
            "node": { "id": self.node, "subnet": format!("10.213.{}.0/24", self.subnet) },
            "database": {
                "host": self.host, "port": main, "name": database, "user": role,
                "plugin_name": plugins, "tls": "verify-ca", "password": secret("database_password"),
            },
            "vector": {
                "host": self.host, "port": vector, "name": database, "user": role,
                "tls": "verify-ca", "password": secret("vector_password"),
            },
            "redis": {
                "host": self.host, "port": redis, "tls": self.redis_tls,
                "password": secret("redis_password"),
            },
            "bucket": { "name": self.bucket },
            "certificates": self.certificates,
            "secrets": secrets,
            // Small: a fleet of them shares one machine.
            "capacity": {
                "max_vms": 3, "api_workers": 1, "api_connections": 20,
                "celery_concurrency": 1, "pool_size": 5, "pool_overflow": 5,
            },
            "images": { "mirror": self.mirror, "releases_dir": text(&self.releases) },
            "drain": { "notice": "1s", "bound": "60s" },
            "logs": { "mode": "json", "filter": "info" },
            "paths": { "state": text(&self.folders[0]), "run": text(&self.folders[1]), "docker": crate::docker::SOCKET },
            "ops": { "listen": self.ops },
            "google": { "secret_manager": self.google, "storage": self.google, "metadata": self.metadata },
        })
    }
}

/// Id in Secret Manager of the secret under `name` in the document.
pub fn secret_id(name: &str) -> String {
    format!("dify-{}", name.replace('_', "-"))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
