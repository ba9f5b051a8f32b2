//! Dify as data: (settings, secrets, release, lock, machine) -> [`Stack`].
//! Pure; golden-tested for each release.
//!
//! [`crate::release`] says which keys a container takes, `environment` where
//! their values come from, `network` who can reach whom, `size` how much of
//! everything, `credentials` which secrets will not do.

mod credentials;
mod environment;
pub mod explain;
mod files;
mod findings;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod golden_test;
mod network;
mod size;
pub mod stack;
#[cfg(test)]
mod traps_test;
mod wiring;

use std::collections::BTreeMap;

use dify_common::secret::Secret;
use dify_common::settings::Problems;

use crate::config::settings::{SecretName, Settings};
use crate::exit::Exit;
use crate::release::{Lock, Release};

use stack::{Machine, Stack};

/// Dify's name of the service that migrates its own schema at every start.
pub const PLUGIN_DAEMON: &str = "plugin_daemon";

/// These inputs make no node. All reasons at once; no secret is in them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("wire release {release}: {problems}")]
pub struct WireError {
    /// The release.
    pub release: String,
    /// What is wrong, by key path of the settings.
    pub problems: Problems,
}

impl WireError {
    /// How a command ends on it.
    pub fn exit(&self) -> Exit {
        let all = |prefix: &str| self.problems.iter().all(|p| p.path.starts_with(prefix));
        if all("secrets.") {
            Exit::Secret
        } else if all("images.lock") {
            Exit::Manifest
        } else {
            Exit::Configuration
        }
    }
}

/// What one node runs.
pub fn wire(
    settings: &Settings,
    secrets: &BTreeMap<SecretName, Secret>,
    release: &Release,
    lock: Option<&Lock>,
    machine: Machine,
) -> Result<Stack, WireError> {
    wiring::Wiring::new(settings, secrets, release, lock, machine).stack()
}
