//! Simulated Google Cloud, on the wire: what `dify-agent` and `dify-supervisor` speak to in the demo and in tests.
//!
//! One [`Sim`] is one project. It owns real sockets:
//! - one listener for the shared APIs: token endpoint, key set, Secret Manager, Cloud Storage;
//! - one listener for each VM's metadata server ([`Sim::add_instance`]).
//!
//! It is written from Google's documents and from answers of the real services that others have published, and it shares
//! no type with the programs it tests: a wrong field name cannot be wrong on both sides. What Google leaves open is
//! picked here and marked "inferred" where it stands. It starts no VM and no container; whoever uses it does.
//!
//! ```text
//!   test or demo ── control handle ──┐
//!                                    v
//!   agent ── HTTP ──> listener ──> faults, request log ──> service (plain function over locked state)
//! ```
//!
//! Nothing is random: tokens, generations and ids count upwards, and with [`Clock::stopped_at`] every answer repeats.

mod clock;
mod faults;
mod googleapis;
mod iam;
mod instance;
mod metadata;
mod requests;
mod secrets;
mod server;
mod signing;
mod sim;
mod state;
mod storage;
mod token;
mod wire;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use clock::Clock;
pub use faults::{Effect, Fault, FaultHandle, Faults};
pub use iam::Iam;
pub use instance::{Instance, InstanceHandle, MaintenanceEvent};
pub use requests::{Record, Requests};
pub use secrets::{Secrets, UnknownVersion, VersionState};
pub use sim::{Project, Sim, SimOptions, Urls};
pub use state::{Denial, SecretVersion, SecretVersions, StateFile, StateFileError};
pub use storage::{Storage, StoredObject};

/// Life of identity tokens, as Google issues them.
pub(crate) const IDENTITY_LIFETIME: Duration = Duration::from_hours(1);

/// What a request is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    /// A VM's metadata server.
    Metadata,
    /// OAuth token endpoint and key set.
    Token,
    /// Secret Manager.
    SecretManager,
    /// Cloud Storage.
    Storage,
}

/// Locks; a panic elsewhere has been printed, and the state of a test bed is then as good as any.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
