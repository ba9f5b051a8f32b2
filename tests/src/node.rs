//! One VM of a fleet: its metadata server, its two programs, what it answers.

mod leaks;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use dify_common::wire::status::{AgentStatus, Phase};
use reqwest::Response;
use serde_json::Value;
use sim::{Instance, InstanceHandle};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::child;
use crate::docker::{Container, Engine, Holdings};
use crate::dockerd::Dockerd;
use crate::fleet::{ACCOUNT, Fleet};
use crate::logs::Logs;
use crate::program::{self, Told};
use crate::systemd::Notifications;
use crate::wait::{holds_for, wait_for};
use crate::{Broken, Doing as _, Outcome};

/// From nothing to `/health` 200 with the usual images, three nodes at once on two cores.
pub const BOOT: Duration = Duration::from_mins(2);
/// A program that was told to end: the drain bound of the documents here, and a margin.
const END: Duration = Duration::from_secs(90);
/// How often conditions are asked.
pub const OFTEN: Duration = Duration::from_millis(100);

/// A node. Its programs die with it; its containers are the fleet's to remove.
#[derive(Debug)]
pub struct Node {
    /// Node id.
    pub id: String,
    /// What the VM is told: attributes, faults of its metadata server.
    pub instance: InstanceHandle,
    /// What the agent tells systemd.
    pub notifications: Notifications,
    /// Port 1080 of this node.
    pub front: SocketAddr,
    /// Port 1081 of this node.
    pub ops: SocketAddr,
    told: Told,
    subnet: u8,
    folder: PathBuf,
    listener: TcpListener,
    agent: Option<Child>,
    /// A test took the agent away: its edges may say so.
    pub(crate) bereft: bool,
    edges: BTreeMap<String, Child>,
    client: reqwest::Client,
    /// Asks the operator endpoints.
    operator: reqwest::Client,
    engine: Engine,
    logs: Logs,
    tasks: JoinSet<()>,
}

impl Node {
    pub(crate) async fn new(fleet: &Fleet, id: &str, subnet: u8) -> Outcome<Self> {
        let folder = fleet.folder().join(id);
        let [state, run, edge_state] = ["state", "run", "edge"].map(|name| folder.join(name));
        for path in [&state, &run, &edge_state] {
            std::fs::create_dir_all(path).doing(|| format!("create {}", path.display()))?;
        }
        let listener =
            TcpListener::bind(("127.0.0.1", 0)).doing(|| "bind the node's front".into())?;
        let front = listener.local_addr().doing(|| "ask for the bound port".into())?;
        let ops = SocketAddr::from(([127, 0, 0, 1], child::free_port()?));
        let told = Instance {
            name: id.to_owned(),
            service_account: ACCOUNT.to_owned(),
            ..Instance::default()
        };
        let instance =
            fleet.sim.add_instance(told).await.doing(|| format!("simulate the VM {id}"))?;
        let notifications = Notifications::listen(&folder.join("notify.sock"))?;
        let told = Told {
            metadata_host: instance.metadata_host(),
            run,
            edge_state,
            notify: notifications.path().to_owned(),
            namespace: None,
            watchdog_usec: 30_000_000,
        };
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()
            .doing(|| "make a client".into())?;
        let node = Self {
            id: id.to_owned(),
            instance,
            notifications,
            front,
            ops,
            told,
            subnet,
            folder,
            listener,
            operator: client.clone(),
            client,
            agent: None,
            bereft: false,
            edges: BTreeMap::new(),
            engine: fleet.engine.clone(),
            logs: fleet.logs.clone(),
            tasks: JoinSet::new(),
        };
        node.tell(&node.document(fleet))?;
        Ok(node)
    }

    /// The usual document of this node.
    pub fn document(&self, fleet: &Fleet) -> Value {
        let folders = [self.folder.join("state"), self.told.run.clone()];
        let mut parts = fleet.parts(&self.id, self.subnet, self.ops, folders);
        parts.metadata = self.instance.metadata_host();
        parts.document()
    }

    /// Sets the VM's configuration document, as a new instance template would.
    pub fn tell(&self, document: &Value) -> Outcome {
        let yaml = serde_yaml::to_string(document).doing(|| "write the document".into())?;
        self.instance.set_attribute("dify-config", yaml);
        Ok(())
    }

