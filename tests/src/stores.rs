//! Throw-away servers, as near to the managed ones as a machine can have them.

pub mod postgres;
pub mod redis;
pub mod registry;
pub mod tls;

pub use postgres::{Postgres, PostgresServer, Rights};
pub use redis::{CertificateNames, Redis, RedisOptions};
pub use registry::Registry;
pub use tls::TlsFront;
