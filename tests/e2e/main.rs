//! Whole fleets against real servers: real Docker, PostgreSQL, pgvector, Redis
//! and registry, and Google Cloud simulated on the wire.
//!
//! Needs a bed around it: `make e2e`, or `make e2e TESTS=outage`.
//!
//! | what must be shown | tests |
//! |---|---|
//! | boot from nothing to `/health` 200; the second boot changes nothing | `boot` |
//! | three nodes at once migrate once; failures of the gate | `gate` |
//! | PostgreSQL, vector, Redis, bucket away: not ready, alive, nothing recreated | `outage` |
//! | every container killed, the agent killed in every phase, the engine's state changed | `crash` |
//! | registry, digests, secrets, documents: a clear error, its exit code, nothing half-done | `faults` |
//! | a SIGTERM with fifty streams open loses no event | `drain` |
//! | no secret where it does not belong | `secrets`, and the end of every other test |

mod bed;
mod boot;
mod crash;
mod drain;
mod engine;
mod faults;
mod front;
mod gate;
mod liveness;
mod outage;
mod preflight;
mod secrets;
mod upgrade;