    /// Puts the node on an engine of its own, in that engine's network
    /// namespace, as if it had a machine to itself. `data` holds the engine's data.
    pub async fn own_engine(&mut self, fleet: &Fleet, data: &Path) -> Outcome<Dockerd> {
        // Not in the node's own folder: that one is searched for secrets, and Docker's
        // is the place where it keeps a container's environment.
        let folder = fleet.folder().join(format!("e{}", self.subnet));
        let registry = SocketAddr::new(fleet.host(), fleet.links.registry.port());
        let port = registry.port();
        let dockerd = Dockerd::start(&folder, data, self.subnet, port, registry).await?;
        self.engine = dockerd.engine().await?;
        self.told.namespace = Some(dockerd.namespace.clone());
        // Loopback of a namespace is out of our reach; a socket file is not.
        self.operator = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .unix_socket(self.told.run.join("ops.sock"))
            .build()
            .doing(|| "make a client".into())?;
        Ok(dockerd)
    }

    /// Starts both programs.
    pub fn boot(&mut self) -> Outcome {
        self.start_edge("a")?;
        self.start_agent()
    }

    /// Starts both programs and waits for `/health` 200.
    pub async fn boot_to_serving(&mut self) -> Outcome {
        self.boot()?;
        self.serving(BOOT).await
    }

    /// Starts `dify-agent run`.
    pub fn start_agent(&mut self) -> Outcome {
        let command = program::agent(&self.told, &["run"])?;
        let process = self.spawn("agent", command)?;
        self.agent = Some(process);
        Ok(())
    }

    /// Starts an instance of `dify-edge` on the node's listener.
    pub fn start_edge(&mut self, instance: &str) -> Outcome {
        let listener = self.listener.try_clone().doing(|| "share the listener".into())?;
        let command = program::edge(&self.told, instance, listener.into())?;
        let process = self.spawn(&format!("edge@{instance}"), command)?;
        self.edges.insert(instance.to_owned(), process);
        Ok(())
    }

    /// Ends the agent with `signal` (`KILL`: as a crash does) and waits for it.
    pub async fn signal_agent(&mut self, signal: &str) -> Outcome<ExitStatus> {
        let agent = self.agent.take().ok_or_else(|| Broken::new("the agent does not run"))?;
        self.bereft = true;
        finish(agent, signal, "the agent").await
    }

    /// Ends an edge with `signal` and waits for it.
    pub async fn signal_edge(&mut self, instance: &str, signal: &str) -> Outcome<ExitStatus> {
        let edge = self
            .edges
            .remove(instance)
            .ok_or_else(|| Broken::new(format!("no edge {instance} runs")))?;
        finish(edge, signal, "an edge").await
    }

