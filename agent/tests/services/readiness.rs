//! Readiness follows a service that goes and comes back, and the whole
//! preflight runs from one configuration.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use dify_agent::backends::probes::{Pace, Services, spawn};
use dify_agent::backends::{self, Group, Verdict};
use dify_agent::config::Settings;
use dify_agent::config::settings::{
    Bucket, Capacity, DrainTimes, Endpoints, Features, Images, Liveness, Logs, NodeNetwork, Paths,
    PostgresTls, RedisTls, SecretName,
};
use dify_agent::dify::stack::Budget;
use dify_agent::secrets::Secrets;
use dify_common::secret::Secret;
use dify_common::tasks::Tasks;
use dify_common::telemetry::LogMode;
use tokio::sync::watch;

use crate::google::Google;
use crate::{is_send, postgres, redis_probe};

fn settings(postgres: &postgres::Server, redis: &redis_probe::Server, google: &Google) -> Settings {
    let two = NonZeroU32::new(2).expect("not zero");
    Settings {
        node: "node".parse().expect("valid"),
        release: "1.14.2".parse().expect("valid"),
        public_host: "dify.example.com".to_owned(),
        database: postgres.settings(PostgresTls::Disable),
        vector: postgres.settings(PostgresTls::Disable),
        plugin_database: "dify_plugin".to_owned(),
        redis: redis.settings.clone(),
        bucket: Bucket { name: "files".to_owned(), plugins: "files".to_owned() },
        certificates: None,
        secrets: BTreeMap::new(),
        features: Features::default(),
        capacity: Capacity {
            max_vms: two,
            api_workers: None,
            api_connections: None,
            celery_concurrency: None,
            pool_size: None,
            pool_overflow: None,
        },
        images: Images {
            mirror: None,
            allow_unlocked: false,
            concurrency: two,
            releases_dir: None,
        },
        network: NodeNetwork { base: [172, 30, 0, 0].into() },
        drain: DrainTimes { notice: Duration::from_secs(1), bound: Duration::from_secs(1) },
        liveness: Liveness {
            docker_after: Duration::from_mins(3),
            disk_after: Duration::from_mins(5),
            agent_after: Duration::from_mins(5),
        },
        logs: Logs { mode: LogMode::Text, filter: "info".to_owned() },
        paths: Paths {
            state: "/var/lib/dify-agent".into(),
            run: "/run/dify-agent".into(),
            docker: "/var/run/docker.sock".into(),
            ops: "127.0.0.1:0".parse().expect("valid"),
        },
        google: Endpoints {
            secret_manager: google.base.clone(),
            storage: google.base.clone(),
            metadata: None,
        },
        environment: BTreeMap::new(),
    }
}

fn secrets() -> Secrets {
    [
        (SecretName::DatabasePassword, Secret::from(postgres::PASSWORD)),
        (SecretName::VectorPassword, Secret::from(postgres::PASSWORD)),
        (SecretName::RedisPassword, Secret::from(redis_probe::AUTH)),
    ]
    .into_iter()
    .collect()
}

/// Waits until exactly `away` of the four services count as away.
async fn wait_until_away(services: &mut watch::Receiver<Services>, away: &[Group]) {
    let at_most = Duration::from_secs(20);
    let settled = services.wait_for(|services| {
        let gone: Vec<_> =
            services.values().filter(|health| !health.ok).map(|health| health.kind).collect();
        services.len() == 4 && gone == away
    });
    let settled = tokio::time::timeout(at_most, settled).await.map(|settled| settled.is_ok());
    assert_eq!(settled, Ok(true), "expected {away:?} to be away: {:?}", services.borrow());
}

#[tokio::test]
async fn readiness_follows_redis_away_and_back() {
    let (postgres, google) = (postgres::Server::start().await, Google::start().await);
    let redis = redis_probe::Server::start(None, "noeviction").await;
    let port = redis.settings.port;
    let settings = settings(&postgres, &redis, &google);
    let tasks = Tasks::default();
    let quick = Duration::from_millis(50);
    let pace = Pace { deadline: Duration::from_secs(2), every: quick, bucket_every: quick };
    let mut services = spawn(&settings, &secrets(), Some(&google.tokens()), pace, &tasks)
        .expect("a good configuration");
    wait_until_away(&mut services, &[]).await;
    drop(redis);
    wait_until_away(&mut services, &[Group::Redis]).await;
    assert!(services.borrow()[&Group::Redis].detail.is_some());
    let _redis = redis_probe::Server::start_at(port, None, "noeviction").await;
    wait_until_away(&mut services, &[]).await;
    drop(postgres);
    wait_until_away(&mut services, &[Group::Database, Group::Vector]).await;
    assert!(tasks.stop(Duration::from_secs(5)).await, "the probes end when told to");
}

#[tokio::test]
async fn one_preflight_asks_everything_and_adds_up_what_shares_a_server() {
    let (postgres, google) = (postgres::Server::start().await, Google::start().await);
    let redis = redis_probe::Server::start(None, "noeviction").await;
    let settings = settings(&postgres, &redis, &google);
    assert_eq!(settings.redis.tls, RedisTls::Disable);
    let budget = Budget {
        database: 60,
        database_arithmetic: "30 x 2 VMs".to_owned(),
        vector: 40,
        vector_arithmetic: "20 x 2 VMs".to_owned(),
    };
    let (secrets, tokens) = (secrets(), google.tokens());
    let lines = is_send(backends::check(&settings, &secrets, &budget, Some(&tokens))).await;
    let failed: Vec<_> = lines
        .iter()
        .filter(|line| line.verdict == Verdict::Fail)
        .map(|line| (line.group, line.name))
        .collect();
    // 60 and 40 fit by themselves, but the test has both on one server; and
    // the role may create no database, and the distribution has no pgvector.
    let expected = [
        (Group::Database, "plugin database"),
        (Group::Database, "connections"),
        (Group::Vector, "extension"),
        (Group::Vector, "connections"),
    ];
    let without_pgvector: Vec<_> = expected
        .into_iter()
        .filter(|line| failed.contains(line) || line.1 != "extension")
        .collect();
    assert_eq!(failed, without_pgvector, "{lines:?}");
    for group in [Group::Database, Group::Vector, Group::Redis, Group::Bucket] {
        assert!(lines.iter().any(|line| line.group == group), "{group}");
    }
}
