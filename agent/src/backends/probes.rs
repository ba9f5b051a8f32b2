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

/// One answer: connecting anew included.
const DEADLINE: Duration = Duration::from_secs(4);
/// At most this long between two questions, at least half: three failures and
/// their waits fit into the ten seconds after which a service counts as away.
const EVERY: Duration = Duration::from_secs(3);
/// The same for the bucket: a fleet's questions are billed, and two failures
/// ten seconds apart mean away as well.
const BUCKET_EVERY: Duration = Duration::from_secs(10);

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

/// One question to one service, on a connection that is kept.
#[derive(Debug)]
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
            let _ = stopping.run_until_cancelled(keep_asking(kind, probe, publish)).await;
        });
    }
    Ok(services)
}

async fn keep_asking(kind: Group, mut probe: Probe, publish: watch::Sender<Services>) {
    let every = match probe {
        Probe::Postgres { .. } | Probe::Redis { .. } => EVERY,
        Probe::Bucket { .. } => BUCKET_EVERY,
    };
    let pace = Backoff::try_new(every, every).expect("a constant above zero");
    let mut fresh = Freshness::new(Instant::now());
    let mut since = clock::now();
    loop {
        let answer = match timeout(DEADLINE, probe.ask()).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {DEADLINE:?}")),
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
        tokio::time::sleep(pace.wait(0)).await;
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
