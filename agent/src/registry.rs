//! A small client of image registries (OCI distribution specification 1.1):
//! which digest has a tag now, and does the registry answer. Docker pulls; this
//! only asks, for `releases lock` and for preflight.

mod challenge;
mod client;
mod reference;

pub use client::{Registry, RegistryError, Resolved};
pub use reference::{DOCKER_HUB, InvalidReference, Reference};
