//! Redis as Memorystore offers it: `CONFIG`, `SAVE`, `SHUTDOWN` and `DEBUG` do
//! not exist there, so what is to be known is read from `INFO`.
//!
//! Sources: Memorystore for Redis, "Blocked commands" and "In-transit
//! encryption" (private CA per instance, port 6378); Dify uses database 0 for
//! cache, event bus and plugin daemon, 1 for Celery, 2 for the agent back end,
//! and speaks RESP3 (Redis 6).

mod judge;

pub use judge::judge;

use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, cmd,
};
use dify_common::secret::{ExposeSecret, Secret};
use tokio::time::{Instant, timeout};

use super::reach::{self, ReachError};
use super::tls::{self, Certificate, HandshakeError};
use crate::config::settings::{Redis, RedisTls};

/// One connection, or one command.
const DEADLINE: Duration = Duration::from_secs(5);
/// Life of the probe's key, should its deletion get lost.
const PROBE_SECONDS: u64 = 60;

/// What was found.
#[derive(Debug)]
pub struct Facts {
    /// TCP connection: how long it took.
    pub reach: Result<Duration, ReachError>,
    /// What the server presents; `None` when TLS is off or nobody answered.
    pub tls: Option<Result<Certificate, HandshakeError>>,
    /// What the server says of itself; `None` when it was not asked.
    pub server: Option<Result<Server, Fault>>,
}

/// Why the server did not tell about itself.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The AUTH string is wrong, missing, or not wanted.
    #[error("log in")]
    Auth(#[source] RedisError),
    /// Anything else.
    #[error("ask")]
    Ask(#[source] RedisError),
    /// No answer.
    #[error("no answer within {0:?}")]
    Silent(Duration),
}

/// What the server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// As `7.0.15`.
    pub version: String,
    /// `standalone`, `cluster` or `sentinel`.
    pub mode: String,
    /// `master` or `slave`.
    pub role: String,
    /// What is thrown away when memory is full.
    pub policy: Option<String>,
    /// Bytes in use.
    pub used: u64,
    /// Bytes at most; 0 is no limit.
    pub max: u64,
    /// A key was written, read back and deleted, or why not.
    pub write: Result<(), String>,
    /// Databases Dify uses that cannot be selected, and why.
    pub closed: Vec<(u8, String)>,
    /// One round trip.
    pub latency: Duration,
}

/// A client for `server`. Needs the process's TLS provider.
pub(super) fn client(
    server: &Redis,
    password: Option<&Secret>,
    certificates: Option<&str>,
) -> RedisResult<Client> {
    let (host, port) = (server.host.clone(), server.port);
    let address = match server.tls {
        RedisTls::Disable => ConnectionAddr::Tcp(host, port),
        RedisTls::NoVerify | RedisTls::Verify => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: server.tls == RedisTls::NoVerify,
            tls_params: None,
        },
    };
    let mut settings = RedisConnectionInfo::default();
    if let Some(password) = password {
        settings = settings.set_password(password.expose_secret());
    }
    let info = address.into_connection_info()?.set_redis_settings(settings);
    match server.tls {
        RedisTls::Disable => Client::open(info),
        RedisTls::NoVerify | RedisTls::Verify => {
            let root_cert = certificates.map(|bundle| bundle.as_bytes().to_vec());
            Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
        }
    }
}

/// A connection of `client`, with deadlines on it.
pub(super) async fn connect(client: &Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(DEADLINE))
        .set_response_timeout(Some(DEADLINE));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Collects the facts. `third` asks for database 2 as well.
pub async fn look(
    server: &Redis,
    password: Option<&Secret>,
    certificates: Option<&str>,
    third: bool,
) -> Facts {
    let (stream, took) = match reach::tcp(&server.host, server.port).await {
        Ok(reached) => reached,
        Err(error) => {
            return Facts { reach: Err(error), tls: None, server: None };
        }
    };
    let tls = match server.tls {
        RedisTls::Disable => None,
        RedisTls::NoVerify | RedisTls::Verify => {
            Some(tls::look(stream, &server.host, certificates).await)
        }
    };
    // A certificate that will be refused gets no password from us either.
    let go_on = match (&tls, server.tls) {
        (None, _) | (Some(Ok(_)), RedisTls::NoVerify | RedisTls::Disable) => true,
        (Some(Ok(certificate)), RedisTls::Verify) => *certificate == Certificate::Good,
        (Some(Err(_)), _) => false,
    };
    let asked = if go_on {
        let within = DEADLINE * 4;
        let asking = async {
            let client = client(server, password, certificates)?;
            ask(&client, if third { &[0, 1, 2] } else { &[0, 1] }).await
        };
        Some(match timeout(within, asking).await {
            Ok(asked) => asked.map_err(Fault::from),
            Err(_) => Err(Fault::Silent(within)),
        })
    } else {
        None
    };
    Facts { reach: Ok(took), tls, server: asked }
}

impl From<RedisError> for Fault {
    fn from(error: RedisError) -> Self {
        // NOAUTH and WRONGPASS have no kind of their own once connected.
        let refused = matches!(error.code(), Some("NOAUTH" | "WRONGPASS"));
        if refused || error.kind() == ErrorKind::AuthenticationFailed {
            Self::Auth(error)
        } else {
            Self::Ask(error)
        }
    }
}

async fn ask(client: &Client, databases: &[u8]) -> RedisResult<Server> {
    let mut connection = connect(client).await?;
    let began = Instant::now();
    let () = cmd("PING").query_async(&mut connection).await?;
    let latency = began.elapsed();
    let mut info = String::new();
    for section in ["server", "replication", "memory"] {
        info += &cmd("INFO").arg(section).query_async::<String>(&mut connection).await?;
    }
    let write = write(&mut connection).await.map_err(|error| error.to_string());
    let mut closed = Vec::new();
    for database in databases {
        if let Err(error) = cmd("SELECT").arg(*database).query_async::<()>(&mut connection).await {
            closed.push((*database, error.to_string()));
        }
    }
    let number = |key| field(&info, key).and_then(|text| text.parse().ok()).unwrap_or(0);
    let text = |key| field(&info, key).unwrap_or_default().to_owned();
    Ok(Server {
        version: text("redis_version"),
        mode: text("redis_mode"),
        role: text("role"),
        policy: field(&info, "maxmemory_policy").map(str::to_owned),
        used: number("used_memory"),
        max: number("maxmemory"),
        write,
        closed,
        latency,
    })
}

async fn write(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    let key = format!("dify_fleet:probe:{:016x}", rand::random::<u64>());
    let () =
        cmd("SET").arg(&key).arg("1").arg("EX").arg(PROBE_SECONDS).query_async(connection).await?;
    let read: Option<String> = cmd("GET").arg(&key).query_async(connection).await?;
    let () = cmd("DEL").arg(&key).query_async(connection).await?;
    if read.as_deref() == Some("1") {
        Ok(())
    } else {
        Err(RedisError::from((ErrorKind::UnexpectedReturnType, "read back something else")))
    }
}

/// A value in the answer of `INFO`.
fn field<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_read_by_whole_keys() {
        let info = "# Memory\r\nused_memory:1024\r\nused_memory_rss:9\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n";
        assert_eq!(field(info, "used_memory"), Some("1024"));
        assert_eq!(field(info, "maxmemory_policy"), Some("noeviction"));
        assert_eq!(field(info, "memory"), None);
    }
}
