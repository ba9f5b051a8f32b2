//! A whole project in one document: what `gcp-sim --state` reads. YAML or JSON, strict keys.

use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use serde::Deserialize;
use thiserror::Error;

use crate::{Instance, InstanceHandle, Project, Sim, SimOptions, VersionState};

/// A project to set up.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StateFile {
    /// The project.
    pub project: Project,
    /// Metadata items of the project.
    pub attributes: BTreeMap<String, String>,
    /// VMs; each gets a metadata server.
    pub instances: Vec<Instance>,
    /// Secrets by id.
    pub secrets: BTreeMap<String, SecretVersions>,
    /// Buckets with the text of their objects by name.
    pub buckets: BTreeMap<String, BTreeMap<String, String>>,
    /// Permissions taken away.
    pub denied: Vec<Denial>,
    /// Life of access tokens, in seconds; Google's when absent.
    pub token_lifetime_seconds: Option<u64>,
    /// See [`SimOptions::anonymous_storage`].
    pub anonymous_storage: bool,
}

/// A secret's versions.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum SecretVersions {
    /// One enabled version.
    One(String),
    /// Version 1 first.
    Many(Vec<SecretVersion>),
}

/// One version of a secret.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretVersion {
    value: String,
    #[serde(default)]
    state: VersionState,
}

/// A permission a service account lacks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denial {
    /// The service account.
    pub account: String,
    /// Such as `storage.objects.delete`.
    pub permission: String,
}

/// A state file that cannot be used.
#[derive(Debug, Error)]
pub enum StateFileError {
    /// Reading it failed.
    #[error("cannot read the state file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what we expect. Its text may hold secrets; only the place is told.
    #[error("the state file {} is not a valid project: see the fields of `StateFile`", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_yaml::Error,
    },
}

impl std::fmt::Debug for SecretVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretVersion").field("state", &self.state).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SecretVersions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretVersions(..)")
    }
}

impl StateFile {
    /// Reads a file; JSON is YAML, too.
    pub fn read(path: PathBuf) -> Result<Self, StateFileError> {
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                serde_yaml::from_str(&text).map_err(|source| StateFileError::Parse { path, source })
            }
            Err(source) => Err(StateFileError::Read { path, source }),
        }
    }

    /// Starts the project. Its instances' handles must be kept: dropping one takes its metadata server down.
    pub async fn start(
        self,
        options: SimOptions,
    ) -> io::Result<(Sim, Vec<(String, InstanceHandle)>)> {
        let sim = Sim::start(SimOptions {
            project: self.project,
            token_lifetime: self
                .token_lifetime_seconds
                .map_or(options.token_lifetime, Duration::from_secs),
            anonymous_storage: self.anonymous_storage || options.anonymous_storage,
            ..options
        })
        .await?;
        for (key, value) in self.attributes {
            sim.set_project_attribute(&key, value);
        }
        for (secret, versions) in self.secrets {
            sim.secrets().create(&secret);
            match versions {
                SecretVersions::One(value) => {
                    sim.secrets().add_version(&secret, value);
                }
                SecretVersions::Many(versions) => {
                    for SecretVersion { value, state } in versions {
                        let number = sim.secrets().add_version(&secret, value);
                        sim.secrets()
                            .set_state(&secret, number, state)
                            .map_err(io::Error::other)?;
                    }
                }
            }
        }
        for (bucket, objects) in self.buckets {
            sim.storage().create_bucket(&bucket);
            for (name, text) in objects {
                sim.storage().put(&bucket, &name, text);
            }
        }
        for Denial { account, permission } in &self.denied {
            sim.iam().deny(account, permission);
        }
        let mut instances = Vec::new();
        for instance in self.instances {
            instances.push((instance.name.clone(), sim.add_instance(instance).await?));
        }
        Ok((sim, instances))
    }
}
