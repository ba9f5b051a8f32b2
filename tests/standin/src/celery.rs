//! Celery over Redis: messages as kombu writes them, queues, and `celery inspect ping`.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use redis::aio::MultiplexedConnection;
use redis::cmd;
use serde_json::{Value, json};

use crate::cache::{self, Target};
use crate::env::Env;
use crate::failure::Failure;
use crate::startup;
use crate::{Image, log};

/// All streaming workflow and chatflow runs.
pub(crate) const RUNS: &str = "workflow_based_app_execution";
/// Cron triggers.
pub(crate) const POLLER: &str = "schedule_poller";

/// The default `-Q` of the self-hosted image (Dify 1.15.0, `api/docker/entrypoint.sh`).
const QUEUES: [&str; 21] = [
    "api_token",
    "dataset",
    "dataset_summary",
    "priority_dataset",
    "priority_pipeline",
    "pipeline",
    "mail",
    "ops_trace",
    "app_deletion",
    "plugin",
    "workflow_storage",
    "conversation",
    "workflow",
    POLLER,
    "schedule_executor",
    "triggered_workflow_dispatcher",
    "trigger_refresh_publisher",
    "trigger_refresh_executor",
    "retention",
    RUNS,
    "app_rbac",
];

/// A broker: where it is and how its keys are prefixed.
#[derive(Clone, Debug)]
pub(crate) struct Broker {
    /// Redis, database 1 by default.
    pub(crate) target: Target,
    prefix: String,
}

impl Broker {
    /// CELERY_BROKER_URL; with `rediss` the options come from REDIS_SSL_*.
    pub(crate) fn read(env: &Env) -> Result<Self, Failure> {
        let (mut target, query) =
            cache::parse_url(env.or("CELERY_BROKER_URL", "redis://:difyai123456@redis:6379/1"))?;
        if target.tls.is_some() {
            let known = ["CERT_NONE", "CERT_OPTIONAL", "CERT_REQUIRED"];
            let in_url = query
                .iter()
                .find(|(name, _)| name == "ssl_cert_reqs")
                .map(|(_, value)| value.as_str());
            let options = match in_url {
                Some("none" | "CERT_NONE") => crate::tls::Check::NONE,
                None if !known.contains(&env.or("REDIS_SSL_CERT_REQS", "CERT_NONE")) => {
                    return Err(Failure::new(
                        "ValueError: A rediss:// URL must have parameter ssl_cert_reqs and this must be set to CERT_REQUIRED, CERT_OPTIONAL, or CERT_NONE",
                    ));
                }
                None | Some(_) => Target::ssl_options(env),
            };
            target.tls = Some(options);
        }
        let prefix =
            env.get("REDIS_KEY_PREFIX").map_or_else(String::new, |prefix| format!("{prefix}:"));
        Ok(Self { target, prefix })
    }

    /// The Redis key of a queue or of kombu's own bookkeeping.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Puts a task into a queue.
    pub(crate) async fn enqueue(
        &self,
        queue: &str,
        task: &str,
        kwargs: &Value,
    ) -> Result<(), Failure> {
        let mut connection = self
            .target
            .connect()
            .await
            .map_err(|e| e.while_doing("kombu.exceptions.OperationalError"))?;
        cmd("LPUSH")
            .arg(self.key(queue))
            .arg(message(queue, task, kwargs))
            .query_async::<()>(&mut connection)
            .await?;
        Ok(())
    }

    /// Whether the broker answers.
    pub(crate) async fn ping(&self) -> Result<MultiplexedConnection, Failure> {
        let mut connection = self.target.connect().await?;
        cmd("PING").query_async::<()>(&mut connection).await?;
        Ok(connection)
    }
}

/// The queues a worker consumes: CELERY_WORKER_QUEUES, CELERY_QUEUES, or the image's own list.
pub(crate) fn queues(env: &Env, knows_rbac: bool) -> Vec<String> {
    match env.get("CELERY_WORKER_QUEUES").or_else(|| env.get("CELERY_QUEUES")) {
        Some(list) => list
            .split(',')
            .map(|queue| queue.trim().to_owned())
            .filter(|queue| !queue.is_empty())
            .collect(),
        None => QUEUES
            .iter()
            .filter(|queue| knows_rbac || **queue != "app_rbac")
            .map(|queue| (*queue).to_owned())
            .collect(),
    }
}

