//! Docker as a bystander sees it: what a node has on the engine, and an axe.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
    ListNetworksOptionsBuilder, ListVolumesOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, RemoveVolumeOptionsBuilder,
};
use futures_util::StreamExt as _;
use tokio::process::Command;

use crate::{Broken, Doing as _, Outcome, child};

/// The engine's socket.
pub const SOCKET: &str = "/var/run/docker.sock";
/// Labels of the agent; part of its contract, so written down again here.
const NODE: &str = "io.dify-fleet.node";
const SERVICE: &str = "io.dify-fleet.service";
/// Seconds one call may take; pulls are the agents', not ours.
const DEADLINE: u64 = 60;

/// The engine.
#[derive(Clone)]
pub struct Engine {
    docker: Docker,
}

/// A container of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Engine's id: a replaced container has another one.
    pub id: String,
    /// Name.
    pub name: String,
    /// Dify's service, from its label.
    pub service: String,
    /// `running`, `exited`, ...
    pub state: String,
}

/// What a node has on the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Containers, running or not, one-shots included.
    pub containers: Vec<Container>,
    /// Names of its networks.
    pub networks: Vec<String>,
    /// Names of its volumes.
    pub volumes: Vec<String>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// The engine of this machine.
    pub async fn connect() -> Outcome<Self> {
        Self::connect_to(Path::new(SOCKET)).await
    }

    /// The engine behind `socket`.
    pub async fn connect_to(socket: &Path) -> Outcome<Self> {
        let name = socket.display().to_string();
        let docker = Docker::connect_with_unix(&name, DEADLINE, bollard::API_DEFAULT_VERSION)
            .doing(|| format!("use {name}"))?;
        let docker = docker
            .negotiate_version()
            .await
            .doing(|| format!("ask Docker on {name} for its version"))?;
        Ok(Self { docker })
    }

    /// An address of this machine that containers of every bridge reach: that
    /// of the default bridge.
    pub async fn host_address(&self) -> Outcome<IpAddr> {
        let bridge = self
            .docker
            .inspect_network("bridge", None)
            .await
            .doing(|| "look at Docker's default bridge".into())?;
        let options = bridge.options.unwrap_or_default();
        let device =
            options.get("com.docker.network.bridge.name").map_or("docker0", String::as_str);
        // The engine names no gateway for this one network, so the kernel is asked.
        let shown =
            child::run(Command::new("ip").args(["-4", "-o", "addr", "show", "dev", device]))
                .await?;
        let mut words = shown.split_whitespace().skip_while(|word| *word != "inet").skip(1);
        words
            .next()
            .and_then(|network| network.split('/').next()?.parse().ok())
            .ok_or_else(|| Broken::new(format!("{device} has no IPv4 address")))
    }

    /// What belongs to nodes whose id starts with `prefix`, by label or name.
    pub async fn holdings(&self, prefix: &str) -> Outcome<Holdings> {
        let ours = |labels: Option<&HashMap<String, String>>, name: &str| {
            labels.and_then(|labels| labels.get(NODE)).is_some_and(|node| node.starts_with(prefix))
                || name.starts_with(&format!("dify-{prefix}"))
        };
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let all =
            self.docker.list_containers(Some(options)).await.doing(|| "list containers".into())?;
        let mut containers = Vec::new();
        for found in all {
            let name = found
                .names
                .iter()
                .flatten()
                .next()
                .map_or("", String::as_str)
                .trim_start_matches('/')
                .to_owned();
            if ours(found.labels.as_ref(), &name) {
                let labels = found.labels.unwrap_or_default();
                containers.push(Container {
                    id: found.id.unwrap_or_default(),
                    service: labels.get(SERVICE).cloned().unwrap_or_default(),
                    state: found.state.map(|state| state.to_string()).unwrap_or_default(),
                    name,
                });
            }
        }
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        let options = ListNetworksOptionsBuilder::default().build();
        let all =
            self.docker.list_networks(Some(options)).await.doing(|| "list networks".into())?;
        let networks = all
            .into_iter()
            .filter_map(|network| {
                network.name.clone().filter(|name| ours(network.labels.as_ref(), name))
            })
            .collect();
        let options = ListVolumesOptionsBuilder::default().build();
        let all = self.docker.list_volumes(Some(options)).await.doing(|| "list volumes".into())?;
        let volumes = all.volumes.unwrap_or_default();
        let volumes = volumes
            .into_iter()
            .filter(|volume| ours(Some(&volume.labels), &volume.name))
            .map(|volume| volume.name)
            .collect();
        Ok(Holdings { containers, networks, volumes })
    }

    /// Removes all that [`holdings`](Self::holdings) finds, running or not.
    pub async fn remove(&self, prefix: &str) -> Outcome {
        let Holdings { containers, networks, volumes } = self.holdings(prefix).await?;
        for container in containers {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            gone(
                self.docker.remove_container(&container.id, Some(options)).await,
                &container.name,
            )?;
        }
        for network in networks {
            gone(self.docker.remove_network(&network).await, &network)?;
        }
        for volume in volumes {
            let options = RemoveVolumeOptionsBuilder::default().force(true).build();
            gone(self.docker.remove_volume(&volume, Some(options)).await, &volume)?;
        }
        Ok(())
    }

    /// Forgets every image whose reference holds `part`.
    pub async fn remove_images(&self, part: &str) -> Outcome {
        let options = ListImagesOptionsBuilder::default().all(true).digests(true).build();
        let images = self.docker.list_images(Some(options)).await.doing(|| "list images".into())?;
        for image in images {
            let references: Vec<String> = image
                .repo_tags
                .iter()
                .chain(&image.repo_digests)
                .filter(|name| name.contains(part))
                .cloned()
                .collect();
            for reference in references {
                let options = RemoveImageOptionsBuilder::default().force(true).build();
                gone(
                    self.docker.remove_image(&reference, Some(options), None).await.map(drop),
                    &reference,
                )?;
            }
        }
        Ok(())
    }

    /// Everything the engine tells of a container: environment, mounts, labels.
    pub async fn inspect(&self, container: &str) -> Outcome<ContainerInspectResponse> {
        self.docker
            .inspect_container(container, None)
            .await
            .doing(|| format!("inspect {container}"))
    }

    /// A container's environment.
    pub async fn environment(&self, container: &str) -> Outcome<BTreeMap<String, String>> {
        let config = self.inspect(container).await?.config.unwrap_or_default();
        let pairs = config.env.unwrap_or_default();
        Ok(pairs
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect())
    }

    /// Kills a container with `SIGKILL`.
    pub async fn kill(&self, container: &str) -> Outcome {
        let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        self.docker
            .kill_container(container, Some(options))
            .await
            .doing(|| format!("kill {container}"))
    }

    /// Removes a container with force, as somebody at a keyboard might.
    pub async fn remove_container(&self, container: &str) -> Outcome {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        self.docker
            .remove_container(container, Some(options))
            .await
            .doing(|| format!("remove {container}"))
    }

    /// The whole log of a container.
    pub async fn logs(&self, container: &str) -> Outcome<String> {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("all").build();
        let mut chunks = self.docker.logs(container, Some(options));
        let mut text = String::new();
        while let Some(chunk) = chunks.next().await {
            let chunk: LogOutput = chunk.doing(|| format!("read the log of {container}"))?;
            text.push_str(&String::from_utf8_lossy(&chunk.into_bytes()));
        }
        Ok(text)
    }
}

/// Already gone is gone.
fn gone(result: Result<(), bollard::errors::Error>, name: &str) -> Outcome {
    match result {
        Err(bollard::errors::Error::DockerResponseServerError {
            status_code: 404 | 409, ..
        })
        | Ok(()) => Ok(()),
        Err(error) => Err(error).doing(|| format!("remove {name}")),
    }
}
