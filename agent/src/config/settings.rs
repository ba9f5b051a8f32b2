//! The validated settings: every field has been checked, every default filled.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use dify_common::ids::{NodeId, ReleaseId};
use dify_common::telemetry::LogMode;

use super::SecretRef;

/// Everything one agent needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// This VM.
    pub node: NodeId,
    /// Dify release to run.
    pub release: ReleaseId,
    /// Name users reach the fleet by, behind the TLS-terminating load balancer.
    pub public_host: String,
    /// Main PostgreSQL.
    pub database: Postgres,
    /// PostgreSQL with pgvector.
    pub vector: Postgres,
    /// Plugin daemon's database, on the main server.
    pub plugin_database: String,
    /// Memorystore.
    pub redis: Redis,
    /// Cloud Storage.
    pub bucket: Bucket,
    /// PEM bundle of every server CA (both PostgreSQL instances, Redis; old and
    /// new ones during a rotation). Public, so it stands in the document.
    pub certificates: Option<String>,
    /// Where each secret lives.
    pub secrets: BTreeMap<SecretName, SecretRef>,
    /// Optional parts of Dify.
    pub features: Features,
    /// Sizes and the budget behind them.
    pub capacity: Capacity,
    /// Where images come from.
    pub images: Images,
    /// Addresses of this node's containers.
    pub network: NodeNetwork,
    /// How the node leaves service.
    pub drain: DrainTimes,
    /// When a node-local fault asks for the VM to be recreated.
    pub liveness: Liveness,
    /// Log destination and filter.
    pub logs: Logs,
    /// Files, sockets and listeners of this agent.
    pub paths: Paths,
    /// Google API base URLs; only tests and private endpoints change them.
    pub google: Endpoints,
    /// Operator's own values for environment keys of the release's manifest:
    /// service -> key -> value. Keys the manifest does not know are refused;
    /// so are keys that carry a secret or that this agent derives.
    pub environment: BTreeMap<String, BTreeMap<String, String>>,
}

/// One PostgreSQL server and the database on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgres {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Database name.
    pub database: String,
    /// Role.
    pub user: String,
    /// What is checked of the server's certificate.
    pub tls: PostgresTls,
}

/// libpq's `sslmode`, the three that make sense here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostgresTls {
    /// No TLS. For a server on the same machine.
    Disable,
    /// TLS, any certificate.
    Require,
    /// TLS and a certificate from [`Settings::certificates`].
    VerifyCa,
}

impl PostgresTls {
    /// libpq's word.
    pub fn sslmode(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
        }
    }
}

/// Redis, as Memorystore offers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// Host name or address.
    pub host: String,
    /// TCP port; Memorystore with TLS listens on 6378.
    pub port: u16,
    /// What is checked of the server's certificate.
    pub tls: RedisTls,
}

/// TLS towards Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisTls {
    /// Plain TCP.
    Disable,
    /// TLS, no check of the certificate (Dify's `CERT_NONE`).
    NoVerify,
    /// TLS, chain and host name checked (Dify's `CERT_REQUIRED`). Preflight
    /// refuses it when the certificate lacks the name or address being used.
    Verify,
}

/// Cloud Storage buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Dify's files.
    pub name: String,
    /// Plugin packages; the same bucket by default.
    pub plugins: String,
}

/// Every secret the agent may handle; which are required depends on features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SecretName {
    /// `SECRET_KEY`: signs sessions and file URLs; at least 42 characters.
    SecretKey,
    /// `INIT_PASSWORD`: gates `/install` until setup is finished; at most 30 characters.
    InitPassword,
    /// Password of the main database's role.
    DatabasePassword,
    /// Password of the vector database's role.
    VectorPassword,
    /// Redis AUTH string.
    RedisPassword,
    /// `PLUGIN_DAEMON_KEY` = daemon's `SERVER_KEY`.
    PluginDaemonKey,
    /// `INNER_API_KEY_FOR_PLUGIN` = daemon's `DIFY_INNER_API_KEY`.
    InnerApiKey,
    /// `CODE_EXECUTION_API_KEY` = sandbox's `API_KEY`.
    CodeExecutionKey,
    /// `DIFY_AGENT_SERVER_SECRET_KEY`: 32 bytes as unpadded base64url.
    AgentServerKey,
    /// `AGENT_BACKEND_API_TOKEN` = `DIFY_AGENT_API_TOKEN`.
    AgentApiToken,
    /// `SHELLCTL_AUTH_TOKEN` = agent backend's token for the local sandbox.
    ShellctlToken,
}