/// A random version 4 UUID.
pub(crate) fn uuid() -> String {
    let bits = rand::random::<u128>() & !(0xf000_u128 << 64) & !(0b11_u128 << 62)
        | 0x4000_u128 << 64
        | 0b10_u128 << 62;
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn message(queue: &str, task: &str, kwargs: &Value) -> String {
    let id = uuid();
    let body =
        json!([[], kwargs, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]);
    json!({
        "body": STANDARD.encode(body.to_string()),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": id, "root_id": id, "retries": 0, "ignore_result": true},
        "properties": {
            "correlation_id": id, "delivery_mode": 2, "priority": 0, "body_encoding": "base64", "delivery_tag": uuid(),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    })
    .to_string()
}

/// A message taken from a queue.
#[derive(Debug)]
pub(crate) struct Task {
    /// Python name of the task.
    pub(crate) name: String,
    /// Its keyword arguments.
    pub(crate) kwargs: Value,
    /// Kombu's delivery tag: the field in `unacked`.
    pub(crate) tag: String,
}

impl Task {
    /// Reads a message; `None` if it is none of kombu's.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(text).ok()?;
        let body: Value =
            serde_json::from_slice(&STANDARD.decode(message["body"].as_str()?).ok()?).ok()?;
        Some(Self {
            name: message["headers"]["task"].as_str()?.to_owned(),
            kwargs: body.get(1)?.clone(),
            tag: message["properties"]["delivery_tag"].as_str()?.to_owned(),
        })
    }
}

/// Marks this container's worker as alive under its node name; the mark dies with the process.
pub(crate) fn announce(env: &Env) -> Result<StdListener, Failure> {
    Ok(StdListener::bind_addr(&address(&format!("celery@{}", env.or("HOSTNAME", "localhost")))?)?)
}

fn address(node: &str) -> Result<SocketAddr, Failure> {
    Ok(SocketAddr::from_abstract_name(format!("standin-{node}"))?)
}

/// `celery -A celery_healthcheck.celery inspect ping [-d NODE]`: slow, since it starts Python.
///
/// A worker answers only through the broker, so both must be there.
pub(crate) async fn command(image: Image, args: &[String]) -> u8 {
    if !args.windows(2).any(|pair| pair[0] == "inspect" && pair[1] == "ping") {
        log::line("Error: No such command.");
        return 2;
    }
    let default = format!("celery@{}", image.env.or("HOSTNAME", "localhost"));
    let wanted = args.windows(2).find(|pair| pair[0] == "-d" || pair[0] == "--destination");
    let node = wanted.map_or(default.as_str(), |pair| pair[1].as_str());
    let asked = async {
        startup::pay(&image.baked, startup::INSPECT).await?;
        Broker::read(&image.env)?.ping().await?;
        Ok::<_, Failure>(StdStream::connect_addr(&address(node)?).is_ok())
    };
    match asked.await {
        Ok(true) => {
            log::line(&format!("->  {node}: OK\n        pong\n\n1 node online."));
            0
        }
        Ok(false) => {
            log::line("Error: No nodes replied within time constraint");
            69
        }
        Err(failure) => {
            log::line(&format!("Error: {failure}"));
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_queue() {
        let task = Task::parse(&message(RUNS, "tasks.run", &json!({"run_id": "r"}))).unwrap();
        assert_eq!((task.name.as_str(), task.kwargs["run_id"].as_str()), ("tasks.run", Some("r")));
        assert!(Task::parse("{}").is_none());
    }

    #[test]
    fn worker_queues_win_over_queues() {
        assert_eq!(
            queues(&Env::with(&[("CELERY_WORKER_QUEUES", "a, b"), ("CELERY_QUEUES", "c")]), true),
            ["a", "b"]
        );
        assert!(queues(&Env::default(), false).contains(&RUNS.to_owned()));
    }

    #[test]
    fn uuids_are_version_4() {
        let id = uuid();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"));
    }

    #[test]
    fn rediss_takes_its_options_from_redis_ssl() {
        let broker = |reqs| {
            Broker::read(&Env::with(&[
                ("CELERY_BROKER_URL", "rediss://:p@h:6378/1"),
                ("REDIS_SSL_CERT_REQS", reqs),
            ]))
        };
        assert_eq!(broker("").unwrap().target.tls, Some(crate::tls::Check::NONE));
        assert_eq!(broker("CERT_REQUIRED").unwrap().target.tls, Some(crate::tls::Check::SYSTEM));
        assert!(broker("required").unwrap_err().to_string().contains("ssl_cert_reqs"));
    }
}
