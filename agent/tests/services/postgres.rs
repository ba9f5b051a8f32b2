//! A throw-away PostgreSQL server: its own data folder, port and role.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dify_agent::backends::postgres::options;
use dify_agent::config::settings::{Postgres, PostgresTls};
use dify_common::secret::Secret;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _};
use tempfile::TempDir;

use crate::certificates::Authority;
use crate::{free_port, wait_for};

/// Password of both roles.
pub(crate) const PASSWORD: &str = "p@ss/word of a test";

/// The server; stopped and removed when dropped.
pub(crate) struct Server {
    child: Child,
    folder: TempDir,
    port: u16,
}

/// The user PostgreSQL may run as: it refuses root.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("Linux has it");
    let line = passwd
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .expect("the PostgreSQL package makes user postgres");
    let mut ids = line.split(':').skip(2).map(|id| id.parse().expect("a number"));
    Some((ids.next().expect("uid"), ids.next().expect("gid")))
}

fn program(name: &str) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("package postgresql is installed");
    let newest = versions
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .max()
        .expect("package postgresql is installed");
    let mut command = Command::new(format!("/usr/lib/postgresql/{newest}/bin/{name}"));
    command.current_dir("/").stdin(Stdio::null());
    if let Some((uid, gid)) = unprivileged() {
        command.uid(uid).gid(gid);
    }
    command
}

fn owned(path: &Path, content: &str) -> PathBuf {
    fs::write(path, content).expect("writes");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
    if let Some((uid, gid)) = unprivileged() {
        chown(path, Some(uid), Some(gid)).expect("root may");
    }
    path.to_owned()
}

impl Server {
    /// Plain, with role `dify` that owns database `dify`.
    pub(crate) async fn start() -> Self {
        Self::start_with(None, &[]).await
    }

    /// With TLS and settings of its own.
    pub(crate) async fn start_with(tls: Option<&Authority>, settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        if let Some((uid, gid)) = unprivileged() {
            chown(folder.path(), Some(uid), Some(gid)).expect("root may");
        }
        let data = folder.path().join("data");
        let password = owned(&folder.path().join("password"), PASSWORD);
        let made = program("initdb")
            .args([
                "--no-sync",
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let mut command = program("postgres");
        command.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &port.to_string()]).args([
            "-c",
            "fsync=off",
            "-c",
            "unix_socket_directories=",
        ]);
        if let Some(authority) = tls {
            let certificate = owned(&folder.path().join("server.crt"), &authority.certificate);
            let key = owned(&folder.path().join("server.key"), &authority.key);
            command.args(["-c", "ssl=on"]);
            command.arg("-c").arg(format!("ssl_cert_file={}", certificate.display()));
            command.arg("-c").arg(format!("ssl_key_file={}", key.display()));
        }
        for setting in settings {
            command.args(["-c", setting]);
        }
        let child =
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("postgres runs");
        let server = Self { child, folder, port };
        let administrator = server.administrator();
        let mut connection =
            wait_for("PostgreSQL", async || administrator.connect().await.ok()).await;
        run(&mut connection, &format!("create role dify login password '{PASSWORD}'")).await;
        run(&mut connection, "create database dify owner dify").await;
        server
    }

    /// Where it listens on loopback.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// As the configuration would say it.
    pub(crate) fn settings(&self, tls: PostgresTls) -> Postgres {
        Postgres {
            host: "127.0.0.1".to_owned(),
            port: self.port,
            database: "dify".to_owned(),
            user: "dify".to_owned(),
            tls,
        }
    }

    /// Options of the role Dify uses.
    pub(crate) fn options(&self) -> PgConnectOptions {
        options(&self.settings(PostgresTls::Disable), Some(&Secret::from(PASSWORD)), None)
    }

    /// Options of the superuser.
    pub(crate) fn administrator(&self) -> PgConnectOptions {
        self.options().username("postgres").database("postgres")
    }

    /// A connection of the role Dify uses.
    pub(crate) async fn connect(&self) -> PgConnection {
        self.options().connect().await.expect("connects")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.folder.path().join("data");
        let _ = program("pg_ctl").args(["stop", "-m", "immediate", "-D"]).arg(data).output();
        let _ = self.child.wait();
    }
}

/// Runs statements that must succeed.
pub(crate) async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}
