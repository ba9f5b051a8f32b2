//! A Redis as Memorystore offers it: AUTH, TLS by the instance's own CA, and no
//! administrative commands.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionAddr, IntoConnectionInfo as _, RedisConnectionInfo};

use crate::cert::Authority;
use crate::child::{self, Child, Launch};
use crate::wait::wait_for;
use crate::{Doing as _, Outcome};

/// Commands Memorystore refuses (its documentation, "Blocked commands") that
/// something here might be tempted to use.
const BLOCKED: [&str; 4] = ["CONFIG", "SAVE", "SHUTDOWN", "DEBUG"];

/// Which names the server's certificate carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateNames {
    /// The addresses clients use: a full check passes.
    WithAddresses,
    /// A name nobody uses: only a check without names passes.
    OtherHost,
}

/// How a Redis is set up.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// With TLS; plain TCP otherwise.
    pub tls: bool,
    /// Names in the certificate.
    pub names: CertificateNames,
    /// `maxmemory-policy`. Memorystore's default is `volatile-lru`, which loses
    /// Celery's tasks; Dify wants `noeviction`.
    pub policy: &'static str,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self { tls: true, names: CertificateNames::WithAddresses, policy: "noeviction" }
    }
}

/// A running Redis.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    /// On a second, plain port: the harness's own door. One of the
    /// certificates is wrong on purpose.
    client: Client,
    /// Port on 127.0.0.1.
    pub port: u16,
    /// The instance's CA, PEM; `None` without TLS.
    pub ca: Option<String>,
}

impl Redis {
    /// Starts one under `dir` that takes `password`; `addresses` are those
    /// clients use (its links').
    pub async fn start(
        dir: &Path,
        password: &str,
        options: &RedisOptions,
        addresses: &[IpAddr],
    ) -> Outcome<Self> {
        dify_common::gcp::install_tls_provider();
        std::fs::create_dir_all(dir).doing(|| format!("create {}", dir.display()))?;
        let file = |name: &str| dir.join(name);
        let write = |name: &str, text: &str| {
            std::fs::write(file(name), text).doing(|| format!("write {name} of Redis"))
        };
        let port = child::free_port()?;
        let door = if options.tls { child::free_port()? } else { port };
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            "save \"\"".to_owned(),
            "appendonly no".to_owned(),
            "maxmemory 256mb".to_owned(),
            format!("maxmemory-policy {}", options.policy),
            format!("requirepass \"{password}\""),
            format!("dir {}", dir.display()),
        ];
        lines.extend(BLOCKED.map(|command| format!("rename-command {command} \"\"")));
        let mut ca = None;
        if options.tls {
            let authority = Authority::new("Redis of the test bed");
            let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            let identity = match options.names {
                CertificateNames::WithAddresses => {
                    let mut names: Vec<&str> = addresses.iter().map(String::as_str).collect();
                    names.push("localhost");
                    authority.issue(&names)
                }
                CertificateNames::OtherHost => authority.issue(&["redis.invalid"]),
            };
            write("server.crt", &identity.certificate)?;
            write("server.key", &identity.key)?;
            write("ca.crt", &authority.pem())?;
            lines.push(format!("port {door}\ntls-port {port}\ntls-auth-clients no"));
            for (key, name) in
                [("cert", "server.crt"), ("key", "server.key"), ("ca-cert", "ca.crt")]
            {
                lines.push(format!("tls-{key}-file {}", file(name).display()));
            }
            ca = Some(authority.pem());
        } else {
            lines.push(format!("port {port}"));
        }
        write("redis.conf", &lines.join("\n"))?;
        let launch =
            Launch { program: Path::new("redis-server"), user: None, at_our_death: "KILL" };
        let mut command = launch.command();
        command.arg(file("redis.conf"));
        let child = Child::start("redis-server", command, file("log"))?;
        let client = client(door, password)?;
        let mut redis = Self { child, client, port, ca };
        redis.ready().await?;
        Ok(redis)
    }

    /// An authenticated connection to database `database`, past every link.
    pub async fn connect(&self, database: u32) -> Outcome<MultiplexedConnection> {
        let connecting = async {
            let mut connection = self.client.get_multiplexed_async_connection().await?;
            redis::cmd("SELECT").arg(database).query_async::<()>(&mut connection).await?;
            Ok::<_, redis::RedisError>(connection)
        };
        connecting.await.doing(|| format!("connect to Redis on port {}", self.port))
    }

    /// Ends it.
    pub async fn stop(self) -> Outcome {
        self.child.stop("TERM", Duration::from_secs(10)).await.map(drop)
    }

    async fn ready(&mut self) -> Outcome {
        let Self { child, client, .. } = self;
        wait_for("Redis", Duration::from_millis(20), Duration::from_secs(10), async || {
            child.check()?;
            let mut connection = client
                .get_multiplexed_async_connection()
                .await
                .map_err(|error| error.to_string())?;
            redis::cmd("PING")
                .query_async::<()>(&mut connection)
                .await
                .map_err(|error| error.to_string())
        })
        .await
    }
}

fn client(port: u16, password: &str) -> Outcome<Client> {
    let info = ConnectionAddr::Tcp("127.0.0.1".to_owned(), port)
        .into_connection_info()
        .doing(|| "describe Redis".into())?
        .set_redis_settings(RedisConnectionInfo::default().set_password(password));
    Client::open(info).doing(|| "make a Redis client".into())
}
