//! One look at the engine, and the stream that says when to look again.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum};
use bollard::query_parameters::{
    EventsOptionsBuilder, ListContainersOptionsBuilder, ListNetworksOptions,
    ListVolumesOptionsBuilder,
};
use dify_common::ids::NodeId;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};

use super::{Engine, EngineError, EngineErrorKind, QUICK, run, translate, within};
use crate::engine::observed::{
    Observed, ObservedContainer, ObservedNetwork, OneShot, RunState, Subnet,
};
use crate::engine::spec::label;

/// Docker's own grace, for a container that names none.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// Containers inspected at once.
const AT_ONCE: usize = 8;
/// What happens to a container that may matter to us.
const ACTIONS: [&str; 9] =
    ["create", "start", "die", "oom", "kill", "pause", "unpause", "rename", "destroy"];

impl Engine {
    /// What the engine holds, seen from `node`.
    pub async fn observe(&self, node: &NodeId) -> Result<Observed, EngineError> {
        const DOING: &str = "look at what node";
        let mut observed = Observed::default();
        let all = ListContainersOptionsBuilder::new().all(true).build();
        let listed =
            within(QUICK, DOING, node.as_str(), self.docker.list_containers(Some(all))).await?;
        let mut ours = Vec::new();
        for container in listed {
            let names = container.names.unwrap_or_default();
            let is_ours = container.labels.unwrap_or_default().get(label::NODE).map(String::as_str)
                == Some(node.as_str());
            match (is_ours, container.id) {
                (true, Some(id)) => ours.push(id),
                _ => observed.foreign_containers.extend(names.iter().map(|name| bare(name))),
            }
        }
        let inspected: Vec<Option<ContainerInspectResponse>> = stream::iter(ours)
            .map(|id| self.inspect(id))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        for container in inspected.into_iter().flatten() {
            self.file(&mut observed, container);
        }

        let networks = within(
            QUICK,
            DOING,
            node.as_str(),
            self.docker.list_networks(None::<ListNetworksOptions>),
        )
        .await?;
        for network in networks {
            let (name, id) = (network.name.unwrap_or_default(), network.id.unwrap_or_default());
            let mut labels = network.labels.unwrap_or_default();
            if labels.get(label::NODE).map(String::as_str) == Some(node.as_str()) {
                let spec = labels.remove(label::SPEC).unwrap_or_default();
                observed.networks.insert(name, ObservedNetwork { id, spec });
            } else {
                let pools = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
                let subnets = pools
                    .iter()
                    .filter_map(|pool| Subnet::parse(pool.subnet.as_deref()?))
                    .collect();
                observed.foreign_networks.insert(name, subnets);
            }
        }

        let filter = ListVolumesOptionsBuilder::new().filters(&of_node(node)).build();
        let volumes =
            within(QUICK, DOING, node.as_str(), self.docker.list_volumes(Some(filter))).await?;
        observed.volumes =
            volumes.volumes.unwrap_or_default().into_iter().map(|volume| volume.name).collect();
        Ok(observed)
    }

    /// What stands under one container name, and nothing else: for the moment
    /// before a step, where a whole look would cost a start its speed.
    pub(in crate::engine) async fn observe_one(
        &self,
        node: &NodeId,
        name: &str,
    ) -> Result<Observed, EngineError> {
        let mut observed = Observed::default();
        if let Some(container) = self.inspect(name.to_owned()).await? {
            let labels = container.config.as_ref().and_then(|config| config.labels.as_ref());
            if labels.and_then(|labels| labels.get(label::NODE)).map(String::as_str)
                == Some(node.as_str())
            {
                self.file(&mut observed, container);
            } else {
                observed.foreign_containers.insert(name.to_owned());
            }
        }
        Ok(observed)
    }

