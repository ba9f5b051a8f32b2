use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::engine::observed::{ObservedNetwork, OneShot};
use crate::engine::sample;
use crate::engine::spec::Attachment;

/// An engine small enough to think about: carries steps out as
/// `Engine::carry_out` does, and is as strict as Docker about networks.
#[derive(Clone, PartialEq, Debug)]
struct Model {
    observed: Observed,
    made: u32,
}

struct World {
    containers: Vec<ContainerSpec>,
    networks: Vec<NetworkSpec>,
    hashes: Hashes,
}

impl World {
    fn new(services: &[(&str, &[&str])], networks: &[&str]) -> Self {
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

    fn plan(&self, observed: &Observed) -> EnginePlan {
        plan(&self.containers, &self.networks, &self.hashes, observed)
    }

    fn spec(&self, name: &str) -> &ContainerSpec {
        self.containers.iter().find(|spec| spec.name == name).expect("steps name specs")
    }

    fn made(&self, spec: &ContainerSpec, id: String) -> ObservedContainer {
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
    fn empty() -> Self {
        Self { observed: Observed::default(), made: 0 }
    }

    fn fresh_id(&mut self) -> String {
        self.made += 1;
        format!("id{}", self.made)
    }

    fn carry_out(&mut self, step: &Step, world: &World) {
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

    fn create(&mut self, name: &str, world: &World) {
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

    fn carry_out_all(&mut self, plan: &EnginePlan, world: &World) {
        for step in &plan.steps {
            self.carry_out(step, world);
        }
    }
}

fn world() -> World {
    World::new(
        &[("api", &["main", "egress"]), ("worker", &["main"]), ("sandbox", &["inner", "main"])],
        &["main", "egress", "inner"],
    )
}

fn settled(world: &World) -> Model {
    let mut model = Model::empty();
    let plan = world.plan(&model.observed);
    model.carry_out_all(&plan, world);
    model
}

#[test]
fn from_nothing_networks_come_first_and_containers_in_start_order() {
    let world = world();
    let plan = world.plan(&Observed::default());
    let targets: Vec<&str> = plan.steps.iter().map(Step::target).collect();
    assert_eq!(
        targets,
        [
            "dify-n1-main",
            "dify-n1-egress",
            "dify-n1-inner",
            "dify-n1-api",
            "dify-n1-api",
            "dify-n1-worker",
            "dify-n1-worker",
            "dify-n1-sandbox",
            "dify-n1-sandbox"
        ]
    );
    let again = world.plan(&settled(&world).observed);
    assert_eq!((again.steps, again.unchanged.len()), (vec![], 3), "a second run changes nothing");
}

#[test]
fn only_what_changed_is_replaced_and_says_why() {
    let world = world();
    let name = "dify-n1-worker".to_owned();
    type Change = fn(&mut ObservedContainer);
    let cases: [(Change, ReplaceReason); 4] = [
        (|found| found.spec = "old".into(), ReplaceReason::SpecChanged),
        (
            |found| found.image = "old".into(),
            ReplaceReason::ImageChanged {
                from: "old".into(),
                to: "127.0.0.1:5000/standin:1".into(),
            },
        ),
        (|found| found.addresses.clear(), ReplaceReason::Addresses),
        (
            |found| found.state = RunState::Odd("paused".into()),
            ReplaceReason::State("paused".into()),
        ),
    ];
    for (change, why) in cases {
        let mut model = settled(&world);
        let found = model.observed.containers.get_mut(&name).expect("settled");
        change(found);
        let id = found.id.clone();
        let plan = world.plan(&model.observed);
        assert_eq!(
            plan.steps,
            [Step::Replace { name: name.clone(), id, why }, Step::Start { name: name.clone() }]
        );
        assert_eq!(plan.unchanged, ["dify-n1-api", "dify-n1-sandbox"]);
    }
}

#[test]
fn what_ended_is_started_and_what_is_not_in_the_stack_goes() {
    let world = world();
    let mut model = settled(&world);
    let exited = RunState::Exited { code: 137, oom: true, at: String::new() };
    model.observed.containers.get_mut("dify-n1-api").expect("settled").state = exited;
    let mut old = world.made(&world.containers[1], "old".into());
    old.state = RunState::Running { since: String::new(), pid: 7 };
    model.observed.containers.insert("dify-n1-beat".into(), old);
    model.observed.one_shots.insert("dify-n1-job".into(), OneShot { id: "j".into(), orphan: true });
    model
        .observed
        .one_shots
        .insert("dify-n1-migration".into(), OneShot { id: "m".into(), orphan: false });
    let plan = world.plan(&model.observed);
    assert_eq!(
        plan.steps,
        [
            Step::Remove { name: "dify-n1-job".into(), id: "j".into(), why: RemoveReason::Orphan },
            Step::Remove {
                name: "dify-n1-beat".into(),
                id: "old".into(),
                why: RemoveReason::NotInStack
            },
            Step::Start { name: "dify-n1-api".into() },
        ]
    );
}

#[test]
fn what_is_not_ours_is_named_and_left_alone() {
    let world = world();
    let mut observed = Observed::default();
    observed.foreign_containers.insert("dify-n1-worker".into());
    observed.foreign_networks.insert("dify-n1-inner".into(), vec![]);
    observed
        .foreign_networks
        .insert("theirs".into(), vec![Subnet { base: Ipv4Addr::new(10, 77, 1, 128), prefix: 25 }]);
    let plan = world.plan(&observed);
    assert_eq!(
        plan.foreign_conflicts,
        [
            ForeignConflict::Subnet { network: "dify-n1-egress".into(), taken_by: "theirs".into() },
            ForeignConflict::Network("dify-n1-inner".into()),
            ForeignConflict::Container("dify-n1-worker".into()),
        ]
    );
    assert_eq!(plan.steps, [Step::CreateNetwork { name: "dify-n1-main".into() }]);
    assert!(
        plan.foreign_conflicts
            .iter()
            .all(|conflict| conflict.to_string().contains("not this node's"))
    );
}

#[test]
fn a_change_that_is_blocked_takes_nothing_down() {
    let world = world();
    let mut model = settled(&world);
    model.observed.networks.get_mut("dify-n1-main").expect("settled").spec = "old".into();
    model
        .observed
        .foreign_networks
        .insert("theirs".into(), vec![Subnet { base: Ipv4Addr::new(10, 0, 0, 0), prefix: 8 }]);
    let plan = world.plan(&model.observed);
    assert_eq!(plan.steps, []);
    assert_eq!(plan.foreign_conflicts.len(), 1);
}

/// From any state, one plan leads to where the next plan has nothing to do,
/// and carrying it out twice is the same as once.
#[test]
fn any_plan_converges_and_twice_is_once() {
    let world = world();
    for seed in 0..2_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut model = settled(&world);
        scramble(&mut model, &world, &mut random);
        let foreign =
            (model.observed.foreign_containers.clone(), model.observed.foreign_networks.clone());
        let plan = world.plan(&model.observed);
        model.carry_out_all(&plan, &world);
        let once = model.clone();
        model.carry_out_all(&plan, &world);
        assert_eq!(model, once, "seed {seed}: twice is not once");
        let next = world.plan(&model.observed);
        assert_eq!(next.steps, [], "seed {seed}: {:?}", plan.steps);
        assert_eq!(next.foreign_conflicts, plan.foreign_conflicts, "seed {seed}");
        assert_eq!(
            foreign,
            (model.observed.foreign_containers, model.observed.foreign_networks),
            "seed {seed}"
        );
    }
}

fn scramble(model: &mut Model, world: &World, random: &mut StdRng) {
    let observed = &mut model.observed;
    if random.random_bool(0.2) {
        let spec = ObservedNetwork { id: "old network".into(), spec: "x".into() };
        observed.networks.insert("dify-n1-old".into(), spec);
        if let Some(found) = observed.containers.get_mut("dify-n1-worker") {
            found.addresses.insert("dify-n1-old".into(), Ipv4Addr::LOCALHOST);
        }
    }
    for network in &world.networks {
        match random.random_range(0..6) {
            0 => drop(observed.networks.remove(&network.name)),
            1 => {
                observed.networks.get_mut(&network.name).expect("settled").spec = "changed".into();
            }
            2 if random.random_bool(0.3) => {
                // Ours went, theirs came.
                observed.networks.remove(&network.name);
                observed.foreign_networks.insert(network.name.clone(), vec![]);
            }
            _ => {}
        }
    }
    for spec in &world.containers {
        let Some(found) = observed.containers.get_mut(&spec.name) else {
            continue;
        };
        match random.random_range(0..8) {
            0 => drop(observed.containers.remove(&spec.name)),
            1 => found.spec = "changed".into(),
            2 => found.image = "changed".into(),
            3 => found.state = RunState::Created,
            4 => found.state = RunState::Odd("dead".into()),
            5 => drop(found.addresses.pop_last()),
            6 if random.random_bool(0.5) => {
                observed.containers.remove(&spec.name);
                observed.foreign_containers.insert(spec.name.clone());
            }
            _ => {}
        }
    }
    if random.random_bool(0.3) {
        observed.one_shots.insert("dify-n1-job".into(), OneShot { id: "job".into(), orphan: true });
    }
}
