//! What agent, edge and supervisor share, and nothing else.
//!
//! Charter, checked by the architecture test: three groups live here.
//! * the contract: [`wire`] and [`ids`], the only place where the programs meet;
//! * process plumbing: [`settings`], [`secret`], [`telemetry`], [`tasks`],
//!   [`shutdown`], [`retry`], [`clock`], [`chain`];
//! * Google identity: [`gcp`] (feature `gcp`; the edge has none).
//!
//! No dependency on bollard, axum, sqlx, redis or anyhow; nothing that a
//! single program uses.

pub mod chain;
pub mod clock;
#[cfg(feature = "gcp")]
pub mod gcp;
pub mod ids;
pub mod retry;
pub mod secret;
pub mod settings;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
pub mod wire;
