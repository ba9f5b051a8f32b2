//! Carries out steps of a plan. Each reads the live state first: already so,
//! done; as expected, act; else say so, and the caller plans again.

use super::docker::Engine;
use super::error::{EngineError, EngineErrorKind};
use super::observed::Observed;
use super::plan::{Hashes, Step};
use super::site::Site;
use super::spec::{ContainerSpec, NetworkSpec};

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// The engine was changed.
    Out,
    /// There was nothing left to do.
    AlreadySo,
}

/// The specs a plan was made from.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Long-running containers.
    pub containers: &'a [ContainerSpec],
    /// Networks.
    pub networks: &'a [NetworkSpec],
}

impl<'a> Wanted<'a> {
    /// Their hashes at a site.
    pub fn hashes(&self, site: &Site) -> Hashes {
        Hashes {
            containers: self
                .containers
                .iter()
                .map(|spec| (spec.name.clone(), site.hash(spec)))
                .collect(),
            networks: self
                .networks
                .iter()
                .map(|spec| (spec.name.clone(), site.hash_network(spec)))
                .collect(),
        }
    }

    fn container(&self, name: &str) -> Result<&'a ContainerSpec, EngineError> {
        self.containers.iter().find(|spec| spec.name == name).ok_or_else(|| unknown(name))
    }

    fn network(&self, name: &str) -> Result<&'a NetworkSpec, EngineError> {
        self.networks.iter().find(|spec| spec.name == name).ok_or_else(|| unknown(name))
    }
}

fn unknown(name: &str) -> EngineError {
    EngineError::new(
        EngineErrorKind::Stale,
        "carry out a step for",
        name,
        "no spec of that name was given",
    )
}

fn stale(name: &str, found: &str) -> EngineError {
    EngineError::new(EngineErrorKind::Stale, "carry out a step for", name, found)
}

impl Engine {
    /// Carries out one step.
    pub async fn carry_out(
        &self,
        step: &Step,
        wanted: Wanted<'_>,
        site: &Site,
    ) -> Result<Carried, EngineError> {
        let carried = |changed| {
            if changed { Carried::Out } else { Carried::AlreadySo }
        };
        let observed = match step {
            Step::RemoveNetwork { id, .. } => return self.remove_network(id).await.map(carried),
            Step::CreateNetwork { name } => {
                return self.ensure_network(wanted.network(name)?, site).await.map(carried);
            }
            Step::Remove { .. }
            | Step::Create { .. }
            | Step::Replace { .. }
            | Step::Start { .. } => self.observe_one(site.node(), step.target()).await?,
        };
        if observed.foreign_containers.contains(step.target()) {
            let found = "a container of that name exists";
            return Err(EngineError::new(
                EngineErrorKind::Conflict,
                "carry out a step for",
                step.target(),
                found,
            ));
        }
        match step {
            Step::Remove { name, id, .. } => {
                let one_shot = observed.one_shots.get(name).filter(|found| found.id == *id);
                let found = observed.containers.get(name).filter(|found| found.id == *id);
                match (one_shot, found) {
                    (None, None) => return Ok(Carried::AlreadySo),
                    (Some(_), _) => {}
                    (None, Some(found)) => self.stop(id, None, found.stop_timeout).await?,
                }
                self.remove(id).await?;
            }
            Step::RemoveNetwork { .. } | Step::CreateNetwork { .. } => {}
            Step::Create { name } => {
                let spec = wanted.container(name)?;
                if observed.containers.contains_key(name) {
                    return is_as_wanted(spec, site, &observed);
                }
                self.create(spec, site).await?;
            }
            Step::Replace { name, id, .. } => {
                let spec = wanted.container(name)?;
                match observed.containers.get(name) {
                    Some(found) if found.id != *id => return is_as_wanted(spec, site, &observed),
                    Some(found) => {
                        self.stop(id, None, found.stop_timeout).await?;
                        self.remove(id).await?;
                    }
                    // Cut short between removing and creating: go on there.
                    None => {}
                }
                self.create(spec, site).await?;
            }
            Step::Start { name } => {
                let spec = wanted.container(name)?;
                is_as_wanted(spec, site, &observed)?;
                if observed.containers.get(name).is_some_and(|found| found.state.is_running()) {
                    return Ok(Carried::AlreadySo);
                }
                self.start(name).await?;
            }
        }
        Ok(Carried::Out)
    }
}

fn is_as_wanted(
    spec: &ContainerSpec,
    site: &Site,
    observed: &Observed,
) -> Result<Carried, EngineError> {
    match observed.containers.get(&spec.name) {
        Some(found) if found.spec == site.hash(spec).as_str() => Ok(Carried::AlreadySo),
        Some(_) => Err(stale(&spec.name, "another container of ours has that name by now")),
        None => Err(stale(&spec.name, "it is gone")),
    }
}
