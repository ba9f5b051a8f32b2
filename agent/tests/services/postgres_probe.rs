//! Preflight of PostgreSQL.
