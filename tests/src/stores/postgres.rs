//! PostgreSQL servers, and databases on them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tokio::process::Command;

use crate::cert::Identity;
use crate::child::{self, Child, Launch};
use crate::wait::wait_for;
use crate::{Doing as _, Outcome};

/// User that runs the servers where we are root (they refuse to run as root).
const SYSTEM_USER: &str = "postgres";
/// Room for every fleet of a run. Cloud SQL sets it from the machine's memory.
const MAX_CONNECTIONS: u32 = 600;
/// Superuser of the cluster.
const SUPERUSER: &str = "postgres";

/// Where a server is and how its owner gets in. Goes to other processes as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Postgres {
    /// Port on 127.0.0.1; always with TLS.
    pub port: u16,
    /// Password of the superuser `postgres`; not one of a fleet's secrets.
    pub password: String,
    /// The server's CA, PEM.
    pub ca: String,
}

/// What a fleet's role may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Owns its database and may create others (as Cloud SQL's first user).
    Creator,
    /// As above, and may create extensions that are not marked trusted, as
    /// Cloud SQL lets its users with `vector`.
    Extensions,
    /// May only use what there is.
    Plain,
}

/// A running server.
#[derive(Debug)]
pub struct PostgresServer {
    child: Child,
    /// Plain TCP port when the server itself speaks no TLS, else the TLS one.
    pub port: u16,
    /// Password of the superuser.
    pub password: String,
}

impl PostgresServer {
    /// Makes a new cluster under `dir` with the programs in `bin` and starts
    /// it. With `tls` it takes nothing but TLS; without, plain TCP only.
    pub async fn start(bin: &Path, dir: &Path, tls: Option<&Identity>) -> Outcome<Self> {
        std::fs::create_dir_all(dir).doing(|| format!("create {}", dir.display()))?;
        let password = crate::secrets::random(24);
        let password_file = dir.join("password");
        write(&password_file, &password)?;
        if let Some(identity) = tls {
            write(&dir.join("server.crt"), &identity.certificate)?;
            write(&dir.join("server.key"), &identity.key)?;
            child::run(Command::new("chmod").arg("600").arg(dir.join("server.key"))).await?;
        }
        if child::is_root() {
            child::run(Command::new("chown").args(["-R", SYSTEM_USER]).arg(dir)).await?;
        }
        let data = dir.join("data");
        let launch = |program: &str| -> (PathBuf, &'static str) { (bin.join(program), "QUIT") };
        let (initdb, signal) = launch("initdb");
        let mut init =
            Launch { program: &initdb, user: Some(SYSTEM_USER), at_our_death: signal }.command();
        init.current_dir("/")
            .args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg(format!("--username={SUPERUSER}"))
            .arg(format!("--pwfile={}", password_file.display()))
            .arg("-D")
            .arg(&data);
        child::run(&mut init).await?;
        let kind = if tls.is_some() { "hostssl" } else { "host" };
        write(&data.join("pg_hba.conf"), &format!("{kind} all all 127.0.0.1/32 scram-sha-256\n"))?;

        let port = child::free_port()?;
        let (postgres, signal) = launch("postgres");
        let mut start =
            Launch { program: &postgres, user: Some(SYSTEM_USER), at_our_death: signal }.command();
        start.current_dir("/").arg("-D").arg(&data);
        let mut settings = vec![
            format!("port={port}"),
            "listen_addresses=127.0.0.1".into(),
            "unix_socket_directories=".into(),
            format!("max_connections={MAX_CONNECTIONS}"),
            "shared_buffers=64MB".into(),
            // Nothing here outlives the machine.
            "fsync=off".into(),
            "synchronous_commit=off".into(),
            "full_page_writes=off".into(),
        ];
        if tls.is_some() {
            settings.push("ssl=on".into());
            settings.push(format!("ssl_cert_file={}", dir.join("server.crt").display()));
            settings.push(format!("ssl_key_file={}", dir.join("server.key").display()));
        }
        for setting in settings {
            start.arg("-c").arg(setting);
        }
        let child = Child::start("postgres", start, dir.join("log"))?;
        Ok(Self { child, port, password })
    }

    /// Waits until `entrance`, a way to this server, lets the superuser in.
    pub async fn ready(&mut self, entrance: &Postgres) -> Outcome {
        let child = &mut self.child;
        wait_for("PostgreSQL", Duration::from_millis(50), Duration::from_secs(30), async || {
            child.check()?;
            entrance.admin("postgres").await.map_err(|error| format!("{error:?}")).map(drop)
        })
        .await
    }

    /// Stops it at once, as a crash would; nothing on disk is needed again.
    pub async fn stop(self) -> Outcome {
        self.child.stop("QUIT", Duration::from_secs(10)).await.map(drop)
    }
}

impl Postgres {
    /// A superuser's connection to `database`, past every link.
    pub async fn admin(&self, database: &str) -> Outcome<PgConnection> {
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(SUPERUSER)
            .password(&self.password)
            .database(database)
            .ssl_mode(PgSslMode::VerifyCa)
            .ssl_root_cert_from_pem(self.ca.clone().into_bytes());
        let connecting =
            tokio::time::timeout(Duration::from_secs(10), PgConnection::connect_with(&options));
        connecting
            .await
            .map_err(Into::into)
            .and_then(|connected| {
                connected.map_err(Box::<dyn std::error::Error + Send + Sync>::from)
            })
            .doing(|| format!("connect to PostgreSQL on port {}", self.port))
    }