    /// Process id of the agent, while it runs.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().and_then(Child::id)
    }

    /// Waits until the agent ends by itself.
    pub async fn agent_ends(&mut self, at_most: Duration) -> Outcome<ExitStatus> {
        let agent = self.agent.as_mut().ok_or_else(|| Broken::new("the agent does not run"))?;
        let ended =
            timeout(at_most, agent.wait()).await.doing(|| "wait for the agent to end".into())?;
        self.agent = None;
        ended.doing(|| "wait for the agent".into())
    }

    /// Runs a verb of the agent to its end, as an operator on the VM would:
    /// exit status and what it printed (searched for secrets too).
    pub async fn run_verb(&self, verb: &[&str]) -> Outcome<(ExitStatus, String)> {
        let mut command = program::agent(&self.told, verb)?;
        let running = timeout(Duration::from_mins(1), command.output());
        let output = running
            .await
            .doing(|| format!("run dify-agent {verb:?}"))?
            .doing(|| format!("run dify-agent {verb:?}"))?;
        let [printed, complained] = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let all = format!("{printed}{complained}");
        // As one INFO line: an error an operator asked for is no alarm, a secret is.
        let line = serde_json::json!({ "severity": "INFO", "message": all });
        self.logs.push(&format!("{} {verb:?}", self.id), line.to_string());
        Ok((output.status, all))
    }

    /// URL of a path at the node's front.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.front)
    }

    /// `GET` at the front.
    pub async fn get(&self, path: &str) -> Result<Response, String> {
        self.client.get(self.url(path)).send().await.map_err(|error| format!("GET {path}: {error}"))
    }

    /// A request at the front, to be sent.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().expect("tests name real methods");
        self.client.request(method, self.url(path))
    }

    /// `POST` of a JSON document at the front: status and JSON answered.
    pub async fn post(&self, path: &str, body: &Value) -> Result<(u16, Value), String> {
        let sent = self.request("POST", path).json(body).send().await;
        let answer = sent.map_err(|error| format!("POST {path}: {error}"))?;
        let code = answer.status().as_u16();
        let text = answer.text().await.map_err(|error| format!("POST {path}: {error}"))?;
        Ok((code, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Status and body of `/health`.
    pub async fn health(&self) -> Result<(u16, Value), String> {
        self.get_json("/health").await
    }

    /// Status and body of `/health/live`.
    pub async fn live(&self) -> Result<(u16, Value), String> {
        self.get_json("/health/live").await
    }

    /// What the agent says of itself on port 1081.
    pub async fn status(&self) -> Result<AgentStatus, String> {
        let url = format!("http://{}/status", self.ops);
        let answer =
            self.operator.get(url).send().await.map_err(|error| format!("GET /status: {error}"))?;
        let text = answer.text().await.map_err(|error| format!("GET /status: {error}"))?;
        serde_json::from_str(&text).map_err(|error| format!("/status is {text:?}: {error}"))
    }

    /// Waits for `/health` 200.
    pub async fn serving(&self, at_most: Duration) -> Outcome {
        wait_for(&format!("{} to serve", self.id), OFTEN, at_most, async || {
            match self.health().await? {
                (200, _) => Ok(()),
                (code, body) => Err(format!("/health {code} {body}; {}", self.why().await)),
            }
        })
        .await
    }

    /// Waits until it serves and nothing is on its way any more: the worker and
    /// the beat start after what serving needs.
    pub async fn settled(&self, at_most: Duration) -> Outcome {
        self.status_where("every container to be ready", at_most, |status| {
            status.phase == Phase::Serving
                && !status.containers.is_empty()
                && status.containers.iter().all(|container| container.ready)
        })
        .await?;
        self.serving(at_most).await
    }

    /// Waits for `/health` 503 with `kind` among what is missing.
    pub async fn missing(&self, kind: &str, at_most: Duration) -> Outcome {
        wait_for(&format!("{} to miss {kind}", self.id), OFTEN, at_most, async || {
            let (code, body) = self.health().await?;
            let named = body["missing"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|found| found == kind));
            if code == 503 && named { Ok(()) } else { Err(format!("/health {code} {body}")) }
        })
        .await
    }

    /// Waits until the agent's status satisfies `condition`.
    pub async fn status_where(
        &self,
        what: &str,
        at_most: Duration,
        condition: impl Fn(&AgentStatus) -> bool,
    ) -> Outcome<AgentStatus> {
        wait_for(what, OFTEN, at_most, async || {
            let status = self.status().await?;
            if condition(&status) { Ok(status) } else { Err(summary(&status)) }
        })
        .await
    }

    /// Holds `/health/live` to be 200 all through `period`.
    pub async fn alive(&self, period: Duration) -> Outcome {
        holds_for("/health/live", OFTEN, period, async || match self.live().await? {
            (200, _) => Ok(()),
            (code, body) => Err(format!("{code} {body}")),
        })
        .await
    }

    /// Waits for `/health/live` 503 with just `fault`.
    pub async fn faulty(&self, fault: &str, at_most: Duration) -> Outcome {
        wait_for(&format!("{} to have the fault {fault}", self.id), OFTEN, at_most, async || {
            match self.live().await? {
                (503, body) if body["faults"] == serde_json::json!([fault]) => Ok(()),
                (code, body) => Err(format!("/health/live {code} {body}")),
            }
        })
        .await
    }

    /// Waits for `/health/live` 200.
    pub async fn forgiven(&self, at_most: Duration) -> Outcome {
        wait_for(&format!("{} to be alive", self.id), OFTEN, at_most, async || {
            match self.live().await? {
                (200, _) => Ok(()),
                (code, body) => Err(format!("/health/live {code} {body}")),
            }
        })
        .await
    }

    /// Addresses of a service's container on its networks.
    pub async fn addresses(&self, service: &str) -> Outcome<Vec<String>> {
        let told = self.engine.inspect(&self.container(service).await?.id).await?;
        let networks = told.network_settings.and_then(|settings| settings.networks);
        let addresses = networks.into_iter().flatten().filter_map(|(_, end)| end.ip_address);
        Ok(addresses.filter(|address| !address.is_empty()).collect())
    }

    /// The agent's state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Empties the run folder, as a reboot does.
    pub fn wipe_run(&self) -> Outcome {
        std::fs::remove_dir_all(&self.told.run)
            .and_then(|()| std::fs::create_dir(&self.told.run))
            .doing(|| format!("empty {}", self.told.run.display()))
    }

    /// What the node has on the engine.
    pub async fn holdings(&self) -> Outcome<Holdings> {
        self.engine.holdings(&self.id).await
    }

    /// The container of a service; there must be one.
    pub async fn container(&self, service: &str) -> Outcome<Container> {
        let mut found = self.holdings().await?.containers;
        found.retain(|container| container.service == service);
        match found.pop() {
            Some(container) if found.is_empty() => Ok(container),
            Some(_) => Err(Broken::new(format!("{} has several containers of {service}", self.id))),
            None => Err(Broken::new(format!("{} has no container of {service}", self.id))),
        }
    }

    /// Stops all its programs at once, as systemd does at shutdown.
    pub async fn end(mut self) -> Outcome {
        let edges = std::mem::take(&mut self.edges).into_iter();
        let programs = edges.map(|(instance, process)| (format!("edge {instance}"), process));
        let agent = self.agent.take().map(|process| ("agent".to_owned(), process));
        let id = &self.id;
        let ending = programs.chain(agent).map(async |(name, process)| {
            let what = format!("the {name} of {id}");
            let status = finish(process, "TERM", &what).await?;
            if status.success() {
                Ok(())
            } else {
                Err(Broken::new(format!("{what} ended with {status}")))
            }
        });
        futures_util::future::try_join_all(ending).await?;
        // The last lines of both.
        while timeout(Duration::from_secs(5), self.tasks.join_next())
            .await
            .is_ok_and(|task| task.is_some())
        {}
        Ok(())
    }

    fn spawn(&mut self, name: &str, mut command: Command) -> Outcome<Child> {
        use std::process::Stdio;
        let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut process = spawned.doing(|| format!("start the {name} of {}", self.id))?;
        let source = format!("{} {name}", self.id);
        if let Some(output) = process.stdout.take() {
            self.logs.follow(&source, output, &mut self.tasks);
        }
        if let Some(output) = process.stderr.take() {
            self.logs.follow(&source, output, &mut self.tasks);
        }
        Ok(process)
    }

    /// Status and JSON of a `GET` at the front.
    pub async fn get_json(&self, path: &str) -> Result<(u16, Value), String> {
        let answer = self.get(path).await?;
        let code = answer.status().as_u16();
        let text = answer.text().await.map_err(|error| format!("GET {path}: {error}"))?;
        serde_json::from_str(&text)
            .map(|body| (code, body))
            .map_err(|error| format!("{path} {code} is {text:?}: {error}"))
    }

    async fn why(&self) -> String {
        match self.status().await {
            Ok(status) => summary(&status),
            Err(error) => error,
        }
    }
}

fn summary(status: &AgentStatus) -> String {
    let AgentStatus { phase, missing, waiting_on, failure, .. } = status;
    let late = status.containers.iter().filter(|container| !container.ready);
    let late: Vec<&str> = late.map(|container| container.service.as_str()).collect();
    let failure = failure.as_ref().map_or(String::new(), |failure| {
        format!(", failed: {}: {}", failure.kind, failure.message)
    });
    format!(
        "phase {phase}, missing {missing:?}, not ready {late:?}, waiting on {waiting_on:?}{failure}"
    )
}

async fn finish(mut process: Child, signal: &str, what: &str) -> Outcome<ExitStatus> {
    if let Some(pid) = process.id() {
        child::send(signal, pid).await?;
    }
    let Ok(ended) = timeout(END, process.wait()).await else {
        process.kill().await.doing(|| format!("kill {what}"))?;
        return Err(Broken::new(format!("{what} did not end within {END:?} of SIG{signal}")));
    };
    ended.doing(|| format!("wait for {what}"))
}
