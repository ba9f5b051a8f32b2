//! What all fleets of a run share: both PostgreSQL servers, the registry, the
//! stand-in program. Started once by the program `bed`, found by tests through
//! [`VARIABLE`].
//!
//! A run keeps its files in a folder of its own under the system's temporary
//! directory, with a lock on it: a folder whose lock is free belongs to a run
//! that crashed, and is cleared away by the next one, with whatever carries its
//! name on the Docker engine.

use std::fs::{File, TryLockError};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use dify_common::settings::{Environment, Source as _};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::cert::Authority;
use crate::docker::Engine;
use crate::stores::{Postgres, PostgresServer, Registry, TlsFront};
use crate::{Broken, Doing as _, Outcome, images, program, secrets};

/// Names the file with the present bed's [`Endpoints`].
pub const VARIABLE: &str = "DIFY_FLEET_BED";
/// File of [`Endpoints`] in a run's folder.
const ENDPOINTS: &str = "bed.json";

/// Where everything is. Passed to test processes as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoints {
    /// Names the run: six letters and digits.
    pub run: String,
    /// The run's folder.
    pub folder: PathBuf,
    /// Main PostgreSQL (the distribution's, with uuid-ossp).
    pub main: Postgres,
    /// PostgreSQL with pgvector, of another CA.
    pub vector: Postgres,
    /// The main server's databases behind a certificate of a third CA, which is in no bundle.
    pub foreign: Postgres,
    /// Registry.
    pub registry: SocketAddr,
    /// The stand-in program.
    pub standin: PathBuf,
    /// This machine's address as containers reach it.
    pub host: IpAddr,
}

/// The running servers.
#[derive(Debug)]
pub struct Bed {
    /// Where they are.
    pub endpoints: Endpoints,
    main: PostgresServer,
    vector: PostgresServer,
    registry: Registry,
    _fronts: [TlsFront; 2],
    _lock: File,
}

impl Endpoints {
    /// Those of the bed this process runs in.
    pub fn attach() -> Outcome<Self> {
        let path = Environment.get(VARIABLE).ok_or_else(|| {
            Broken::new(format!(
                "{VARIABLE} is not set: run `make e2e`, or the test under `bed run --`"
            ))
        })?;
        let text = std::fs::read_to_string(&path).doing(|| format!("read {path}"))?;
        serde_json::from_str(&text).doing(|| format!("read {path}"))
    }

    /// Both addresses every link listens on.
    pub fn link_addresses(&self) -> [IpAddr; 2] {
        [self.host, Ipv4Addr::LOCALHOST.into()]
    }

    /// Start of every node id of this run.
    pub fn node_prefix(&self) -> String {
        format!("t{}-", self.run)
    }

    /// A part of every image reference of this run.
    pub fn image_prefix(&self) -> String {
        format!("dify-fleet-bed/{}", self.run)
    }
}

impl Bed {
    /// Starts everything; clears away what crashed runs left.
    pub async fn start() -> Outcome<Self> {
        dify_common::gcp::install_tls_provider();
        let engine = Engine::connect().await?;
        clean(&engine).await?;
        let run = secrets::random(6).to_lowercase();
        let folder = base().join(&run);
        let lock = make_locked(&folder)?;

        let programs = Programs::read()?;
        let authority = |name: &str| Authority::new(&format!("{name} of the test bed"));
        let (main_ca, vector_ca, foreign_ca) = (
            authority("main PostgreSQL"),
            authority("vector PostgreSQL"),
            authority("foreign PostgreSQL"),
        );
        let identity = |ca: &Authority| ca.issue(&["localhost", "127.0.0.1"]);
        let main_identity = identity(&main_ca);
        let (main_folder, vector_folder) = (folder.join("main"), folder.join("vector"));
        let registry_folder = folder.join("registry");
        let (main, vector, registry, standin, host) = tokio::try_join!(
            PostgresServer::start(&programs.main, &main_folder, Some(&main_identity)),
            PostgresServer::start(&programs.vector, &vector_folder, None),
            Registry::start(&registry_folder),
            standin(&folder),
            engine.host_address(),
        )?;
        let (mut main, mut vector) = (main, vector);
        let vector_front = TlsFront::start(&identity(&vector_ca), vector.port).await?;
        let foreign_front = TlsFront::start(&identity(&foreign_ca), vector.port).await?;
        let entrance = |port: u16, server: &PostgresServer, ca: &Authority| Postgres {
            port,
            password: server.password.clone(),
            ca: ca.pem(),
        };
        let endpoints = Endpoints {
            main: entrance(main.port, &main, &main_ca),
            vector: entrance(vector_front.port, &vector, &vector_ca),
            foreign: entrance(foreign_front.port, &vector, &foreign_ca),
            registry: registry.address,
            standin,
            host,
            run,
            folder: folder.clone(),
        };
        tokio::try_join!(main.ready(&endpoints.main), vector.ready(&endpoints.vector))?;
        let text =
            serde_json::to_string_pretty(&endpoints).doing(|| "write the endpoints".into())?;
        let file = folder.join(ENDPOINTS);
        std::fs::write(&file, text).doing(|| format!("write {}", file.display()))?;
        Ok(Self {
            endpoints,
            main,
            vector,
            registry,
            _fronts: [vector_front, foreign_front],
            _lock: lock,
        })
    }

