//! The event bus between worker and api: Redis pub/sub or streams.
//!
//! The trap of Dify 1.15.0 is here on purpose: with EVENT_BUS_REDIS_URL unset and
//! Redis over TLS, the URL is composed from REDIS_* but none of REDIS_SSL_* is
//! applied, so this one client checks name and chain against the system's roots,
//! fails against a private CA, and streaming runs never produce an event.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::cmd;

use crate::cache::{self, Target};
use crate::env::Env;
use crate::failure::Failure;
use crate::tls::Check;

/// Transport of EVENT_BUS_REDIS_CHANNEL_TYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// At most once: who subscribes late has lost the beginning.
    PubSub,
    /// Kept for EVENT_BUS_STREAMS_RETENTION_SECONDS.
    Streams,
}

/// One entry of a stream: its id and fields.
type Entry = (String, HashMap<String, String>);

/// The event-bus client.
#[derive(Clone, Debug)]
pub(crate) struct Bus {
    target: Target,
    channel: Channel,
    retention: Duration,
    prefix: String,
}

/// Reads one run's events.
pub(crate) enum Reader {
    /// Position in a stream.
    Streams(Box<MultiplexedConnection>, String, String),
    /// A subscription.
    PubSub(Box<PubSub>),
}

const OPTIONS: [&str; 8] = [
    "ssl_certfile",
    "ssl_keyfile",
    "socket_timeout",
    "socket_connect_timeout",
    "health_check_interval",
    "max_connections",
    "protocol",
    "client_name",
];

impl Bus {
    /// Reads the settings; an unknown URL parameter is an error, as it is to redis-py.
    pub(crate) fn read(env: &Env) -> Result<Self, Failure> {
        let explicit = env.get("EVENT_BUS_REDIS_URL").or_else(|| env.get("PUBSUB_REDIS_URL"));
        let target = if let Some(url) = explicit {
            from_url(url)?
        } else {
            let main = Target::main(env);
            Target { tls: main.tls.as_ref().map(|_| Check::SYSTEM), ..main }
        };
        let channel = match env.or("EVENT_BUS_REDIS_CHANNEL_TYPE", "pubsub") {
            "streams" => Channel::Streams,
            "pubsub" | "sharded" => Channel::PubSub,
            other => {
                return Err(Failure::new(format!(
                    "pydantic_core._pydantic_core.ValidationError: 1 validation error for DifyConfig\nEVENT_BUS_REDIS_CHANNEL_TYPE\n  Input should be 'pubsub', 'sharded' or 'streams' [input_value='{other}']"
                )));
            }
        };
        let prefix =
            env.get("REDIS_KEY_PREFIX").map_or_else(String::new, |prefix| format!("{prefix}:"));
        Ok(Self {
            target,
            channel,
            retention: env.seconds("EVENT_BUS_STREAMS_RETENTION_SECONDS", 600),
            prefix,
        })
    }

    /// Redis key or channel of a run: `stream:channel:<mode>:<run>` for streams.
    pub(crate) fn key(&self, mode: &str, run: &str) -> String {
        match self.channel {
            Channel::Streams => format!("{}stream:channel:{mode}:{run}", self.prefix),
            Channel::PubSub => format!("{}channel:{mode}:{run}", self.prefix),
        }
    }

    /// A connection for [`Bus::publish`].
    pub(crate) async fn publisher(&self) -> Result<MultiplexedConnection, Failure> {
        self.target.connect().await
    }

    /// Sends one event.
    pub(crate) async fn publish(
        &self,
        connection: &mut MultiplexedConnection,
        key: &str,
        event: &str,
    ) -> Result<(), Failure> {
        match self.channel {
            Channel::Streams => {
                let mut pipe = redis::pipe();
                pipe.cmd("XADD")
                    .arg(key)
                    .arg("MAXLEN")
                    .arg("~")
                    .arg(5000)
                    .arg("*")
                    .arg("data")
                    .arg(event)
                    .ignore();
                pipe.cmd("EXPIRE").arg(key).arg(self.retention.as_secs()).ignore();
                pipe.query_async::<()>(connection).await?;
            }
            Channel::PubSub => {
                cmd("PUBLISH").arg(key).arg(event).query_async::<()>(connection).await?;
            }
        }
        Ok(())
    }

    /// Opens a run's events from the beginning (streams) or from now (pub/sub).
    pub(crate) async fn reader(&self, key: String) -> Result<Reader, Failure> {
        Ok(match self.channel {
            Channel::Streams => Reader::Streams(
                Box::new(self.target.connect_blocking().await?),
                key,
                "0".to_owned(),
            ),
            Channel::PubSub => Reader::PubSub(Box::new(self.target.subscribe(&key).await?)),
        })
    }
}

