//! PostgreSQL as psycopg2 (libpq) connects to it.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};

use crate::env::Env;
use crate::failure::Failure;

/// One database.
#[derive(Clone)]
pub(crate) struct Target {
    host: String,
    port: u16,
    user: String,
    password: String,
    database: String,
    /// `sslmode`, `sslrootcert`, `options`, as libpq names them.
    parameters: Vec<(String, String)>,
    timezone: Option<String>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

impl Target {
    /// The main database: DB_* with DB_EXTRAS as a query string, then libpq's own variables.
    pub(crate) fn main(env: &Env) -> Self {
        let mut parameters = query_string(env.or("DB_EXTRAS", ""));
        libpq_defaults(env, &mut parameters);
        Self {
            host: env.or("DB_HOST", "localhost").to_owned(),
            port: env.number("DB_PORT", 5432),
            user: env.or("DB_USERNAME", "postgres").to_owned(),
            password: env.or("DB_PASSWORD", "").to_owned(),
            database: env.or("DB_DATABASE", "dify").to_owned(),
            parameters,
            timezone: Some(env.or("DB_SESSION_TIMEZONE_OVERRIDE", "UTC").to_owned()),
        }
    }

    /// The vector database: PGVECTOR_* and nothing but libpq's variables for TLS.
    pub(crate) fn vector(env: &Env) -> Self {
        let mut parameters = Vec::new();
        libpq_defaults(env, &mut parameters);
        Self {
            host: env.or("PGVECTOR_HOST", "").to_owned(),
            port: env.number("PGVECTOR_PORT", 5433),
            user: env.or("PGVECTOR_USER", "postgres").to_owned(),
            password: env.or("PGVECTOR_PASSWORD", "").to_owned(),
            database: env.or("PGVECTOR_DATABASE", "").to_owned(),
            parameters,
            timezone: None,
        }
    }

    /// Any database with these libpq parameters (the plugin daemon's).
    pub(crate) fn plain(
        host: &str,
        port: u16,
        user: &str,
        password: &str,
        database: &str,
        parameters: Vec<(String, String)>,
    ) -> Self {
        let [host, user, password, database] = [host, user, password, database].map(str::to_owned);
        Self { host, port, user, password, database, parameters, timezone: None }
    }

    /// The same server, another database.
    pub(crate) fn with_database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Result<PgConnection, Failure> {
        let options = self.options()?;
        match tokio::time::timeout(Duration::from_secs(10), options.connect()).await {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(Failure::new("(psycopg2.OperationalError) connection timed out")),
        }
    }

    fn options(&self) -> Result<PgConnectOptions, Failure> {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .username(&self.user)
            .password(&self.password)
            .database(&self.database)
            .ssl_mode(PgSslMode::Prefer);
        if let Some(zone) = self.timezone.as_deref().filter(|zone| !zone.is_empty()) {
            options = options.options([("timezone", zone)]);
        }
        let value_of = |name: &str| {
            self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
        };
        let root = value_of("sslrootcert");
        for (name, value) in &self.parameters {
            match (name.as_str(), value.as_str()) {
                ("sslmode", mode) => options = options.ssl_mode(ssl_mode(mode, root)?),
                ("sslrootcert", path) if Path::new(path).exists() => {
                    options = options.ssl_root_cert(path);
                }
                ("sslrootcert", path) => {
                    if matches!(value_of("sslmode"), Some("verify-ca" | "verify-full")) {
                        return Err(Failure::new(format!(
                            "(psycopg2.OperationalError) root certificate file \"{path}\" does not exist"
                        )));
                    }
                }
                (
                    "options"
                    | "application_name"
                    | "connect_timeout"
                    | "keepalives"
                    | "target_session_attrs"
                    | "sslcert"
                    | "sslkey",
                    _,
                ) => {}
                (other, _) => {
                    return Err(Failure::new(format!(
                        "(psycopg2.ProgrammingError) invalid dsn: invalid connection option \"{other}\""
                    )));
                }
            }
        }
        Ok(options)
    }
}

/// libpq: `require` with a root certificate file behaves as `verify-ca`.
fn ssl_mode(mode: &str, root: Option<&str>) -> Result<PgSslMode, Failure> {
    Ok(match mode {
        "disable" => PgSslMode::Disable,
        "allow" => PgSslMode::Allow,
        "prefer" => PgSslMode::Prefer,
        "require" if root.is_some_and(|path| Path::new(path).exists()) => PgSslMode::VerifyCa,
        "require" => PgSslMode::Require,
        "verify-ca" => PgSslMode::VerifyCa,
        "verify-full" => PgSslMode::VerifyFull,
        other => {
            return Err(Failure::new(format!(
                "(psycopg2.OperationalError) invalid sslmode value: \"{other}\""
            )));
        }
    })
}

fn libpq_defaults(env: &Env, parameters: &mut Vec<(String, String)>) {
    for (variable, name) in [("PGSSLMODE", "sslmode"), ("PGSSLROOTCERT", "sslrootcert")] {
        if let Some(value) = env.get(variable)
            && !parameters.iter().any(|(key, _)| key == name)
        {
            parameters.push((name.to_owned(), value.to_owned()));
        }
    }
}

fn query_string(text: &str) -> Vec<(String, String)> {
    let decode =
        |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = text.trim_start_matches('?').split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extras_win_over_libpq_variables_and_reach_the_main_database_only() {
        let env = Env::with(&[
            ("DB_EXTRAS", "sslmode=require"),
            ("PGSSLMODE", "verify-ca"),
            ("PGSSLROOTCERT", "/ca.pem"),
        ]);
        let main = Target::main(&env).parameters;
        assert_eq!(
            main,
            [
                ("sslmode".to_owned(), "require".to_owned()),
                ("sslrootcert".to_owned(), "/ca.pem".to_owned())
            ]
        );
        assert_eq!(
            Target::vector(&env).parameters[0],
            ("sslmode".to_owned(), "verify-ca".to_owned())
        );
    }

    #[test]
    fn an_unknown_parameter_is_an_invalid_dsn() {
        let env = Env::with(&[("DB_EXTRAS", "ssl=true")]);
        assert!(
            Target::main(&env)
                .options()
                .unwrap_err()
                .to_string()
                .contains("invalid connection option")
        );
        let env = Env::with(&[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", "/no/such/ca.pem")]);
        assert!(Target::vector(&env).options().unwrap_err().to_string().contains("does not exist"));
    }
}