impl SecretName {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::SecretKey,
        Self::InitPassword,
        Self::DatabasePassword,
        Self::VectorPassword,
        Self::RedisPassword,
        Self::PluginDaemonKey,
        Self::InnerApiKey,
        Self::CodeExecutionKey,
        Self::AgentServerKey,
        Self::AgentApiToken,
        Self::ShellctlToken,
    ];

    /// Key under `secrets:` in the document and name in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SecretKey => "secret_key",
            Self::InitPassword => "init_password",
            Self::DatabasePassword => "database_password",
            Self::VectorPassword => "vector_password",
            Self::RedisPassword => "redis_password",
            Self::PluginDaemonKey => "plugin_daemon_key",
            Self::InnerApiKey => "inner_api_key",
            Self::CodeExecutionKey => "code_execution_key",
            Self::AgentServerKey => "agent_server_key",
            Self::AgentApiToken => "agent_api_token",
            Self::ShellctlToken => "shellctl_token",
        }
    }
}

/// Optional parts of Dify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// `api_websocket`: several people in one workflow editor.
    pub collaboration: bool,
    /// Agent services (1.16 and later): `agent_backend`, `local_sandbox`, `agent_ssrf_proxy`.
    pub agent: bool,
}

/// Sizes; `None` is derived from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Most VMs the fleet may have at once, surge included: the connection
    /// budget multiplies by it.
    pub max_vms: NonZeroU32,
    /// gunicorn processes of the api.
    pub api_workers: Option<NonZeroU32>,
    /// Concurrent connections of each api process (`SERVER_WORKER_CONNECTIONS`).
    pub api_connections: Option<NonZeroU32>,
    /// Celery concurrency (`CELERY_WORKER_AMOUNT`).
    pub celery_concurrency: Option<NonZeroU32>,
    /// SQLAlchemy pool size of each process.
    pub pool_size: Option<NonZeroU32>,
    /// SQLAlchemy overflow of each process.
    pub pool_overflow: Option<u32>,
}

/// Where images come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// Prefix put before each repository, such as
    /// `europe-west3-docker.pkg.dev/p/dockerhub`.
    pub mirror: Option<String>,
    /// Run a release that has no lock. For trying things out.
    pub allow_unlocked: bool,
    /// Images pulled at once.
    pub concurrency: NonZeroU32,
    /// Extra folder of manifests and locks, over the built-in ones.
    pub releases_dir: Option<PathBuf>,
}

/// Addresses for this node's container networks: one /24, cut by the wiring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeNetwork {
    /// First address of the /24.
    pub base: Ipv4Addr,
}

/// How the node leaves service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainTimes {
    /// New requests are still served this long after `/health` turned 503:
    /// probe interval x unhealthy threshold of the load balancer, and a margin.
    pub notice: Duration,
    /// Streams and workers get this long in all.
    pub bound: Duration,
}

/// For how long a node-local fault must last before `/health/live` fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// Docker unreachable: longer than systemd needs to bring dockerd back and
    /// dockerd to load its containers.
    pub docker_after: Duration,
    /// No write to the state directory succeeds.
    pub disk_after: Duration,
    /// No agent, seen from the edge: longer than systemd's restarts of it.
    pub agent_after: Duration,
}

/// Log destination and filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    /// Where to.
    pub mode: LogMode,
    /// tracing directive, such as `info`.
    pub filter: String,
}

/// Files, sockets and listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Kept over reboots: `/var/lib/dify-agent`.
    pub state: PathBuf,
    /// Gone at reboot (tmpfs): `/run/dify-agent`.
    pub run: PathBuf,
    /// Docker Engine API socket.
    pub docker: PathBuf,
    /// Operator endpoints: port 1081.
    pub ops: SocketAddr,
}

/// Google API base URLs, without a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// `https://secretmanager.googleapis.com`
    pub secret_manager: String,
    /// `https://storage.googleapis.com`
    pub storage: String,
    /// `host:port` the containers' Google clients use as metadata server in
    /// place of the VM's own. Only set where metadata is simulated.
    pub metadata: Option<String>,
}
