//! The door to Docker: the only place, with its folder, that knows bollard.
//! Every call has a deadline here; bollard's own is out of the way.
//!
//! The API version is negotiated downwards from what bollard knows to what the
//! engine offers; 1.41 (Docker 20.10, Debian 12 and Ubuntu 22.04) is the least.

mod containers;
mod images;
mod networks;
mod observe;
mod output;
mod request;
mod run;

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as BollardError;

pub use images::{ImageFacts, LayerEvent, RegistryLogin};
pub use output::{Executed, LogLine};
pub use run::{Ended, Finished};

use super::error::{EngineError, EngineErrorKind};

/// Reads and small writes. They take milliseconds; an engine that is starting
/// dozens of containers on two cores was seen to take seconds.
const QUICK: Duration = Duration::from_secs(30);
/// Creating and starting: mounts, address allocation, runc; slow on a cold disk.
const SLOW: Duration = Duration::from_mins(2);
/// bollard's own limit, in seconds: out of the way, for a `stop` lasts as long
/// as the container takes.
const BOLLARD_LIMIT: u64 = 24 * 60 * 60;
/// The oldest API we know the answers of.
const LEAST_API: (usize, usize) = (1, 41);

/// A connection to one Docker engine. Cheap to clone; each call opens its own
/// socket connection, so an engine that restarted is simply reached again.
#[derive(Clone)]
pub struct Engine {
    docker: Docker,
    socket: PathBuf,
    version: EngineVersion,
    /// Limit of open files for each container.
    open_files: i64,
    /// One-shots this process waits for, by container name.
    running: Arc<Mutex<BTreeSet<String>>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("socket", &self.socket)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// What the engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineVersion {
    /// Docker's version, such as `20.10.24+dfsg1`.
    pub engine: String,
    /// API version in use.
    pub api: (usize, usize),
}

impl EngineVersion {
    /// Docker's major version; 0 when it cannot be read. From 28 on, container
    /// ports that are not published are closed to other machines.
    pub fn major(&self) -> u32 {
        self.engine.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }
}

/// What the engine says of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// Where images and containers live: the disk to watch.
    pub root: PathBuf,
    /// Containers go on while the daemon restarts.
    pub live_restore: bool,
    /// Engine's warnings, such as a missing swap limit or bridge-nf-call-iptables.
    pub warnings: Vec<String>,
}

impl Engine {
    /// Connects and agrees on an API version. A caller that gets
    /// [`EngineErrorKind::Unreachable`] may come again.
    pub async fn connect(socket: &Path) -> Result<Self, EngineError> {
        const DOING: &str = "connect to the Docker engine at";
        let target = socket.display().to_string();
        let docker =
            Docker::connect_with_unix(&target, BOLLARD_LIMIT, bollard::API_DEFAULT_VERSION)
                .map_err(|error| translate(DOING, &target, error))?;
        let docker = within(QUICK, DOING, &target, docker.negotiate_version()).await?;
        let version = within(QUICK, DOING, &target, docker.version()).await?;
        let agreed = docker.client_version();
        let version = EngineVersion {
            engine: version.version.unwrap_or_default(),
            api: (agreed.major_version, agreed.minor_version),
        };
        if version.api < LEAST_API {
            let found = format!(
                "Docker {} speaks API {}.{}; 1.41 (Docker 20.10) is needed",
                version.engine, version.api.0, version.api.1
            );
            return Err(EngineError::new(EngineErrorKind::Invalid, DOING, target, found));
        }
        Ok(Self {
            docker,
            socket: socket.to_owned(),
            version,
            open_files: request::open_files(),
            running: Arc::default(),
        })
    }

    /// Versions, as agreed when connecting.
    pub fn version(&self) -> &EngineVersion {
        &self.version
    }

    /// Whether the engine answers at all.
    pub async fn ping(&self) -> Result<(), EngineError> {
        let target = self.socket.display().to_string();
        within(QUICK, "ping the Docker engine at", &target, self.docker.ping()).await.map(drop)
    }

    /// What the engine says of its machine.
    pub async fn info(&self) -> Result<EngineInfo, EngineError> {
        let target = self.socket.display().to_string();
        let info =
            within(QUICK, "ask the Docker engine about itself at", &target, self.docker.info())
                .await?;
        Ok(EngineInfo {
            root: info.docker_root_dir.unwrap_or_else(|| "/var/lib/docker".to_owned()).into(),
            live_restore: info.live_restore_enabled.unwrap_or(false),
            warnings: info.warnings.unwrap_or_default(),
        })
    }
}

/// One call with its deadline, in our words.
async fn within<T>(
    bound: Duration,
    doing: &'static str,
    target: &str,
    call: impl Future<Output = Result<T, BollardError>>,
) -> Result<T, EngineError> {
    // On the heap: bollard's request futures are large, and so would ours be.
    match tokio::time::timeout(bound, Box::pin(call)).await {
        Ok(done) => done.map_err(|error| translate(doing, target, error)),
        Err(_) => Err(EngineError::deadline(doing, target, bound)),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "bollard's variants differ by its features")]
fn translate(doing: &'static str, target: &str, error: BollardError) -> EngineError {
    match error {
        BollardError::DockerResponseServerError { status_code, message } => {
            EngineError::answered(doing, target, status_code, &message)
        }
        BollardError::DockerStreamError { error } => {
            EngineError::answered(doing, target, 0, &error)
        }
        BollardError::RequestTimeoutError => {
            EngineError::deadline(doing, target, Duration::from_secs(BOLLARD_LIMIT))
        }
        error @ (BollardError::SocketNotFoundError(_)
        | BollardError::IOError { .. }
        | BollardError::HyperResponseError { .. }
        | BollardError::HyperLegacyError { .. }) => {
            let found = dify_common::chain::Chain(&error).to_string();
            EngineError::new(EngineErrorKind::Unreachable, doing, target, found)
        }
        other => EngineError::new(EngineErrorKind::Engine, doing, target, other.to_string()),
    }
}

#[cfg(test)]
mod tests;