    /// One item for each event of the node's containers, and nothing in it: it
    /// says that looking again is worth while. It ends when the engine does;
    /// the caller comes back.
    pub fn events(
        &self,
        node: &NodeId,
    ) -> impl Stream<Item = Result<(), EngineError>> + Send + use<> {
        let mut filters = of_node(node);
        filters.insert("type".to_owned(), vec!["container".to_owned()]);
        filters.insert("event".to_owned(), ACTIONS.map(str::to_owned).to_vec());
        let options = EventsOptionsBuilder::new().filters(&filters).build();
        let target = node.to_string();
        let docker = self.docker.clone();
        docker.events(Some(options)).map(move |event| match event {
            Ok(_) => Ok(()),
            Err(error) => Err(translate("follow the events of node", &target, error)),
        })
    }

    /// None: it is gone, which between listing and asking is nothing special.
    pub(super) async fn inspect(
        &self,
        id: String,
    ) -> Result<Option<ContainerInspectResponse>, EngineError> {
        match within(QUICK, "inspect container", &id, self.docker.inspect_container(&id, None))
            .await
        {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn file(&self, observed: &mut Observed, container: ContainerInspectResponse) {
        let name = bare(container.name.as_deref().unwrap_or_default());
        let config = container.config.clone().unwrap_or_default();
        let mut labels = config.labels.unwrap_or_default();
        let id = container.id.clone().unwrap_or_default();
        if labels.get(label::ROLE).map(String::as_str) == Some(run::ONE_SHOT) {
            let owner = labels.remove(label::OWNER).unwrap_or_default();
            let orphan = !self.is_waited_for(&name, &owner);
            observed.one_shots.insert(name, OneShot { id, orphan });
            return;
        }
        let mut label = |key| labels.remove(key).unwrap_or_default();
        let found = ObservedContainer {
            id,
            service: label(label::SERVICE),
            spec: label(label::SPEC),
            release: label(label::RELEASE),
            image: config.image.unwrap_or_default(),
            addresses: addresses(&container),
            state: state(&container),
            stop_timeout: config
                .stop_timeout
                .and_then(|seconds| u64::try_from(seconds).ok())
                .map_or(DEFAULT_GRACE, Duration::from_secs),
        };
        observed.containers.insert(name, found);
    }
}

/// Docker writes names with a slash before them.
fn bare(name: &str) -> String {
    name.trim_start_matches('/').to_owned()
}

fn of_node(node: &NodeId) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{}={node}", label::NODE)])])
}

/// The fixed addresses, which a stopped container has as well as a running one.
fn addresses(container: &ContainerInspectResponse) -> BTreeMap<String, std::net::Ipv4Addr> {
    let networks =
        container.network_settings.as_ref().and_then(|settings| settings.networks.clone());
    let fixed = |(name, end): (String, bollard::models::EndpointSettings)| {
        Some((name, end.ipam_config?.ipv4_address?.parse().ok()?))
    };
    networks.unwrap_or_default().into_iter().filter_map(fixed).collect()
}

pub(super) fn state(container: &ContainerInspectResponse) -> RunState {
    let state = container.state.clone().unwrap_or_default();
    let status = state.status.unwrap_or(ContainerStateStatusEnum::EMPTY);
    match status {
        ContainerStateStatusEnum::CREATED => RunState::Created,
        ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::STOPPING => {
            RunState::Running {
                since: state.started_at.unwrap_or_default(),
                pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            }
        }
        ContainerStateStatusEnum::EXITED => RunState::Exited {
            code: state.exit_code.unwrap_or(-1),
            oom: state.oom_killed.unwrap_or(false),
            at: state.finished_at.unwrap_or_default(),
        },
        ContainerStateStatusEnum::EMPTY
        | ContainerStateStatusEnum::PAUSED
        | ContainerStateStatusEnum::RESTARTING
        | ContainerStateStatusEnum::REMOVING
        | ContainerStateStatusEnum::DEAD => RunState::Odd(status.to_string()),
    }
}
