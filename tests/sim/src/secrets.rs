//! Secret Manager: secrets, their versions and states.

mod rest;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    Clock, Project,
    iam::Iam,
    locked,
    wire::{Call, Reply},
};

/// A version's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum VersionState {
    /// Can be read.
    #[default]
    Enabled,
    /// Kept, not readable.
    Disabled,
    /// Gone for good; its number stays taken.
    Destroyed,
}

/// A control call named a version that is not there.
#[derive(Debug, Error)]
#[error("no version {version} of secret {secret}: add it first")]
pub struct UnknownVersion {
    secret: String,
    version: usize,
}

/// Secret Manager's content. Secrets are named by id, or by `LOCATION/ID` for the regional service.
#[derive(Clone, Debug)]
pub struct Secrets {
    project: Project,
    clock: Clock,
    /// By `secrets/ID` or `locations/L/secrets/ID`: the tail of the resource name.
    state: Arc<Mutex<BTreeMap<String, Secret>>>,
}

#[derive(Debug)]
struct Secret {
    created: Duration,
    labels: BTreeMap<String, String>,
    aliases: BTreeMap<String, usize>,
    /// Version 1 first.
    versions: Vec<Version>,
}

struct Version {
    data: Bytes,
    state: VersionState,
    created: Duration,
    destroyed: Option<Duration>,
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Version").field("state", &self.state).finish_non_exhaustive()
    }
}

impl VersionState {
    fn name(self) -> &'static str {
        match self {
            Self::Enabled => "ENABLED",
            Self::Disabled => "DISABLED",
            Self::Destroyed => "DESTROYED",
        }
    }
}

impl Secrets {
    pub(crate) fn new(project: Project, clock: Clock) -> Self {
        Self { project, clock, state: Arc::default() }
    }

    /// A secret without versions; one that is there stays as it is.
    pub fn create(&self, secret: &str) {
        let created = self.clock.now();
        locked(&self.state).entry(tail(secret)).or_insert_with(|| Secret::new(created));
    }

    /// Adds a version, creating the secret when it is missing. Returns the version's number.
    pub fn add_version(&self, secret: &str, data: impl Into<Bytes>) -> usize {
        let created = self.clock.now();
        let mut state = locked(&self.state);
        let secret = state.entry(tail(secret)).or_insert_with(|| Secret::new(created));
        secret.add(data.into(), created)
    }

    /// Disables, enables or destroys a version. Unlike Google it also undoes a destruction's state, though not its data.
    pub fn set_state(
        &self,
        secret: &str,
        version: usize,
        to: VersionState,
    ) -> Result<(), UnknownVersion> {
        let now = self.clock.now();
        let mut state = locked(&self.state);
        let found = state
            .get_mut(&tail(secret))
            .and_then(|secret| secret.versions.get_mut(version.checked_sub(1)?));
        found
            .map(|version| version.set(to, now))
            .ok_or_else(|| UnknownVersion { secret: secret.to_owned(), version })
    }

    /// Points an alias at a version.
    pub fn set_alias(
        &self,
        secret: &str,
        alias: &str,
        version: usize,
    ) -> Result<(), UnknownVersion> {
        let mut state = locked(&self.state);
        let found = state
            .get_mut(&tail(secret))
            .filter(|secret| (1..=secret.versions.len()).contains(&version));
        let secret = found.ok_or_else(|| UnknownVersion { secret: secret.to_owned(), version })?;
        secret.aliases.insert(alias.to_owned(), version);
        Ok(())
    }

    /// Deletes a secret with all its versions.
    pub fn delete(&self, secret: &str) {
        locked(&self.state).remove(&tail(secret));
    }

    pub(crate) fn answer(&self, call: &Call, iam: &Iam) -> Reply {
        rest::answer(self, call, iam)
    }
}

impl Secret {
    fn new(created: Duration) -> Self {
        Self { created, labels: BTreeMap::new(), aliases: BTreeMap::new(), versions: Vec::new() }
    }

    fn add(&mut self, data: Bytes, created: Duration) -> usize {
        self.versions.push(Version {
            data,
            state: VersionState::Enabled,
            created,
            destroyed: None,
        });
        self.versions.len()
    }

    /// The number a path names: a number, an alias, or `latest`, which is the highest number whatever its state.
    fn resolve(&self, named: &str) -> Option<usize> {
        let number = match named {
            "latest" => self.versions.len(),
            _ => named.parse().ok().or_else(|| self.aliases.get(named).copied())?,
        };
        (1..=self.versions.len()).contains(&number).then_some(number)
    }
}

impl Version {
    fn set(&mut self, to: VersionState, now: Duration) {
        self.state = to;
        if to == VersionState::Destroyed {
            self.data = Bytes::new();
            self.destroyed = Some(now);
        }
    }
}

fn tail(secret: &str) -> String {
    match secret.split_once('/') {
        Some((location, id)) => format!("locations/{location}/secrets/{id}"),
        None => format!("secrets/{secret}"),
    }
}
