//! Whose containers these are and how they are kept: what every create call
//! needs besides the spec.

use std::path::Path;

use dify_common::ids::{NodeId, ReleaseId};

use super::error::EngineError;
use super::files::Files;
use super::hash::{SpecHash, SpecHasher};
use super::spec::{ContainerSpec, NetworkSpec};

/// Where Docker puts what a container prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogDriver {
    /// Files in Docker's data root, bounded and rotated.
    #[default]
    JsonFile,
    /// The journal, which bounds itself.
    Journald,
}

/// One node's place on an engine.
#[derive(Debug, Clone)]
pub struct Site {
    node: NodeId,
    release: ReleaseId,
    logs: LogDriver,
    hasher: SpecHasher,
    files: Files,
}

impl Site {
    /// Opens the node's state directory; makes the hash key when there is none yet.
    pub fn open(
        state: &Path,
        node: NodeId,
        release: ReleaseId,
        logs: LogDriver,
    ) -> Result<Self, EngineError> {
        let hasher = SpecHasher::open(state)?;
        Ok(Self { node, release, logs, hasher, files: Files::new(state) })
    }

    /// The same place for another release.
    #[must_use]
    pub fn for_release(&self, release: ReleaseId) -> Self {
        Self { release, ..self.clone() }
    }

    /// The node.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The release.
    pub fn release(&self) -> &ReleaseId {
        &self.release
    }

    /// Log driver of new containers.
    pub fn logs(&self) -> LogDriver {
        self.logs
    }

    /// Files shown to containers.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Hash of a container's spec and of what this site adds to it.
    pub fn hash(&self, spec: &ContainerSpec) -> SpecHash {
        self.hasher.container(spec, self.logs)
    }

    /// Hash of a network's spec.
    pub fn hash_network(&self, spec: &NetworkSpec) -> SpecHash {
        self.hasher.network(spec)
    }
}
