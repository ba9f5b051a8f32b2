//! Redis: where it is, how its certificate is checked, and a connection.
//!
//! The TLS stream is ours rather than the redis crate's because the cases that
//! matter (chain without name, nothing at all, an empty set of system roots)
//! are those in which the real clients differ from each other.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::env::Env;
use crate::failure::Failure;
use crate::tasks;
use crate::tls::Check;

/// One Redis database as one client of the real program sees it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Host name or address.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u16,
    /// ACL user.
    pub(crate) username: Option<String>,
    /// AUTH string, decoded.
    pub(crate) password: Option<String>,
    /// Database number.
    pub(crate) db: i64,
    /// TLS, and how the server is checked.
    pub(crate) tls: Option<Check>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{} tls={:?}", self.host, self.port, self.db, self.tls)
    }
}

/// Any byte stream.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// REDIS_SOCKET_TIMEOUT and REDIS_SOCKET_CONNECT_TIMEOUT of Dify, both 5 s.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Target {
    /// The main client: REDIS_* with REDIS_SSL_*.
    pub(crate) fn main(env: &Env) -> Self {
        Self {
            host: env.or("REDIS_HOST", "localhost").to_owned(),
            port: env.number("REDIS_PORT", 6379),
            username: env.get("REDIS_USERNAME").map(str::to_owned),
            password: env.get("REDIS_PASSWORD").map(str::to_owned),
            db: env.number("REDIS_DB", 0),
            tls: env.flag("REDIS_USE_SSL", false).then(|| Self::ssl_options(env)),
        }
    }

    /// What REDIS_SSL_CERT_REQS and REDIS_SSL_CA_CERTS mean to the Python clients:
    /// anything but CERT_NONE checks chain **and** name, and no variable turns the name off.
    pub(crate) fn ssl_options(env: &Env) -> Check {
        match env.or("REDIS_SSL_CERT_REQS", "CERT_NONE") {
            "CERT_REQUIRED" | "CERT_OPTIONAL" => {
                Check { ca: env.get("REDIS_SSL_CA_CERTS").map(PathBuf::from), ..Check::SYSTEM }
            }
            _ => Check::NONE,
        }
    }

    /// A connection for commands that answer at once.
    pub(crate) async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        self.open(Some(TIMEOUT)).await
    }

    /// A connection for BRPOP and XREAD BLOCK.
    pub(crate) async fn connect_blocking(&self) -> Result<MultiplexedConnection, Failure> {
        self.open(None).await
    }

    /// A subscription.
    pub(crate) async fn subscribe(&self, channel: &str) -> Result<PubSub, Failure> {
        let stream = self.stream().await?;
        let subscribing = async {
            let mut subscription = PubSub::new(&self.info(), stream).await?;
            subscription.subscribe(channel).await?;
            Ok::<_, redis::RedisError>(subscription)
        };
        Ok(tokio::time::timeout(TIMEOUT, subscribing).await.map_err(|_| self.timeout())??)
    }

    fn info(&self) -> RedisConnectionInfo {
        let mut info =
            RedisConnectionInfo::default().set_db(self.db).set_protocol(ProtocolVersion::RESP3);
        if let Some(username) = &self.username {
            info = info.set_username(username);
        }
        if let Some(password) = &self.password {
            info = info.set_password(password);
        }
        info
    }

    async fn open(&self, response: Option<Duration>) -> Result<MultiplexedConnection, Failure> {
        let stream = self.stream().await?;
        let config = AsyncConnectionConfig::new().set_response_timeout(response);
        let info = self.info();
        let opening = MultiplexedConnection::new_with_config(&info, stream, config);
        let (connection, driver) =
            tokio::time::timeout(TIMEOUT, opening).await.map_err(|_| self.timeout())??;
        tasks::spawn(driver);
        Ok(connection)
    }

    async fn stream(&self) -> Result<Box<dyn Stream>, Failure> {
        let connecting = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
            tcp.set_nodelay(true)?;
            let Some(check) = &self.tls else {
                return Ok(Box::new(tcp) as Box<dyn Stream>);
            };
            let name =
                ServerName::try_from(self.host.clone()).map_err(|e| Failure::new(e.to_string()))?;
            let connector = tokio_rustls::TlsConnector::from(Arc::new(check.client()?));
            Ok::<_, Failure>(Box::new(connector.connect(name, tcp).await?) as Box<dyn Stream>)
        };
        let opened = tokio::time::timeout(TIMEOUT, connecting).await.map_err(|_| self.timeout())?;
        opened.map_err(|e| {
            e.while_doing(&format!(
                "redis.exceptions.ConnectionError: Error connecting to {}:{}",
                self.host, self.port
            ))
        })
    }

    fn timeout(&self) -> Failure {
        Failure::new(format!(
            "redis.exceptions.TimeoutError: Timeout connecting to {}:{}",
            self.host, self.port
        ))
    }
}

/// A URL as redis-py and kombu read it: target without TLS options, and the query.
pub(crate) fn parse_url(url: &str) -> Result<(Target, Vec<(String, String)>), Failure> {
    let bad = |what: &str| Failure::new(format!("ValueError: Redis URL {what}"));
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("has no scheme"))?;
    let tls = match scheme {
        "redis" => None,
        "rediss" => Some(Check::SYSTEM),
        _ => return Err(bad("must specify one of the schemes redis://, rediss://")),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    // As urllib: the last @ ends the user part, the first : in it the user name.
    let (userinfo, hostport) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (username, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let (host, port) = match hostport.rsplit_once(':') {
        Some((host, port)) => (
            host,
            port.parse()
                .map_err(|_| bad("has a port that is no number (is the password quoted?)"))?,
        ),
        None => (hostport, 6379),
    };
    let decode =
        |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let some = |text: &str| (!text.is_empty()).then(|| decode(text));
    let db = if path.is_empty() {
        0
    } else {
        path.parse().map_err(|_| bad("has a database that is no number"))?
    };
    let target = Target {
        host: if host.is_empty() {
            "localhost".to_owned()
        } else {
            host.trim_matches(['[', ']']).to_owned()
        },
        port,
        username: some(username),
        password: some(password),
        db,
        tls,
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    Ok((
        target,
        pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(k, v)| (decode(k), decode(v)))
            .collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_parts_are_decoded() {
        let (target, query) =
            parse_url("rediss://:a%2Fb%40@10.0.0.3:6378/1?ssl_ca_certs=%2Fca.pem").unwrap();
        assert_eq!((target.host.as_str(), target.port, target.db), ("10.0.0.3", 6378, 1));
        assert_eq!(target.password.as_deref(), Some("a/b@"));
        assert_eq!(target.tls, Some(Check::SYSTEM));
        assert_eq!(query, [("ssl_ca_certs".to_owned(), "/ca.pem".to_owned())]);
    }

    #[test]
    fn an_unquoted_slash_in_the_password_breaks_the_url() {
        assert!(parse_url("redis://:a/b@host:6379/1").is_err());
    }

    #[test]
    fn cert_required_checks_the_name_and_nothing_turns_it_off() {
        let env = Env::with(&[
            ("REDIS_USE_SSL", "true"),
            ("REDIS_SSL_CERT_REQS", "CERT_REQUIRED"),
            ("REDIS_SSL_CA_CERTS", "/ca.pem"),
        ]);
        let tls = Target::main(&env).tls.unwrap();
        assert!(tls.chain && tls.hostname);
        assert_eq!(tls.ca, Some("/ca.pem".into()));
        assert_eq!(Target::main(&Env::with(&[("REDIS_USE_SSL", "true")])).tls, Some(Check::NONE));
    }
}
