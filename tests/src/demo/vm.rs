//! The VM of the demo: a node of a fleet, on the ports a VM has where they are
//! free.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use sim::{Sim, SimOptions};
use tests::config::secret_id;
use tests::docker::{Engine, Holdings};
use tests::fleet::{Fleet, Options};
use tests::node::{Node, OFTEN};
use tests::program::{self, Told};
use tests::wait::wait_for;
use tests::{Doing as _, Outcome, child};
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Ports of a VM: front door and operator endpoints.
const PORTS: [u16; 2] = [1080, 1081];
/// An edge that was told to end: its drain bound, and a margin.
const END: Duration = Duration::from_secs(90);

/// Dify's own images in place of the stand-ins.
#[derive(Clone, Debug)]
pub(crate) struct Real {
    /// Prefix of the registry that has them; docker.io's names without.
    pub(crate) mirror: Option<String>,
    /// Folder with the manifest and the lock made here.
    pub(crate) releases: PathBuf,
}

/// The VM, and the fleet around it. What is declared last outlives the others.
#[derive(Debug)]
pub(crate) struct Vm {
    edge: Option<Child>,
    pub(crate) node: Node,
    pub(crate) fleet: Fleet,
    told: Told,
    listener: TcpListener,
    tasks: JoinSet<()>,
}

impl Vm {
    /// Sets up a fleet of one VM, not started yet.
    pub(crate) async fn new(release: &'static str, real: Option<&Real>) -> Outcome<Self> {
        let options = Options { release, ..Options::default() };
        let mut fleet = Box::pin(Fleet::start(options)).await?;
        if real.is_some() {
            open_storage(&mut fleet).await?;
        }
        let mut node = fleet.node().await?;
        let listener = bind(PORTS[0])?;
        node.front = listener.local_addr().doing(|| "ask for the bound port".into())?;
        // The agent binds this one itself.
        node.ops = bind(PORTS[1])?.local_addr().doing(|| "ask for the bound port".into())?;
        let folder = fleet.folder().join(&node.id);
        let told = Told {
            namespace: None,
            metadata_host: node.instance.metadata_host(),
            run: folder.join("run"),
            edge_state: folder.join("edge"),
            notify: node.notifications.path().to_owned(),
            watchdog_usec: 30_000_000,
        };
        let mut document = node.document(&fleet);
        if let Some(Real { mirror, releases }) = real {
            document["images"]["releases_dir"] = releases.display().to_string().into();
            document["images"]["mirror"] = mirror.clone().map_or(Value::Null, Value::from);
            if let (None, Some(images)) = (mirror, document["images"].as_object_mut()) {
                images.remove("mirror");
            }
        }
        node.tell(&document)?;
        Ok(Self { edge: None, node, fleet, told, listener, tasks: JoinSet::new() })
    }

    /// Starts both programs.
    pub(crate) fn boot(&mut self) -> Outcome {
        let listener = self.listener.try_clone().doing(|| "share the listener".into())?;
        let mut command = program::edge(&self.told, "a", listener.into())?;
        let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut edge = spawned.doing(|| "start the edge".into())?;
        let source = format!("{} edge@a", self.node.id);
        if let Some(output) = edge.stdout.take() {
            self.fleet.logs.follow(&source, output, &mut self.tasks);
        }
        if let Some(output) = edge.stderr.take() {
            self.fleet.logs.follow(&source, output, &mut self.tasks);
        }
        self.edge = Some(edge);
        self.node.start_agent()
    }

    /// Stops the programs as systemd would, and removes what they had: an error
    /// names what was left behind, and every secret found where it must not be.
    pub(crate) async fn end(self) -> Outcome {
        let Self { edge, node, fleet, .. } = self;
        let (engine, prefix) = (fleet.engine.clone(), fleet.node_prefix());
        // Alarms were shown already; a demo's machine may well be short of disk.
        let closed = fleet.close(vec![node], &[""]).await;
        if let Some(mut edge) = edge {
            if let Some(pid) = edge.id() {
                child::send("TERM", pid).await?;
            }
            let ended = timeout(END, edge.wait()).await.doing(|| "end the edge".into())?;
            ended.doing(|| "wait for the edge".into())?;
        }
        closed?;
        sweep(&engine, &prefix).await
    }

    /// Lines an operator would be called for.
    pub(crate) fn alarms(&self) -> Vec<String> {
        let lines = self.fleet.logs.lines();
        let alarming = lines.iter().filter(|line| line.is_alarming());
        alarming
            .map(|line| match line.json() {
                Some(json) => format!(
                    "{}: {}",
                    json["severity"].as_str().unwrap_or("?"),
                    json["message"].as_str().unwrap_or(&line.text)
                ),
                None => line.text.clone(),
            })
            .collect()
    }

    /// `GCE_METADATA_HOST` of this VM's programs.
    pub(crate) fn metadata_host(&self) -> &str {
        &self.told.metadata_host
    }
}

/// Removes what is on the engine under `prefix` until nothing is: the engine
/// may still be making what a killed agent asked for.
pub(crate) async fn sweep(engine: &Engine, prefix: &str) -> Outcome {
    wait_for("the engine to be clean", OFTEN, Duration::from_secs(30), async || {
        engine.remove(prefix).await.map_err(|error| format!("{error:?}"))?;
        let left = engine.holdings(prefix).await.map_err(|error| format!("{error:?}"))?;
        if left == Holdings::default() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await
}

/// Dify's own clients send no bearer where `STORAGE_EMULATOR_HOST` is set, so
/// the simulated bucket takes requests without.
async fn open_storage(fleet: &mut Fleet) -> Outcome {
    let options =
        SimOptions { bind: fleet.host(), anonymous_storage: true, ..SimOptions::default() };
    fleet.sim = Sim::start(options).await.doing(|| "start the simulated Google Cloud".into())?;
    for (name, value) in fleet.secrets.iter() {
        fleet.sim.secrets().add_version(&secret_id(name), value.to_owned());
    }
    fleet.sim.storage().create_bucket(&fleet.bucket);
    Ok(())
}

/// The port a VM has, else a free one.
fn bind(port: u16) -> Outcome<TcpListener> {
    let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
    TcpListener::bind(address(port))
        .or_else(|_| TcpListener::bind(address(0)))
        .doing(|| format!("bind port {port} or another one"))
}
