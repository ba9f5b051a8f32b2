//! PostgreSQL, main and vector: how it is reached and what Dify needs of it.
//!
//! Sources: Dify's migrations (api/migrations) create `uuid-ossp` and functions
//! and want PostgreSQL 13 or later; its pgvector store creates the extension
//! `vector` and HNSW indexes (pgvector 0.5); the plugin daemon connects to a
//! database of its own and would create it from database `postgres`. Extensions
//! of Cloud SQL are created by members of `cloudsqlsuperuser`.

mod judge;

pub use judge::judge;

use std::time::Duration;

use dify_common::clock;
use dify_common::secret::{ExposeSecret, Secret};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::Group;
use super::reach::{self, ReachError};
use super::tls::{self, Certificate, HandshakeError};
use crate::config::settings::{Postgres, PostgresTls};

/// Connecting with TLS and SCRAM, or a few statements.
const DEADLINE: Duration = Duration::from_secs(10);
/// `SSLRequest` of the wire protocol: length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Options for a direct connection to `server`, for the gate and for probes.
///
/// Their `Debug` prints the password: never derive it over them.
///
/// `verify-ca` here trusts the bundle and, which sqlx does not let us switch
/// off, the public web CAs; preflight checks the certificate against the
/// bundle alone.
pub fn options(
    server: &Postgres,
    password: Option<&Secret>,
    certificates: Option<&str>,
) -> PgConnectOptions {
    let mode = match server.tls {
        PostgresTls::Disable => PgSslMode::Disable,
        PostgresTls::Require => PgSslMode::Require,
        PostgresTls::VerifyCa => PgSslMode::VerifyCa,
    };
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(&server.host)
        .port(server.port)
        .username(&server.user)
        .database(&server.database)
        .ssl_mode(mode)
        .application_name("dify-agent")
        .disable_statement_logging();
    if let Some(password) = password {
        options = options.password(password.expose_secret());
    }
    if let Some(bundle) = certificates {
        options = options.ssl_root_cert_from_pem(bundle.as_bytes().to_vec());
    }
    options
}

/// Which server is asked for what.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// `Database` or `Vector`.
    pub group: Group,
    /// The server.
    pub server: &'a Postgres,
    /// The role's password.
    pub password: Option<&'a Secret>,
    /// The bundle.
    pub certificates: Option<&'a str>,
    /// Extension Dify needs there.
    pub extension: &'static str,
    /// The plugin daemon's database, on the main server.
    pub plugin_database: Option<&'a str>,
}

/// Connections the fleet may open on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// How many.
    pub connections: u32,
    /// The arithmetic in words.
    pub arithmetic: String,
}

/// What was found.
#[derive(Debug)]
pub struct Facts {
    /// TCP connection: how long it took.
    pub reach: Result<Duration, ReachError>,
    /// What the server presents; `None` when TLS is off or nobody answered.
    pub tls: Option<Result<Certificate, TlsFault>>,
    /// What the server says of itself; `None` when it was not asked.
    pub server: Option<Result<Server, Fault>>,
}

/// Why there is no certificate to look at.
#[derive(Debug, thiserror::Error)]
pub enum TlsFault {
    /// It answered `N`: TLS is switched off there.
    #[error("the server offers no TLS")]
    NotOffered,
    /// The handshake failed.
    #[error("ask for TLS")]
    Handshake(#[source] HandshakeError),
    /// The question was not answered.
    #[error("ask for TLS")]
    Question(#[source] std::io::Error),
}

/// Why the server did not tell about itself.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No session.
    #[error("log in")]
    Login(#[source] sqlx::Error),
    /// A question went wrong.
    #[error("ask about {0}")]
    Ask(&'static str, #[source] sqlx::Error),
    /// No answer.
    #[error("no answer within {0:?}")]
    Silent(Duration),
}

/// What the server says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// As `150018`.
    pub version: u32,
    /// Encrypted, by its own account.
    pub encrypted: bool,
    /// A replica or a read-only default: cannot be written.
    pub read_only: bool,
    /// `CREATE` on the database: schema `dify_fleet`, trusted extensions.
    pub may_create_schema: bool,
    /// `CREATE` in the schema new tables go to.
    pub may_create_table: bool,
    /// The extension Dify needs.
    pub extension: Extension,
    /// The plugin daemon's database, when it was asked for.
    pub plugin: Option<PluginDatabase>,
    /// Connections.
    pub connections: Connections,
    /// Its clock ahead of ours, in seconds; negative when behind.
    pub skew: f64,
    /// One round trip.
    pub latency: Duration,
}

/// State of an extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extension {
    /// There, in this version.
    Present(String),
    /// Created just now.
    Created,
    /// Not installed on the server.
    Unavailable,
    /// The role may not create it.
    Refused(String),
}

/// State of the plugin daemon's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PluginDatabase {
    /// There and usable.
    Present,
    /// Created just now.
    Created,
    /// There, but the role may not create tables in it.
    NotOurs,
    /// Missing, and the role may not create it (or cannot log in to it).
    Refused(String),
}

