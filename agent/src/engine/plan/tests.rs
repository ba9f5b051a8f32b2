mod model;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use model::{Model, World};

use super::*;
use crate::engine::observed::{ObservedNetwork, OneShot};

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
