//! Preflight of Redis.
