//! Where an environment value comes from: a closed vocabulary, so that a
//! manifest can name nothing the wiring does not know.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::settings::SecretName;

/// The origin of one environment value, as written in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Value {
    /// `literal:TEXT`: fixed; the operator may not change it.
    Literal(String),
    /// `default:TEXT`: the operator may set another one.
    Default(String),
    /// `settable`: left out unless the operator sets it.
    Settable,
    /// `secret:NAME`: a secret as it is; left out when an optional one is absent.
    Secret(SecretName),
    /// `derived:NAME`: computed from settings, secrets and machine.
    Derived(Derived),
    /// `url:SERVICE[/PATH]`: `http://SERVICE:PORT[/PATH]` of a service on this node.
    Url {
        /// Service of the same manifest.
        service: String,
        /// Appended as it is: empty or with a leading slash.
        path: String,
    },
    /// Anything else; the check reports it.
    Unknown(String),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        let parsed = match text.split_once(':') {
            None if text == "settable" => Some(Self::Settable),
            Some(("literal", rest)) => Some(Self::Literal(rest.to_owned())),
            Some(("default", rest)) => Some(Self::Default(rest.to_owned())),
            Some(("secret", name)) => {
                SecretName::ALL.into_iter().find(|secret| secret.as_str() == name).map(Self::Secret)
            }
            Some(("derived", name)) => {
                Derived::ALL.into_iter().find(|derived| derived.as_str() == name).map(Self::Derived)
            }
            Some(("url", rest)) => {
                let (service, path) =
                    rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
                Some(Self::Url { service: service.to_owned(), path: path.to_owned() })
            }
            Some(_) | None => None,
        };
        parsed.unwrap_or(Self::Unknown(text))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(text) => write!(f, "literal:{text}"),
            Self::Default(text) => write!(f, "default:{text}"),
            Self::Settable => f.write_str("settable"),
            Self::Secret(name) => write!(f, "secret:{}", name.as_str()),
            Self::Derived(derived) => write!(f, "derived:{}", derived.as_str()),
            Self::Url { service, path } => write!(f, "url:{service}{path}"),
            Self::Unknown(text) => f.write_str(text),
        }
    }
}

impl From<Value> for String {
    fn from(value: Value) -> Self {
        value.to_string()
    }
}

macro_rules! derived {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A value the wiring computes. `dify::environment` has one arm for each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Derived { $($(#[$doc])* $variant,)* }

        impl Derived {
            /// All of them.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// Name in manifests.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

derived! {
    /// Main database: host.
    DatabaseHost = "database_host",
    /// Main database: port.
    DatabasePort = "database_port",
    /// Main database: role.
    DatabaseUser = "database_user",
    /// Main database: name.
    DatabaseName = "database_name",
    /// Main database: SQLAlchemy's query string, with its TLS.
    DatabaseExtras = "database_extras",
    /// Plugin daemon's database.
    PluginDatabase = "plugin_database",
    /// Plugin daemon's `DB_SSL_MODE`: `disable` or `require`.
    DaemonSslMode = "daemon_sslmode",
    /// CA bundle, when the main database's certificate is verified.
    DaemonRootCert = "daemon_root_cert",
    /// Plugin daemon's `DB_MAX_OPEN_CONNS`.
    DaemonConnections = "daemon_connections",
    /// Vector database: host.
    VectorHost = "vector_host",
    /// Vector database: port.
    VectorPort = "vector_port",
    /// Vector database: role.
    VectorUser = "vector_user",
    /// Vector database: name.
    VectorName = "vector_name",
    /// Vector database: libpq's `sslmode`.
    VectorSslMode = "vector_sslmode",
    /// CA bundle, when the vector database's certificate is verified.
    VectorRootCert = "vector_root_cert",
    /// Connections of one vector pool.
    VectorConnections = "vector_connections",
    /// Redis: host.
    RedisHost = "redis_host",
    /// Redis: port.
    RedisPort = "redis_port",
    /// Redis: `true` with TLS.
    RedisUseSsl = "redis_use_ssl",
    /// Redis: `CERT_NONE` or `CERT_REQUIRED`.
    RedisCertReqs = "redis_cert_reqs",
    /// CA bundle, when Redis's certificate is verified.
    RedisRootCert = "redis_root_cert",
    /// Celery's broker: Redis database 1.
    BrokerUrl = "broker_url",
    /// Event bus: Redis database 0, with redis-py's TLS options.
    EventBusUrl = "event_bus_url",
    /// Agent backend: Redis database 2, with redis-py's TLS options.
    AgentRedisUrl = "agent_redis_url",
    /// Bucket of files.
    Bucket = "bucket",
    /// Bucket of plugin packages.
    PluginBucket = "plugin_bucket",
    /// Base URL of a Cloud Storage that is not Google's; absent with Google's.
    StorageEmulator = "storage_emulator",
    /// `host:port` of a metadata server that is not the VM's; absent with the VM's.
    MetadataHost = "metadata_host",
    /// `https://PUBLIC_HOST`.
    PublicUrl = "public_url",
    /// `wss://PUBLIC_HOST`.
    SocketUrl = "socket_url",
    /// `https://PUBLIC_HOST/e/{hook_id}`.
    EndpointTemplate = "endpoint_template",
    /// `true` with the feature `collaboration`.
    Collaboration = "collaboration",
    /// `true` with the feature `agent`.
    Agent = "agent",
    /// gunicorn processes.
    ApiWorkers = "api_workers",
    /// Requests one gunicorn process works on at once.
    ApiConnections = "api_connections",
    /// Celery concurrency.
    CeleryConcurrency = "celery_concurrency",
    /// SQLAlchemy pool size.
    PoolSize = "pool_size",
    /// SQLAlchemy overflow.
    PoolOverflow = "pool_overflow",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_read_and_written_alike() {
        let mut texts: Vec<String> = [
            "literal:",
            "literal:a:b",
            "default:15",
            "settable",
            "url:api",
            "url:agent_backend/agent-stub",
        ]
        .map(str::to_owned)
        .to_vec();
        texts.extend(SecretName::ALL.map(|name| format!("secret:{}", name.as_str())));
        texts.extend(Derived::ALL.map(|name| format!("derived:{}", name.as_str())));
        for text in texts {
            let value = Value::from(text.clone());
            assert!(!matches!(value, Value::Unknown(_)), "{text}");
            assert_eq!(value.to_string(), text);
        }
    }

    #[test]
    fn what_is_not_in_the_vocabulary_is_kept_for_the_report() {
        for text in ["", "secret:nope", "derived:nope", "env:HOME", "plain"] {
            assert_eq!(Value::from(text.to_owned()), Value::Unknown(text.to_owned()));
        }
    }
}