impl Reader {
    /// The next events; empty after about a second without one.
    pub(crate) async fn next(&mut self) -> Result<Vec<String>, Failure> {
        match self {
            Self::Streams(connection, key, last) => {
                let mut read = cmd("XREAD");
                read.arg("BLOCK")
                    .arg(1000)
                    .arg("COUNT")
                    .arg(100)
                    .arg("STREAMS")
                    .arg(&*key)
                    .arg(&*last);
                let reply: Option<HashMap<String, Vec<Entry>>> = tokio::time::timeout(
                    Duration::from_secs(6),
                    read.query_async(connection.as_mut()),
                )
                .await
                .map_err(|_| {
                    Failure::new("redis.exceptions.TimeoutError: Timeout reading from socket")
                })??;
                let mut events = Vec::new();
                for (id, mut fields) in reply.into_iter().flat_map(HashMap::into_values).flatten() {
                    *last = id;
                    events.extend(fields.remove("data"));
                }
                Ok(events)
            }
            Self::PubSub(subscription) => {
                let mut messages = subscription.on_message();
                match tokio::time::timeout(Duration::from_secs(1), messages.next()).await {
                    Ok(Some(message)) => Ok(vec![message.get_payload()?]),
                    Ok(None) => Err(Failure::new(
                        "redis.exceptions.ConnectionError: Connection closed by server.",
                    )),
                    Err(_) => Ok(Vec::new()),
                }
            }
        }
    }
}

/// An explicit URL with redis-py's query parameters.
fn from_url(url: &str) -> Result<Target, Failure> {
    let (mut target, query) = cache::parse_url(url)?;
    for (name, value) in query {
        match (name.as_str(), &mut target.tls) {
            ("ssl_cert_reqs", Some(check)) => match value.as_str() {
                "none" => *check = Check { ca: check.ca.take(), ..Check::NONE },
                "optional" | "required" => check.chain = true,
                other => {
                    return Err(Failure::new(format!(
                        "redis.exceptions.RedisError: Invalid SSL Certificate Requirements Flag: {other}"
                    )));
                }
            },
            ("ssl_ca_certs", Some(check)) => check.ca = Some(PathBuf::from(value)),
            ("ssl_check_hostname", Some(check)) => {
                check.hostname = !matches!(
                    value.to_ascii_uppercase().as_str(),
                    "0" | "F" | "FALSE" | "N" | "NO"
                );
            }
            ("db", _) => target.db = value.parse().unwrap_or(target.db),
            (option, tls)
                if OPTIONS.contains(&option) && (tls.is_some() || !option.starts_with("ssl_")) => {}
            (option, _) => {
                return Err(Failure::new(format!(
                    "TypeError: Connection.__init__() got an unexpected keyword argument '{option}'"
                )));
            }
        }
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(pairs: &[(&str, &str)]) -> Option<Check> {
        Bus::read(&Env::with(pairs)).unwrap().target.tls
    }

    #[test]
    fn unset_url_forgets_the_tls_options() {
        let main = [("REDIS_USE_SSL", "true"), ("REDIS_SSL_CERT_REQS", "CERT_NONE")];
        assert_eq!(tls(&main), Some(Check::SYSTEM));
    }

    #[test]
    fn explicit_url_is_read_as_redis_py_does() {
        let url = "rediss://:p@h:6378/0?ssl_cert_reqs=required&ssl_ca_certs=/ca.pem&ssl_check_hostname=false";
        assert_eq!(
            tls(&[("EVENT_BUS_REDIS_URL", url)]),
            Some(Check { chain: true, hostname: false, ca: Some("/ca.pem".into()) })
        );
        assert_eq!(
            tls(&[("EVENT_BUS_REDIS_URL", "rediss://h?ssl_cert_reqs=none")]),
            Some(Check::NONE)
        );
        assert!(
            Bus::read(&Env::with(&[("EVENT_BUS_REDIS_URL", "rediss://h?ssl_cert_req=none")]))
                .is_err()
        );
        assert!(
            Bus::read(&Env::with(&[("EVENT_BUS_REDIS_URL", "redis://h?ssl_cert_reqs=none")]))
                .is_err()
        );
    }

    #[test]
    fn stream_key_has_dify_s_form() {
        let bus = Bus::read(&Env::with(&[("EVENT_BUS_REDIS_CHANNEL_TYPE", "streams")])).unwrap();
        assert_eq!(bus.key("workflow", "r1"), "stream:channel:workflow:r1");
    }
}
