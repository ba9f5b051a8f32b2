//! A Dify image that does to the database what its script says.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dify_agent::config::settings::SecretName;
use dify_agent::gate::{
    Finished, Gate, GateError, OneShotError, OneShots, Passed, Refusal, Subject, Timings,
};
use dify_agent::secrets::Secrets;
use dify_common::ids::Digest;
use dify_common::secret::Secret;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::watch;

use crate::postgres::{Server, run};

pub(super) const OLD: &str = "0123456789ab";
pub(super) const NEW: &str = "fedcba987654";

/// What a migration container does.
#[derive(Clone, Copy)]
pub(super) enum Migration {
    Works,
    /// Works, but not before [`Image::release`].
    WorksLater,
    Hangs,
    /// The engine loses sight of the container.
    Lost,
    Skips,
    EndsWellAndDoesNothing,
    Fails,
    CannotLocate,
}

/// An api image of Dify, shared by all nodes that run it.
pub(super) struct Image {
    pub(super) database: PgConnectOptions,
    pub(super) head: &'static str,
    pub(super) script: Mutex<VecDeque<Migration>>,
    pub(super) go: watch::Sender<bool>,
    pub(super) heads: AtomicUsize,
    pub(super) migrations: AtomicUsize,
    pub(super) stops: AtomicUsize,
    pub(super) commands: Mutex<Vec<String>>,
    pub(super) command_codes: Mutex<VecDeque<i64>>,
}

impl Image {
    pub(super) fn new(server: &Server, head: &'static str, script: &[Migration]) -> Arc<Self> {
        Arc::new(Self {
            database: server.options(),
            head,
            script: Mutex::new(script.iter().copied().collect()),
            go: watch::Sender::new(false),
            heads: AtomicUsize::default(),
            migrations: AtomicUsize::default(),
            stops: AtomicUsize::default(),
            commands: Mutex::default(),
            command_codes: Mutex::default(),
        })
    }

    pub(super) fn release(&self) {
        self.go.send_replace(true);
    }

    pub(super) fn migrations(&self) -> usize {
        self.migrations.load(Ordering::SeqCst)
    }

    pub(super) async fn upgrade(&self) {
        let mut connection = self.database.connect().await.expect("connects");
        set_revision(&mut connection, self.head).await;
    }
}

/// What Alembic leaves behind.
pub(super) async fn set_revision(connection: &mut PgConnection, revision: &str) {
    let sql = format!(
        "create table if not exists alembic_version (version_num varchar(32) primary key); \
         delete from alembic_version; insert into alembic_version values ('{revision}')"
    );
    run(connection, &sql).await;
}

pub(super) fn ended(exit_code: i64, lines: &[&str]) -> Finished {
    let lines = lines.iter().map(|line| (*line).to_owned()).collect();
    Finished { exit_code, lines }
}

/// One node's hold on the image.
pub(super) struct Node(pub(super) Arc<Image>);

impl OneShots for Node {
    async fn heads(&self) -> Result<Finished, OneShotError> {
        self.0.heads.fetch_add(1, Ordering::SeqCst);
        Ok(ended(0, &["INFO starting", &format!("{} (head)", self.0.head)]))
    }

    async fn migrate(
        &self,
        on_line: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Finished, OneShotError> {
        self.0.migrations.fetch_add(1, Ordering::SeqCst);
        on_line("Preparing database migration...");
        let next = self.0.script.lock().expect("whole").pop_front().unwrap_or(Migration::Works);
        match next {
            Migration::Works => {}
            Migration::WorksLater => {
                let mut go = self.0.go.subscribe();
                go.wait_for(|go| *go).await.expect("the image lives");
            }
            Migration::Hangs => std::future::pending().await,
            Migration::Lost => return Err(OneShotError("the engine went away".into())),
            Migration::Skips => return Ok(ended(0, &["Database migration skipped"])),
            Migration::EndsWellAndDoesNothing => {
                return Ok(ended(0, &["Database migration successful!"]));
            }
            Migration::Fails => {
                return Ok(ended(1, &["Traceback", "password hunter2hunter2 is wrong"]));
            }
            Migration::CannotLocate => {
                return Ok(ended(1, &["ERROR Can't locate revision identified by 'feedfacefeed'"]));
            }
        }
        self.0.upgrade().await;
        Ok(ended(0, &["Database migration successful!"]))
    }

    async fn run(&self, args: &[String]) -> Result<Finished, OneShotError> {
        self.0.commands.lock().expect("whole").push(args.join(" "));
        let code = self.0.command_codes.lock().expect("whole").pop_front().unwrap_or(0);
        Ok(ended(code, &["done"]))
    }

    async fn stop_all(&self) -> Result<(), OneShotError> {
        self.0.stops.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

pub(super) fn digest(letter: &str) -> Digest {
    format!("sha256:{}", letter.repeat(64)).parse().expect("valid")
}

pub(super) fn subject(node: &str, release: &str, image: &str) -> Subject {
    Subject {
        node: node.parse().expect("valid"),
        release: release.parse().expect("valid"),
        digest: digest(image),
        post_migration: vec![vec!["fix-plugins".to_owned()]],
        beside: Vec::new(),
    }
}

pub(super) fn quick() -> Timings {
    let millis = Duration::from_millis;
    Timings {
        keep_alive: millis(50),
        poll: millis(20),
        pass: Duration::from_secs(20),
        skipped_wait: millis(20),
        ..Timings::default()
    }
}

pub(super) fn gate_with(
    server: &Server,
    image: &Arc<Image>,
    subject: Subject,
    timings: Timings,
) -> Gate<Node> {
    let secrets: Secrets =
        [(SecretName::DatabasePassword, Secret::from("hunter2hunter2"))].into_iter().collect();
    Gate::new(server.options(), subject, Node(image.clone()), secrets, timings)
}

pub(super) fn gate(
    server: &Server,
    image: &Arc<Image>,
    node: &str,
    release: &str,
    digest: &str,
) -> Gate<Node> {
    gate_with(server, image, subject(node, release, digest), quick())
}

pub(super) async fn pass(gate: &Gate<Node>) -> Result<Passed, GateError> {
    gate.pass(&|_| ()).await
}

pub(super) async fn refused(gate: &Gate<Node>) -> Refusal {
    let error = pass(gate).await.expect_err("a refusal");
    let GateError::Refused(refusal) = error else { panic!("expected a refusal, got {error:?}") };
    refusal
}

/// Who made the schema right, and whether that was us.
pub(super) fn current(passed: Result<Passed, GateError>) -> (String, bool) {
    let passed = passed.expect("passes");
    let Passed::Current { by, adopted, .. } = passed else { panic!("{passed:?}") };
    (by, adopted)
}

/// Ends the connection of `node`'s gate from the server's side.
pub(super) async fn cut(server: &Server, node: &str) {
    let mut administrator = server.administrator().connect().await.expect("connects");
    let cut: Vec<bool> = sqlx::query_scalar(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1",
    )
    .bind(format!("dify-gate {node}"))
    .fetch_all(&mut administrator)
    .await
    .expect("may");
    assert_eq!(cut, [true]);
}
