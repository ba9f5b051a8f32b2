//! Brings the node to its wanted state and keeps it there.
//!
//! [`life`] goes round: boot, serve, again. `boot` walks the phases; `serve`
//! is the steady loop over [`plan`] (pure), `act` (effects) and [`probe`];
//! [`part`] remembers what was seen of each container; [`drain`] (pure) and
//! [`leave`] take the node out of service, [`stop`] ends its containers.

mod act;
mod boot;
pub mod context;
pub mod drain;
pub mod leave;
pub mod life;
pub mod local;
pub mod marker;
pub mod node;
pub mod part;
pub mod plan;
pub mod probe;
mod serve;
pub mod setup;
pub mod shots;
pub mod stop;
