//! An engine to plan for.

use std::time::Duration;

use super::super::*;
use crate::engine::observed::ObservedNetwork;
use crate::engine::sample;
use crate::engine::spec::Attachment;

/// An engine small enough to think about: carries steps out as
/// `Engine::carry_out` does, and is as strict as Docker about networks.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Model {
    pub(super) observed: Observed,
    pub(super) made: u32,
}

pub(super) struct World {
    pub(super) containers: Vec<ContainerSpec>,
    pub(super) networks: Vec<NetworkSpec>,
    pub(super) hashes: Hashes,
}

impl World {
    pub(super) fn new(services: &[(&str, &[&str])], networks: &[&str]) -> Self {
        let networks: Vec<NetworkSpec> = (0..)
            .zip(networks)
            .map(|(index, name)| {
                let mut spec = sample::network(name);
                spec.subnet = Ipv4Addr::new(10, 77, index, 0);
                spec
            })
            .collect();
        let container = |(octet, (service, on)): (u8, &(&str, &[&str]))| {
            let mut spec = sample::container(service, octet);
            let end = |name: &&str| Attachment {
                network: format!("dify-n1-{name}"),
                address: Ipv4Addr::new(10, 77, 0, octet),
                aliases: Vec::new(),
            };
            spec.networks = on.iter().map(end).collect();
            spec
        };
        let containers: Vec<ContainerSpec> = (2..).zip(services).map(container).collect();
        let hash = |name: &String| (name.clone(), SpecHash::of_text(&format!("hash of {name}")));
        let hashes = Hashes {
            containers: containers.iter().map(|spec| hash(&spec.name)).collect(),
            networks: networks.iter().map(|spec| hash(&spec.name)).collect(),
        };
        Self { containers, networks, hashes }
    }

    pub(super) fn plan(&self, observed: &Observed) -> EnginePlan {
        plan(&self.containers, &self.networks, &self.hashes, observed)
    }

    pub(super) fn spec(&self, name: &str) -> &ContainerSpec {
        self.containers.iter().find(|spec| spec.name == name).expect("steps name specs")
    }

    pub(super) fn made(&self, spec: &ContainerSpec, id: String) -> ObservedContainer {
        ObservedContainer {
            id,
            service: spec.service.clone(),
            spec: self.hashes.containers[&spec.name].to_string(),
            release: "1".to_owned(),
            image: spec.image.clone(),
            addresses: spec.networks.iter().map(|end| (end.network.clone(), end.address)).collect(),
            state: RunState::Created,
            stop_timeout: Duration::from_secs(10),
        }
    }
}

impl Model {
    pub(super) fn empty() -> Self {
        Self { observed: Observed::default(), made: 0 }
    }

    pub(super) fn fresh_id(&mut self) -> String {
        self.made += 1;
        format!("id{}", self.made)
    }

    pub(super) fn carry_out(&mut self, step: &Step, world: &World) {
        assert!(
            !self.observed.foreign_containers.contains(step.target()),
            "{step:?} touches what is not ours"
        );
        match step {
            Step::Remove { name, id, .. } => {
                self.observed
                    .containers
                    .retain(|found, container| found != name || container.id != *id);
                self.observed
                    .one_shots
                    .retain(|found, one_shot| found != name || one_shot.id != *id);
            }
            Step::RemoveNetwork { name, id, .. } => {
                if self.observed.networks.get(name).is_some_and(|found| found.id == *id) {
                    let used = self
                        .observed
                        .containers
                        .values()
                        .any(|found| found.addresses.contains_key(name));
                    assert!(!used, "{name} has active endpoints");
                    self.observed.networks.remove(name);
                }
            }
            Step::CreateNetwork { name } => {
                assert!(!self.observed.foreign_networks.contains_key(name));
                let spec = world.hashes.networks[name].to_string();
                if let Some(found) = self.observed.networks.get(name) {
                    assert_eq!(found.spec, spec, "made over another");
                } else {
                    let id = self.fresh_id();
                    self.observed.networks.insert(name.clone(), ObservedNetwork { id, spec });
                }
            }
            Step::Create { name } => {
                let found = self.observed.containers.get(name);
                if let Some(found) = found {
                    assert_eq!(
                        found.spec,
                        world.hashes.containers[name].as_str(),
                        "created over another"
                    );
                } else {
                    self.create(name, world);
                }
            }
            Step::Replace { name, id, .. } => match self.observed.containers.get(name) {
                Some(found) if found.id != *id => {
                    assert_eq!(found.spec, world.hashes.containers[name].as_str());
                }
                Some(_) | None => self.create(name, world),
            },
            Step::Start { name } => {
                let found =
                    self.observed.containers.get_mut(name).expect("exists before it is started");
                assert_eq!(found.spec, world.hashes.containers[name].as_str());
                if !found.state.is_running() {
                    found.state = RunState::Running { since: "now".to_owned(), pid: 1 };
                }
            }
        }
    }

    pub(super) fn create(&mut self, name: &str, world: &World) {
        let spec = world.spec(name);
        for end in &spec.networks {
            assert!(
                self.observed.networks.contains_key(&end.network),
                "{} is missing",
                end.network
            );
        }
        let id = self.fresh_id();
        self.observed.containers.insert(name.to_owned(), world.made(spec, id));
    }

    pub(super) fn carry_out_all(&mut self, plan: &EnginePlan, world: &World) {
        for step in &plan.steps {
            self.carry_out(step, world);
        }
    }
}
