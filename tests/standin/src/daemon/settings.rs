//! The daemon's configuration (`internal/types/app/config.go`): other names and
//! other rules than the api's for the same things.

use std::path::{Path, PathBuf};

use crate::cache::Target as Redis;
use crate::env::Env;
use crate::failure::Failure;
use crate::postgres::Target as Postgres;
use crate::tls::Check;

/// Validated settings.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) database: Postgres,
    pub(super) database_name: String,
    pub(super) default_database: String,
    pub(super) redis: Redis,
    pub(super) prefix: String,
    pub(super) port: u16,
    pub(super) installed_path: String,
}

impl Settings {
    /// Refuses what the daemon refuses.
    pub(super) fn read(env: &Env) -> Result<Self, Failure> {
        let invalid = |what: &str| Failure::new(format!("[PANIC] Invalid configuration: {what}"));
        for name in [
            "DB_USERNAME",
            "DB_PASSWORD",
            "DB_HOST",
            "SERVER_KEY",
            "DIFY_INNER_API_URL",
            "DIFY_INNER_API_KEY",
            "PLUGIN_WORKING_PATH",
        ] {
            // The working path has a default in the image's own environment.
            if name != "PLUGIN_WORKING_PATH" && env.get(name).is_none() {
                return Err(invalid(&format!(
                    "Key: 'Config.{name}' Error:Field validation for '{name}' failed on the 'required' tag"
                )));
            }
        }
        let mode = env.or("DB_SSL_MODE", "disable");
        if !matches!(mode, "disable" | "require") {
            return Err(invalid(
                "Key: 'Config.DBSslMode' Error:Field validation for 'DBSslMode' failed on the 'oneof' tag (disable require)",
            ));
        }
        let name = env.or("DB_DATABASE", "dify_plugin").to_owned();
        Ok(Self {
            database: database(env, mode, &name)?,
            database_name: name,
            default_database: env.or("DB_DEFAULT_DATABASE", "postgres").to_owned(),
            redis: Redis { tls: redis_tls(env)?, ..Redis::main(env) },
            prefix: env
                .get("REDIS_KEY_PREFIX")
                .map_or_else(String::new, |prefix| format!("{prefix}:")),
            port: env.number("SERVER_PORT", 5002),
            installed_path: env.or("PLUGIN_INSTALLED_PATH", "plugin").to_owned(),
        })
    }
}

/// The DSN is written without quoting and read back by the rules of libpq, so a
/// space, quote or backslash in the password makes another DSN of it.
fn database(env: &Env, mode: &str, name: &str) -> Result<Postgres, Failure> {
    let dsn = format!(
        "host={} port={} user={} password={} dbname={name} sslmode={mode}",
        env.or("DB_HOST", "localhost"),
        env.or("DB_PORT", "5432"),
        env.or("DB_USERNAME", "postgres"),
        env.or("DB_PASSWORD", ""),
    );
    let pairs = parse_dsn(&dsn)?;
    if let Some(extras) = env.get("DB_EXTRAS") {
        // options='...': switches of the server process, not parameters of a URL.
        if !extras.trim_start().starts_with('-') {
            return Err(Failure::new(format!(
                "failed to connect: FATAL: invalid command-line argument for server process: {extras} (SQLSTATE 42601)"
            )));
        }
    }
    let value = |wanted: &str| {
        pairs.iter().rev().find(|(key, _)| key == wanted).map_or("", |(_, value)| value.as_str())
    };
    let port = value("port").parse().map_err(|_| Failure::new("cannot parse dsn: invalid port"))?;
    let parameters = vec![("sslmode".to_owned(), value("sslmode").to_owned())];
    Ok(Postgres::plain(
        value("host"),
        port,
        value("user"),
        value("password"),
        value("dbname"),
        parameters,
    ))
}