/// Room for connections on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// `max_connections`, or less where the role or the database has a limit.
    pub max: u32,
    /// Kept for superusers and for `pg_use_reserved_connections`.
    pub reserved: u32,
    /// In use by our role, on this server.
    pub ours: u32,
    /// In use by others.
    pub others: u32,
}

/// Collects the facts; creates the extension and the plugin database when they
/// are missing and the role may.
pub async fn look(question: &Question<'_>) -> Facts {
    let server = question.server;
    let (stream, took) = match reach::tcp(&server.host, server.port).await {
        Ok(reached) => reached,
        Err(error) => {
            return Facts { reach: Err(error), tls: None, server: None };
        }
    };
    let tls = match server.tls {
        PostgresTls::Disable => None,
        PostgresTls::Require | PostgresTls::VerifyCa => {
            Some(certificate(stream, &server.host, question.certificates).await)
        }
    };
    // A certificate we would refuse gets no password from us either.
    let go_on = match (&tls, server.tls) {
        (None, _) | (Some(Ok(_)), PostgresTls::Require | PostgresTls::Disable) => true,
        (Some(Ok(certificate)), PostgresTls::VerifyCa) => certificate.is_trusted(),
        (Some(Err(_)), _) => false,
    };
    let asked = if go_on {
        let asking = timeout(DEADLINE * 2, ask(question)).await;
        Some(asking.unwrap_or(Err(Fault::Silent(DEADLINE * 2))))
    } else {
        None
    };
    Facts { reach: Ok(took), tls, server: asked }
}

async fn certificate(
    mut stream: TcpStream,
    host: &str,
    bundle: Option<&str>,
) -> Result<Certificate, TlsFault> {
    let question = async {
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_u8().await
    };
    let answer = timeout(DEADLINE, question)
        .await
        .unwrap_or_else(|late| Err(late.into()))
        .map_err(TlsFault::Question)?;
    if answer != b'S' {
        return Err(TlsFault::NotOffered);
    }
    tls::look(stream, host, bundle).await.map_err(TlsFault::Handshake)
}

async fn ask(question: &Question<'_>) -> Result<Server, Fault> {
    let options = options(question.server, question.password, question.certificates);
    let mut connection = options.connect().await.map_err(Fault::Login)?;
    let began = Instant::now();
    let about = "the server";
    let (at, version, encrypted, read_only): (f64, i32, bool, bool) = sqlx::query_as(
        "select extract(epoch from clock_timestamp())::float8, current_setting('server_version_num')::int4, \
         coalesce((select ssl from pg_stat_ssl where pid = pg_backend_pid()), false), \
         pg_is_in_recovery() or current_setting('default_transaction_read_only')::bool",
    )
    .fetch_one(&mut connection)
    .await
    .map_err(|source| Fault::Ask(about, source))?;
    let latency = began.elapsed();
    // Middle of the round trip: good to half of it.
    let ours = clock::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
        - latency.as_secs_f64() / 2.0;
    let (may_create_schema, may_create_table) =
        rights(&mut connection).await.map_err(|source| Fault::Ask("the role's rights", source))?;
    let connections =
        connections(&mut connection).await.map_err(|source| Fault::Ask("connections", source))?;
    let extension = extension(&mut connection, question.extension)
        .await
        .map_err(|source| Fault::Ask("extensions", source))?;
    let plugin = match question.plugin_database {
        None => None,
        Some(name) => Some(
            plugin_database(&mut connection, &options, name)
                .await
                .map_err(|source| Fault::Ask("the plugin database", source))?,
        ),
    };
    let _ = connection.close().await;
    Ok(Server {
        version: version.unsigned_abs(),
        encrypted,
        read_only,
        may_create_schema,
        may_create_table,
        extension,
        plugin,
        connections,
        skew: at - ours,
        latency,
    })
}