    /// The file for [`VARIABLE`].
    pub fn file(&self) -> PathBuf {
        self.endpoints.folder.join(ENDPOINTS)
    }

    /// Stops everything and removes the run's folder. An error names what its
    /// tests left on the engine.
    pub async fn stop(self) -> Outcome {
        let engine = Engine::connect().await?;
        let prefix = self.endpoints.node_prefix();
        let left = engine.holdings(&prefix).await?;
        engine.remove(&prefix).await?;
        engine.remove_images(&self.endpoints.image_prefix()).await?;
        let stopped = tokio::try_join!(self.main.stop(), self.vector.stop(), self.registry.stop());
        std::fs::remove_dir_all(&self.endpoints.folder)
            .doing(|| format!("remove {}", self.endpoints.folder.display()))?;
        stopped?;
        if left == crate::docker::Holdings::default() {
            Ok(())
        } else {
            Err(Broken::new(format!("a test left things on the Docker engine: {left:?}")))
        }
    }
}

/// Clears away what runs left that ended without doing so.
pub async fn clean(engine: &Engine) -> Outcome {
    let base = base();
    std::fs::create_dir_all(&base).doing(|| format!("create {}", base.display()))?;
    let folders = std::fs::read_dir(&base).doing(|| format!("list {}", base.display()))?;
    for folder in folders {
        let folder = folder.doing(|| format!("list {}", base.display()))?.path();
        if folder.extension().is_some() {
            // Just being made.
            continue;
        }
        // A folder without a lock is not a run's.
        let Ok(lock) = File::open(folder.join("lock")) else { continue };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => {
                return Err(error).doing(|| "try a run's lock".into());
            }
        }
        let run = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        engine.remove(&format!("t{run}-")).await?;
        engine.remove_images(&format!("dify-fleet-bed/{run}")).await?;
        unmount_below(&folder).await?;
        std::fs::remove_dir_all(&folder).doing(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

/// Unmounts what a killed run left mounted below its folder, innermost first.
async fn unmount_below(folder: &Path) -> Outcome {
    let mounts = std::fs::read_to_string("/proc/self/mounts").doing(|| "list mounts".into())?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let below: Vec<&str> = points.filter(|point| Path::new(point).starts_with(folder)).collect();
    for point in below.into_iter().rev() {
        crate::child::run(Command::new("umount").arg("-l").arg(point)).await?;
    }
    Ok(())
}

/// A /24 that no other fleet on this machine uses, for as long as the file lives.
pub fn claim_subnet() -> Outcome<(u8, File)> {
    let folder = base().join("subnets");
    std::fs::create_dir_all(&folder).doing(|| format!("create {}", folder.display()))?;
    for number in 1..=254 {
        let path = folder.join(number.to_string());
        let file = File::create(&path).doing(|| format!("create {}", path.display()))?;
        if file.try_lock().is_ok() {
            return Ok((number, file));
        }
    }
    Err(Broken::new("every subnet of 10.213.0.0/16 is in use"))
}

/// Makes a run's folder, its lock held from the first moment on that another
/// run may see it.
fn make_locked(folder: &Path) -> Outcome<File> {
    let hidden = folder.with_extension("new");
    let make = || {
        std::fs::create_dir_all(&hidden)?;
        let lock = File::create(hidden.join("lock"))?;
        lock.lock()?;
        std::fs::rename(&hidden, folder)?;
        Ok::<_, std::io::Error>(lock)
    };
    make().doing(|| format!("make {}", folder.display()))
}

fn base() -> PathBuf {
    std::env::temp_dir().join("dify-fleet-bed")
}

async fn standin(folder: &Path) -> Outcome<PathBuf> {
    images::strip(&program::path("standin")?, folder).await
}

/// Where PostgreSQL's programs are, as `scripts/setup/pgvector.sh` found them.
struct Programs {
    main: PathBuf,
    vector: PathBuf,
}

impl Programs {
    fn read() -> Outcome<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bed/postgres.env");
        let text = std::fs::read_to_string(&path)
            .doing(|| format!("read {} (made by `make setup`)", path.display()))?;
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map(PathBuf::from)
                .ok_or_else(|| Broken::new(format!("{} names no {key}", path.display())))
        };
        Ok(Self { main: value("MAIN_BIN")?, vector: value("VECTOR_BIN")? })
    }
}
