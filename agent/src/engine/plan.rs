//! What to do about the difference between what should run and what does.
//! A pure function of both; each step names its target and the state it
//! expects to find, so that carrying it out leaves no choice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use super::hash::SpecHash;
use super::observed::{Observed, ObservedContainer, RunState, Subnet};
use super::spec::{ContainerSpec, NetworkSpec};

/// Hash of every spec of a plan, by name on the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hashes {
    /// Of containers.
    pub containers: BTreeMap<String, SpecHash>,
    /// Of networks.
    pub networks: BTreeMap<String, SpecHash>,
}

/// What to do, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct EnginePlan {
    /// Steps: what goes, then networks, then containers in start order.
    pub steps: Vec<Step>,
    /// Containers that run as they should.
    pub unchanged: Vec<String>,
    /// What is in the way and not ours. No step touches it, and none of the
    /// steps that need its place is in the plan.
    pub foreign_conflicts: Vec<ForeignConflict>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Remove this container, stopping it first.
    Remove {
        /// Its name.
        name: String,
        /// The one that is expected there.
        id: String,
        /// Why.
        why: RemoveReason,
    },
    /// Remove this network; nothing of ours is on it any more.
    RemoveNetwork {
        /// Its name.
        name: String,
        /// The one that is expected there.
        id: String,
        /// Why.
        why: RemoveReason,
    },
    /// Make this network, where there is none of the name.
    CreateNetwork {
        /// Its name.
        name: String,
    },
    /// Create this container, where there is none of the name.
    Create {
        /// Its name.
        name: String,
    },
    /// Stop and remove the old one, create the new one.
    Replace {
        /// Its name.
        name: String,
        /// The old one.
        id: String,
        /// Why.
        why: ReplaceReason,
    },
    /// Start this container, which exists as specified.
    Start {
        /// Its name.
        name: String,
    },
}

impl Step {
    /// The container or network it is about.
    pub fn target(&self) -> &str {
        match self {
            Self::Remove { name, .. }
            | Self::RemoveNetwork { name, .. }
            | Self::CreateNetwork { name }
            | Self::Create { name }
            | Self::Replace { name, .. }
            | Self::Start { name } => name,
        }
    }
}

/// Why something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoveReason {
    /// The stack has no such thing any more.
    NotInStack,
    /// A one-shot whose process is gone.
    Orphan,
    /// Its specification changed, and networks cannot be changed.
    SpecChanged,
    /// A network it is on is made anew; it comes back after that.
    NetworkChanged,
}

/// Why a container is made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplaceReason {
    /// It was made from another spec.
    SpecChanged,
    /// It was made from another image.
    ImageChanged {
        /// The image it has.
        from: String,
        /// The image it should have.
        to: String,
    },
    /// It is not on the networks it should be on: its creation was cut short.
    Addresses,
    /// It is in a state that is none of ours.
    State(String),
}

/// Something that is not ours stands where ours should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForeignConflict {
    /// A container without this node's label has the name.
    Container(String),
    /// A network without this node's label has the name.
    Network(String),
    /// A network without this node's label has (part of) the subnet.
    Subnet {
        /// Our network.
        network: String,
        /// Theirs.
        taken_by: String,
    },
}

impl fmt::Display for RemoveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotInStack => "not part of the release's stack any more",
            Self::Orphan => "left over from a run that was cut short",
            Self::SpecChanged => "its specification changed",
            Self::NetworkChanged => "a network it is on is made anew",
        })
    }
}

impl fmt::Display for ReplaceReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpecChanged => f.write_str("its specification changed"),
            Self::ImageChanged { from, to } => write!(f, "its image changes from {from} to {to}"),
            Self::Addresses => f.write_str("it is not on all of its networks"),
            Self::State(state) => write!(f, "it is {state}"),
        }
    }
}

impl fmt::Display for ForeignConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(name) => write!(f, "container {name} exists and is not this node's"),
            Self::Network(name) => write!(f, "network {name} exists and is not this node's"),
            Self::Subnet { network, taken_by } => {
                write!(
                    f,
                    "the subnet of network {network} overlaps with that of {taken_by}, which is not this node's"
                )
            }
        }
    }
}

/// The plan. `hashes` must hold every container and network given.
pub fn plan(
    containers: &[ContainerSpec],
    networks: &[NetworkSpec],
    hashes: &Hashes,
    observed: &Observed,
) -> EnginePlan {
    let mut plan = EnginePlan::default();
    let fates = NetworkFates::decide(networks, hashes, observed, &mut plan.foreign_conflicts);
    let orphans = observed.one_shots.iter().filter(|(_, one_shot)| one_shot.orphan);
    plan.steps.extend(orphans.map(|(name, one_shot)| Step::Remove {
        name: name.clone(),
        id: one_shot.id.clone(),
        why: RemoveReason::Orphan,
    }));
    let wanted: BTreeSet<&str> = containers.iter().map(|spec| spec.name.as_str()).collect();
    for (name, found) in &observed.containers {
        // A network goes only when nobody is on it, so those that are on it go
        // before, also if they come back.
        let why = match (wanted.contains(name.as_str()), fates.moves(found)) {
            (false, _) => RemoveReason::NotInStack,
            (true, true) => RemoveReason::NetworkChanged,
            (true, false) => continue,
        };
        plan.steps.push(Step::Remove { name: name.clone(), id: found.id.clone(), why });
    }
    for (name, found) in &observed.networks {
        let why = match (fates.gone.contains(name.as_str()), fates.fresh.contains(name.as_str())) {
            (true, _) => RemoveReason::NotInStack,
            (false, true) => RemoveReason::SpecChanged,
            (false, false) => continue,
        };
        plan.steps.push(Step::RemoveNetwork { name: name.clone(), id: found.id.clone(), why });
    }
    let fresh = networks.iter().filter(|spec| fates.fresh.contains(spec.name.as_str()));
    plan.steps.extend(fresh.map(|spec| Step::CreateNetwork { name: spec.name.clone() }));
    for spec in containers {
        let is_blocked =
            spec.networks.iter().any(|end| fates.blocked.contains(end.network.as_str()));
        if observed.foreign_containers.contains(&spec.name) {
            plan.foreign_conflicts.push(ForeignConflict::Container(spec.name.clone()));
        } else if !is_blocked {
            let found = observed.containers.get(&spec.name).filter(|found| !fates.moves(found));
            one_container(spec, hashes.containers.get(&spec.name), found, &mut plan);
        }
    }
    plan
}