/// Keyword/value connection string: `'quoted'`, backslash escapes, spaces between.
fn parse_dsn(dsn: &str) -> Result<Vec<(String, String)>, Failure> {
    let broken = || {
        Failure::new("cannot parse dsn: failed to parse as keyword/value (invalid keyword/value)")
    };
    let mut pairs = Vec::new();
    let mut rest = dsn.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(broken)?;
        if key.contains(' ') {
            return Err(broken());
        }
        let mut value = String::new();
        let (quoted, body) = after.strip_prefix('\'').map_or((false, after), |body| (true, body));
        let mut end = None;
        let mut letters = body.char_indices();
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' => value.push(letters.next().ok_or_else(broken)?.1),
                '\'' if quoted => {
                    end = Some(at + 1);
                    break;
                }
                ' ' if !quoted => {
                    end = Some(at);
                    break;
                }
                plain => value.push(plain),
            }
        }
        if quoted && end.is_none() {
            return Err(broken());
        }
        rest = body[end.unwrap_or(body.len())..].trim_start();
        pairs.push((key.to_owned(), value));
    }
    Ok(pairs)
}

/// CERT_NONE trusts all, CERT_REQUIRED wants a CA file, anything else means the system's roots.
fn redis_tls(env: &Env) -> Result<Option<Check>, Failure> {
    if !env.flag("REDIS_USE_SSL", false) {
        return Ok(None);
    }
    let file = env.get("REDIS_SSL_CA_CERTS").map(PathBuf::from);
    Ok(Some(match (env.or("REDIS_SSL_CERT_REQS", ""), file) {
        ("CERT_NONE", _) => Check::NONE,
        ("CERT_REQUIRED", None) => {
            return Err(Failure::new(
                "[PANIC] REDIS_SSL_CA_CERTS is required when REDIS_SSL_CERT_REQS is CERT_REQUIRED",
            ));
        }
        ("CERT_REQUIRED", Some(path)) if !Path::new(&path).is_file() => {
            return Err(Failure::new(format!(
                "[PANIC] failed to read CA file: open {}: no such file or directory",
                path.display()
            )));
        }
        (_, ca) => Check { ca, ..Check::SYSTEM },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: [(&str, &str); 6] = [
        ("DB_USERNAME", "u"),
        ("DB_PASSWORD", "p"),
        ("DB_HOST", "h"),
        ("SERVER_KEY", "k"),
        ("DIFY_INNER_API_URL", "http://api:5001"),
        ("DIFY_INNER_API_KEY", "i"),
    ];

    fn read(extra: &[(&str, &str)]) -> Result<Settings, String> {
        let pairs: Vec<_> = BASE.iter().chain(extra).copied().collect();
        Settings::read(&Env::with(&pairs)).map_err(|failure| failure.to_string())
    }

    #[test]
    fn only_two_ssl_modes_pass() {
        assert!(read(&[("DB_SSL_MODE", "require")]).is_ok());
        assert!(read(&[("DB_SSL_MODE", "verify-full")]).unwrap_err().contains("oneof"));
    }

    #[test]
    fn a_space_in_the_password_breaks_the_dsn() {
        assert!(read(&[("DB_PASSWORD", "a b")]).unwrap_err().contains("keyword/value"));
        assert!(read(&[("DB_PASSWORD", "'ab")]).unwrap_err().contains("keyword/value"));
        assert!(read(&[("DB_PASSWORD", "a/b@c:d&e")]).is_ok());
    }

    #[test]
    fn a_backslash_in_the_password_is_eaten() {
        let pairs = parse_dsn("password=a\\b dbname=d").unwrap();
        assert_eq!(
            pairs,
            [("password".to_owned(), "ab".to_owned()), ("dbname".to_owned(), "d".to_owned())]
        );
    }

    #[test]
    fn extras_of_the_api_break_the_daemon() {
        assert!(
            read(&[("DB_EXTRAS", "sslmode=require")])
                .unwrap_err()
                .contains("command-line argument")
        );
    }

    #[test]
    fn cert_required_without_a_file_is_refused() {
        let tls = [("REDIS_USE_SSL", "true"), ("REDIS_SSL_CERT_REQS", "CERT_REQUIRED")];
        assert!(read(&tls).unwrap_err().contains("REDIS_SSL_CA_CERTS"));
        assert_eq!(read(&tls[..1]).unwrap().redis.tls, Some(Check::SYSTEM));
    }
}
