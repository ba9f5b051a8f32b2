//! The container engine, in our own words. `docker` (the only file that knows
//! bollard) does what [`spec`] describes and reports what it sees.

pub mod spec;
