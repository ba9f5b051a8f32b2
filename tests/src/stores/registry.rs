//! The distribution's docker-registry on loopback, where Docker needs no TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::child::{self, Child, Launch};
use crate::wait::wait_for;
use crate::{Doing as _, Outcome};

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Registry {
    /// Starts one that keeps its blobs under `dir`.
    pub async fn start(dir: &Path) -> Outcome<Self> {
        std::fs::create_dir_all(dir).doing(|| format!("create {}", dir.display()))?;
        let address = SocketAddr::from(([127, 0, 0, 1], child::free_port()?));
        let config = serde_json::json!({
            "version": 0.1,
            "log": { "level": "warn", "accesslog": { "disabled": true } },
            "storage": {
                "filesystem": { "rootdirectory": dir.join("blobs") },
                "delete": { "enabled": true },
                "maintenance": { "uploadpurging": { "enabled": false } },
            },
            "http": { "addr": address.to_string() },
        });
        let file = dir.join("config.yml");
        // JSON is YAML.
        std::fs::write(&file, config.to_string()).doing(|| format!("write {}", file.display()))?;
        let launch =
            Launch { program: Path::new("docker-registry"), user: None, at_our_death: "KILL" };
        let mut command = launch.command();
        command.arg("serve").arg(&file);
        let mut child = Child::start("docker-registry", command, dir.join("log"))?;
        wait_for(
            "docker-registry",
            Duration::from_millis(20),
            Duration::from_secs(10),
            async || {
                child.check()?;
                TcpStream::connect(address).await.map(drop).map_err(|error| error.to_string())
            },
        )
        .await?;
        Ok(Self { child, address })
    }

    /// Ends it.
    pub async fn stop(self) -> Outcome {
        self.child.stop("TERM", Duration::from_secs(10)).await.map(drop)
    }
}
