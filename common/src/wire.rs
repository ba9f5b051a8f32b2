//! The contract between the programs. Wire types are tolerant: unknown fields
//! are ignored, unknown states have a name, changes only add (during a rollout
//! old and new speak together).

pub mod edge;
pub mod status;