    /// Carries out statements on `database`; none of them may hold outside text.
    pub async fn execute(&self, database: &str, statements: &str) -> Outcome {
        let mut connection = self.admin(database).await?;
        connection
            .execute(AssertSqlSafe(statements.to_owned()))
            .await
            .doing(|| format!("execute in {database}"))?;
        connection.close().await.doing(|| "close the connection".into())
    }

    /// Makes a login role and databases it owns. Names and password are ours:
    /// letters, digits and `_`.
    pub async fn create(
        &self,
        role: &str,
        password: &str,
        rights: Rights,
        databases: &[&str],
    ) -> Outcome {
        let rights = match rights {
            Rights::Creator => "CREATEDB",
            Rights::Extensions => "CREATEDB SUPERUSER",
            Rights::Plain => "NOCREATEDB",
        };
        self.execute(
            "postgres",
            &format!("CREATE ROLE {role} LOGIN {rights} PASSWORD '{password}'"),
        )
        .await?;
        for database in databases {
            self.execute("postgres", &format!("CREATE DATABASE {database} OWNER {role}")).await?;
        }
        Ok(())
    }

    /// Removes what [`create`](Self::create) made, connections included, and
    /// whatever else the role has come to own.
    pub async fn remove(&self, role: &str) -> Outcome {
        let mut connection = self.admin("postgres").await?;
        let owned: Vec<String> = sqlx::query_scalar(
            "SELECT datname FROM pg_database JOIN pg_roles r ON datdba = r.oid WHERE rolname = $1",
        )
        .bind(role)
        .fetch_all(&mut connection)
        .await
        .doing(|| format!("list the databases of {role}"))?;
        connection.close().await.doing(|| "close the connection".into())?;
        for database in owned {
            self.execute(
                "postgres",
                &format!("DROP DATABASE IF EXISTS \"{database}\" WITH (FORCE)"),
            )
            .await?;
        }
        self.execute("postgres", &format!("DROP ROLE IF EXISTS {role}")).await
    }

    /// Ends every connection to `database`, as a failover does.
    pub async fn disconnect_all(&self, database: &str) -> Outcome<i64> {
        let mut connection = self.admin("postgres").await?;
        sqlx::query_scalar(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1",
        )
        .bind(database)
        .fetch_one(&mut connection)
        .await
        .doing(|| format!("end connections to {database}"))
    }

    /// One number out of `database`; the query is ours.
    pub async fn number(&self, database: &str, query: &str) -> Outcome<i64> {
        let mut connection = self.admin(database).await?;
        sqlx::query_scalar(AssertSqlSafe(query.to_owned()))
            .fetch_one(&mut connection)
            .await
            .doing(|| format!("query {database}: {query}"))
    }

    /// One text out of `database`; the query is ours.
    pub async fn text(&self, database: &str, query: &str) -> Outcome<Option<String>> {
        let mut connection = self.admin(database).await?;
        sqlx::query_scalar(AssertSqlSafe(query.to_owned()))
            .fetch_optional(&mut connection)
            .await
            .doing(|| format!("query {database}: {query}"))
    }
}

fn write(path: &Path, text: &str) -> Outcome {
    std::fs::write(path, text).doing(|| format!("write {}", path.display()))
}
