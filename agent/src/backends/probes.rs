//! Readiness: small questions to each managed service for as long as the agent
//! runs. A service that is away makes the node not ready; it never makes it
//! not live.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ::redis::aio::MultiplexedConnection;
use ::redis::{Client, cmd};
use dify_common::chain::Chain;
use dify_common::clock;
use dify_common::gcp::token::Tokens;
use dify_common::retry::Backoff;
use dify_common::tasks::Tasks;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{Span, info, warn};

use super::bucket::Storage;
use super::freshness::Freshness;
use super::{Group, postgres, redis};
use crate::config::Settings;
use crate::config::settings::SecretName;
use crate::secrets::Secrets;

/// How often is asked, and for how long an answer is awaited.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// One answer, connecting anew included.
    pub deadline: Duration,
    /// At most this long between two questions, at least half.
    pub every: Duration,
    /// The same for the bucket, where a whole fleet's questions are billed.
    pub bucket_every: Duration,
}

impl Default for Pace {
    /// Three failures take 20 s at the very most, and failing for 10 s is
    /// enough to count as away.
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(4),
            every: Duration::from_secs(3),
            bucket_every: Duration::from_secs(10),
        }
    }
}

/// How one service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Which: `database`, `vector`, `redis` or `bucket`.
    pub kind: Group,
    /// It counts as there.
    pub ok: bool,
    /// Since when that is so.
    pub since: SystemTime,
    /// What the last failed answer was; `None` after a good one.
    pub detail: Option<String>,
}

/// How the services are; empty until the first answers.
pub type Services = BTreeMap<Group, Health>;

/// One question to one service, on a connection that is kept. No `Debug`: sqlx
/// prints the password in its options.
enum Probe {
    Postgres { options: Box<PgConnectOptions>, connection: Option<PgConnection> },
    Redis { client: Box<Client>, connection: Option<MultiplexedConnection> },
    Bucket { storage: Storage, names: Vec<String> },
}

/// Starts asking. The tasks run until `tasks` stops.
pub fn spawn(
    settings: &Settings,
    secrets: &Secrets,
    tokens: Option<&Tokens>,
    pace: Pace,
    tasks: &Tasks,
) -> Result<watch::Receiver<Services>, ::redis::RedisError> {
    dify_common::gcp::install_tls_provider();
    let certificates = settings.certificates.as_deref();
    let database = |server, password| Probe::Postgres {
        options: Box::new(postgres::options(server, secrets.get(password), certificates)),
        connection: None,
    };
    let redis_password = secrets.get(SecretName::RedisPassword);
    let mut probes = vec![
        (
            Group::Database,
            "database probe",
            database(&settings.database, SecretName::DatabasePassword),
        ),
        (Group::Vector, "vector probe", database(&settings.vector, SecretName::VectorPassword)),
        (
            Group::Redis,
            "redis probe",
            Probe::Redis {
                client: Box::new(redis::client(&settings.redis, redis_password, certificates)?),
                connection: None,
            },
        ),
    ];
    if let Some(tokens) = tokens {
        let mut names = vec![settings.bucket.name.clone()];
        if settings.bucket.plugins != settings.bucket.name {
            names.push(settings.bucket.plugins.clone());
        }
        let storage = Storage::new(&settings.google.storage, tokens.clone());
        probes.push((Group::Bucket, "bucket probe", Probe::Bucket { storage, names }));
    }
    let publish = watch::Sender::new(Services::new());
    let services = publish.subscribe();
    for (kind, name, probe) in probes {
        let (publish, stopping) = (publish.clone(), tasks.stopping());
        tasks.spawn_essential(name, Span::current(), async move {
            // cancel-safe: a question dropped half-way is asked by nobody else.
            let _ = stopping.run_until_cancelled(keep_asking(kind, probe, pace, publish)).await;
        });
    }
    Ok(services)
}

async fn keep_asking(kind: Group, mut probe: Probe, pace: Pace, publish: watch::Sender<Services>) {
    let every = match probe {
        Probe::Postgres { .. } | Probe::Redis { .. } => pace.every,
        Probe::Bucket { .. } => pace.bucket_every,
    };
    let between = Backoff::try_new(every, every).unwrap_or(Backoff::NEARBY);
    let mut fresh = Freshness::new(Instant::now());
    let mut since = clock::now();
    loop {
        let answer = match timeout(pace.deadline, probe.ask()).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {:?}", pace.deadline)),
        };
        if answer.is_err() {
            probe.forget();
        }
        let turned = fresh.observe(answer.is_ok(), Instant::now());
        let (ok, detail) = (fresh.is_up(), answer.err());
        if turned {
            since = clock::now();
            match &detail {
                None => info!(kind = kind.as_str(), "service answers"),
                Some(detail) => warn!(kind = kind.as_str(), detail, "service is away"),
            }
        }
        let health = Health { kind, ok, since, detail };
        publish.send_if_modified(|services| {
            let changed = services.get(&kind) != Some(&health);
            services.insert(kind, health);
            changed
        });
        tokio::time::sleep(between.wait(0)).await;
    }
}

impl Probe {
    /// `Ok` when the service does its least; else why not.
    async fn ask(&mut self) -> Result<(), String> {
        match self {
            Self::Postgres { options, connection } => {
                let asked = async {
                    if connection.is_none() {
                        *connection = Some(options.connect().await?);
                    }
                    let connection = connection.as_mut().expect("set above");
                    sqlx::query("select 1").execute(connection).await.map(drop)
                };
                asked.await.map_err(|error: sqlx::Error| Chain(&error).to_string())
            }
            Self::Redis { client, connection } => {
                let asked = async {
                    if connection.is_none() {
                        *connection = Some(redis::connect(client).await?);
                    }
                    let connection = connection.as_mut().expect("set above");
                    cmd("PING").query_async::<()>(connection).await
                };
                asked.await.map_err(|error: ::redis::RedisError| Chain(&error).to_string())
            }
            Self::Bucket { storage, names } => {
                for name in names {
                    storage
                        .get(name)
                        .await
                        .map_err(|error| format!("{name}: {}", Chain(&error)))?;
                }
                Ok(())
            }
        }
    }

    /// Drops a connection that is of no use any more.
    fn forget(&mut self) {
        match self {
            Self::Postgres { connection, .. } => *connection = None,
            Self::Redis { connection, .. } => *connection = None,
            Self::Bucket { .. } => {}
        }
    }
}
