//! The data plane on port 1080: takes requests from the load balancer and
//! streams them to Dify's containers, by orders of the agent.
//!
//! It is unprivileged, knows no secret, has no Docker socket and no Google
//! identity. It does not decide what is healthy or where things run: the agent
//! does, and gives complete [`Orders`](dify_common::wire::edge::Orders) over a
//! unix socket. Without the agent it goes on with the last ones.
//!
//! ```text
//!  agent ══ orders, reports ══► control thread: orders, probe, drain, notify
//!                                     │ publishes View (what is known), Life (do we stay)
//!                                     ▼
//!  client ─► accept ─► guard ─► engine ─► forward ─► upstream ─► container     one thread
//!            worker    strict   hyper     health?    slot, pool, per core,
//!                      heads,   http1     refuse?    connect     nothing shared on
//!                      clocks             route                  the way of a byte
//!                                            │
//!                                            ├─► body     frames as they come, idle clock
//!                                            └─► upgrade  bytes both ways after the 101
//! ```
//!
//! The seam is narrow on purpose: [`forward`](self) decides what to do with a request; what
//! moves bytes (guard, engine, body) can be replaced without touching it.

mod access;
mod answer;
mod app;
mod body;
mod check;
mod chunks;
mod drain;
mod forward;
mod guard;
mod headers;
mod health;
mod inflight;
mod listen;
mod notify;
mod orders;
mod probe;
mod route;
mod settings;
mod signals;
mod state;
mod upgrade;
mod upstream;
mod websocket;
mod worker;

pub use answer::{ERROR_HEADER, Failure, Side, Violation};
pub use app::{Edge, Exit, Handle, StartError};
pub use drain::Ask;
pub use listen::ListenError;
pub use settings::{Instance, InvalidInstance, InvalidNetwork, Network, Settings, Timeouts};
pub use signals::pass_on;
