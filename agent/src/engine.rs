//! The container engine, in our own words. [`spec`] says what should run,
//! [`observed`] what does, [`plan`] what to do about the difference;
//! [`docker`] (with its folder the only place that knows bollard) does it.
//!
//! ```text
//! ContainerSpec, NetworkSpec --\
//!                               plan() -> steps -> Engine::carry_out -> Docker
//! Engine::observe -> Observed --/                        (reads live state first)
//! ```

pub mod docker;
pub mod error;
pub mod execute;
pub mod files;
pub mod firewall;
pub mod hash;
pub mod lines;
pub mod observed;
pub mod plan;
pub mod progress;
pub mod pull;
#[cfg(test)]
mod sample;
pub mod site;
pub mod spec;

pub use docker::{Ended, Engine, Finished};
pub use error::{EngineError, EngineErrorKind};
pub use hash::SpecHash;
pub use observed::{Observed, ObservedContainer, RunState};
pub use site::{LogDriver, Site};