/// What becomes of networks, by name.
struct NetworkFates<'a> {
    /// Ours, and no part of the stack any more.
    gone: BTreeSet<&'a str>,
    /// Missing, or made from another spec: either way it will be another
    /// network, and a container looks for the id of the one it was made on.
    fresh: BTreeSet<&'a str>,
    /// Would be fresh, but something of somebody else's is in the way.
    blocked: BTreeSet<&'a str>,
}

impl<'a> NetworkFates<'a> {
    fn decide(
        networks: &'a [NetworkSpec],
        hashes: &Hashes,
        observed: &'a Observed,
        conflicts: &mut Vec<ForeignConflict>,
    ) -> Self {
        let known: BTreeSet<&str> = networks.iter().map(|spec| spec.name.as_str()).collect();
        let ours = observed.networks.keys().map(String::as_str);
        let gone = ours.filter(|name| !known.contains(name)).collect();
        let mut fates = Self { gone, fresh: BTreeSet::new(), blocked: BTreeSet::new() };
        for spec in networks {
            let found = observed.networks.get(&spec.name).map(|found| found.spec.as_str());
            if found.is_some() && found == hashes.networks.get(&spec.name).map(SpecHash::as_str) {
                continue;
            }
            if let Some(conflict) = in_the_way(spec, observed) {
                conflicts.push(conflict);
                fates.blocked.insert(&spec.name);
            } else {
                fates.fresh.insert(&spec.name);
            }
        }
        fates
    }

    /// Whether a container is on a network that goes, for good or for another.
    fn moves(&self, found: &ObservedContainer) -> bool {
        let goes =
            |name: &String| self.gone.contains(name.as_str()) || self.fresh.contains(name.as_str());
        found.addresses.keys().any(goes)
    }
}

fn in_the_way(spec: &NetworkSpec, observed: &Observed) -> Option<ForeignConflict> {
    if observed.foreign_networks.contains_key(&spec.name) {
        return Some(ForeignConflict::Network(spec.name.clone()));
    }
    let ours = Subnet { base: spec.subnet, prefix: spec.prefix };
    let overlaps = |theirs: &Vec<Subnet>| theirs.iter().any(|subnet| subnet.overlaps(ours));
    let (taken_by, _) = observed.foreign_networks.iter().find(|(_, theirs)| overlaps(theirs))?;
    Some(ForeignConflict::Subnet { network: spec.name.clone(), taken_by: taken_by.clone() })
}

fn one_container(
    spec: &ContainerSpec,
    hash: Option<&SpecHash>,
    found: Option<&ObservedContainer>,
    plan: &mut EnginePlan,
) {
    let name = spec.name.clone();
    let start = Step::Start { name: name.clone() };
    let Some(found) = found else {
        plan.steps.extend([Step::Create { name }, start]);
        return;
    };
    match (replace_reason(spec, hash, found), &found.state) {
        (Some(why), _) => {
            plan.steps.extend([Step::Replace { name, id: found.id.clone(), why }, start]);
        }
        (None, RunState::Running { .. }) => plan.unchanged.push(name),
        (None, RunState::Created | RunState::Exited { .. } | RunState::Odd(_)) => {
            plan.steps.push(start);
        }
    }
}

fn replace_reason(
    spec: &ContainerSpec,
    hash: Option<&SpecHash>,
    found: &ObservedContainer,
) -> Option<ReplaceReason> {
    let addresses: BTreeMap<String, Ipv4Addr> = spec
        .networks
        .iter()
        .map(|attachment| (attachment.network.clone(), attachment.address))
        .collect();
    if found.image != spec.image {
        return Some(ReplaceReason::ImageChanged {
            from: found.image.clone(),
            to: spec.image.clone(),
        });
    }
    if hash.is_none_or(|hash| hash.as_str() != found.spec) {
        return Some(ReplaceReason::SpecChanged);
    }
    if addresses != found.addresses {
        return Some(ReplaceReason::Addresses);
    }
    match &found.state {
        RunState::Odd(state) => Some(ReplaceReason::State(state.clone())),
        RunState::Created | RunState::Running { .. } | RunState::Exited { .. } => None,
    }
}

#[cfg(test)]
mod tests;