async fn rights(connection: &mut PgConnection) -> Result<(bool, bool), sqlx::Error> {
    sqlx::query_as(
        "select case when to_regnamespace('dify_fleet') is null \
         then has_database_privilege(current_database(), 'create') \
         else has_schema_privilege('dify_fleet', 'create') end, \
         coalesce(has_schema_privilege(current_schema(), 'create'), false)",
    )
    .fetch_one(connection)
    .await
}

async fn connections(connection: &mut PgConnection) -> Result<Connections, sqlx::Error> {
    // Rows of other roles are visible in part; role and database always are.
    let (max, reserved, ours, others): (i32, i32, i64, i64) = sqlx::query_as(
        "select least(current_setting('max_connections')::int4, \
         (select nullif(rolconnlimit, -1) from pg_roles where rolname = current_user), \
         (select nullif(datconnlimit, -1) from pg_database where datname = current_database())), \
         current_setting('superuser_reserved_connections')::int4 \
         + coalesce(current_setting('reserved_connections', true)::int4, 0), \
         count(*) filter (where usename = current_user), \
         count(*) filter (where usename is distinct from current_user and datid is not null) \
         from pg_stat_activity",
    )
    .fetch_one(connection)
    .await?;
    let small = |count: i64| u32::try_from(count).unwrap_or(0);
    Ok(Connections {
        max: small(max.into()),
        reserved: small(reserved.into()),
        ours: small(ours),
        others: small(others),
    })
}

async fn extension(
    connection: &mut PgConnection,
    name: &'static str,
) -> Result<Extension, sqlx::Error> {
    let there: Option<(Option<String>,)> = sqlx::query_as(
        "select installed_version::text from pg_available_extensions where name = $1",
    )
    .bind(name)
    .fetch_optional(&mut *connection)
    .await?;
    match there {
        None => return Ok(Extension::Unavailable),
        Some((Some(version),)) => return Ok(Extension::Present(version)),
        Some((None,)) => {}
    }
    let create = format!("create extension if not exists {}", quoted(name));
    match sqlx::raw_sql(AssertSqlSafe(create)).execute(connection).await {
        Ok(_) => Ok(Extension::Created),
        // Two nodes at once: the other one has created it.
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(Extension::Created),
        Err(sqlx::Error::Database(error)) => Ok(Extension::Refused(error.message().to_owned())),
        Err(error) => Err(error),
    }
}

async fn plugin_database(
    connection: &mut PgConnection,
    options: &PgConnectOptions,
    name: &str,
) -> Result<PluginDatabase, sqlx::Error> {
    let exists: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(name)
            .fetch_one(&mut *connection)
            .await?;
    if !exists {
        let create = format!("create database {}", quoted(name));
        match sqlx::raw_sql(AssertSqlSafe(create)).execute(connection).await {
            Ok(_) => return Ok(PluginDatabase::Created),
            // Two nodes at once: 42P04 duplicate_database, or 23505 in the catalogue.
            Err(sqlx::Error::Database(error))
                if matches!(error.code().as_deref(), Some("42P04" | "23505")) => {}
            Err(sqlx::Error::Database(error)) => {
                return Ok(PluginDatabase::Refused(error.message().to_owned()));
            }
            Err(error) => return Err(error),
        }
    }
    let mut there = match options.clone().database(name).connect().await {
        Ok(there) => there,
        Err(sqlx::Error::Database(error)) => {
            return Ok(PluginDatabase::Refused(error.message().to_owned()));
        }
        Err(error) => return Err(error),
    };
    let usable: bool = sqlx::query_scalar(
        "select coalesce(has_schema_privilege(current_schema(), 'create'), false)",
    )
    .fetch_one(&mut there)
    .await?;
    let _ = there.close().await;
    Ok(if usable { PluginDatabase::Present } else { PluginDatabase::NotOurs })
}

/// An identifier in SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
