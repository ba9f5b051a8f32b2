//! The migration gate with a scripted Dify image.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dify_agent::config::settings::SecretName;
use dify_agent::exit::Exit;
use dify_agent::gate::plan::Outcome;
use dify_agent::gate::{
    Finished, Gate, GateError, OneShotError, OneShots, Passed, Progress, Refusal, Subject, Timings,
    WaitingOn,
};
use dify_agent::secrets::Secrets;
use dify_common::ids::Digest;
use dify_common::secret::Secret;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::watch;

use crate::link::Link;
use crate::postgres::{Server, run};
use crate::{is_send, wait_for};

const OLD: &str = "0123456789ab";
const NEW: &str = "fedcba987654";

/// What a migration container does.
#[derive(Clone, Copy)]
enum Migration {
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
struct Image {
    database: PgConnectOptions,
    head: &'static str,
    script: Mutex<VecDeque<Migration>>,
    go: watch::Sender<bool>,
    heads: AtomicUsize,
    migrations: AtomicUsize,
    stops: AtomicUsize,
    commands: Mutex<Vec<String>>,
    command_codes: Mutex<VecDeque<i64>>,
}

impl Image {
    fn new(server: &Server, head: &'static str, script: &[Migration]) -> Arc<Self> {
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

    fn release(&self) {
        self.go.send_replace(true);
    }

    fn migrations(&self) -> usize {
        self.migrations.load(Ordering::SeqCst)
    }

    async fn upgrade(&self) {
        let mut connection = self.database.connect().await.expect("connects");
        set_revision(&mut connection, self.head).await;
    }
}

/// What Alembic leaves behind.
async fn set_revision(connection: &mut PgConnection, revision: &str) {
    let sql = format!(
        "create table if not exists alembic_version (version_num varchar(32) primary key); \
         delete from alembic_version; insert into alembic_version values ('{revision}')"
    );
    run(connection, &sql).await;
}

fn ended(exit_code: i64, lines: &[&str]) -> Finished {
    let lines = lines.iter().map(|line| (*line).to_owned()).collect();
    Finished { exit_code, lines }
}

/// One node's hold on the image.
struct Node(Arc<Image>);

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

fn digest(letter: &str) -> Digest {
    format!("sha256:{}", letter.repeat(64)).parse().expect("valid")
}

fn subject(node: &str, release: &str, image: &str) -> Subject {
    Subject {
        node: node.parse().expect("valid"),
        release: release.parse().expect("valid"),
        digest: digest(image),
        post_migration: vec![vec!["fix-plugins".to_owned()]],
        beside: Vec::new(),
    }
}

fn quick() -> Timings {
    let millis = Duration::from_millis;
    Timings {
        keep_alive: millis(50),
        poll: millis(20),
        pass: Duration::from_secs(20),
        skipped_wait: millis(20),
        ..Timings::default()
    }
}

fn gate_with(
    server: &Server,
    image: &Arc<Image>,
    subject: Subject,
    timings: Timings,
) -> Gate<Node> {
    let secrets: Secrets =
        [(SecretName::DatabasePassword, Secret::from("hunter2hunter2"))].into_iter().collect();
    Gate::new(server.options(), subject, Node(image.clone()), secrets, timings)
}

fn gate(
    server: &Server,
    image: &Arc<Image>,
    node: &str,
    release: &str,
    digest: &str,
) -> Gate<Node> {
    gate_with(server, image, subject(node, release, digest), quick())
}

async fn pass(gate: &Gate<Node>) -> Result<Passed, GateError> {
    gate.pass(&|_| ()).await
}

async fn refused(gate: &Gate<Node>) -> Refusal {
    let error = pass(gate).await.expect_err("a refusal");
    let GateError::Refused(refusal) = error else { panic!("expected a refusal, got {error:?}") };
    refusal
}

/// Who made the schema right, and whether that was us.
fn current(passed: Result<Passed, GateError>) -> (String, bool) {
    let passed = passed.expect("passes");
    let Passed::Current { by, adopted, .. } = passed else { panic!("{passed:?}") };
    (by, adopted)
}

/// Ends the connection of `node`'s gate from the server's side.
async fn cut(server: &Server, node: &str) {
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

#[tokio::test]
async fn three_nodes_at_once_migrate_once() {
    let server = Server::start().await;
    let image = Image::new(&server, OLD, &[Migration::WorksLater]);
    let gates: Vec<_> = ["a", "b", "c"]
        .map(|node| gate(&server, &image, node, "1.14.2", "a"))
        .into_iter()
        .collect();
    let waiting = Mutex::new(Vec::new());
    let passes = gates.iter().map(|gate| {
        let (image, waiting) = (image.clone(), &waiting);
        is_send(async move {
            let counted = Mutex::new(false);
            let report = |progress| {
                if let Progress::Waiting(WaitingOn::Migration(holder)) = progress {
                    let mut counted = counted.lock().expect("whole");
                    if !*counted {
                        *counted = true;
                        let mut waiting = waiting.lock().expect("whole");
                        waiting.push(holder.node);
                        // The migration goes on only when both others wait.
                        if waiting.len() == 2 {
                            image.release();
                        }
                    }
                }
            };
            gate.pass(&report).await
        })
    });
    let passed = futures_util::future::join_all(passes).await;
    let by: Vec<String> = passed
        .into_iter()
        .map(|passed| {
            let (by, adopted) = current(passed);
            assert!(!adopted);
            by
        })
        .collect();
    assert!(by.iter().all(|node| *node == by[0]), "{by:?}");
    assert_eq!((image.migrations(), image.heads.load(Ordering::SeqCst)), (1, 1));
    assert_eq!(*image.commands.lock().expect("whole"), ["fix-plugins"]);
    let waiting = waiting.into_inner().expect("whole");
    assert_eq!(waiting, [Some(by[0].clone()), Some(by[0].clone())]);

    // A second boot starts no container at all.
    pass(&gates[1]).await.expect("passes");
    assert_eq!((image.migrations(), image.heads.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn a_cut_connection_stops_the_migration_and_another_node_takes_over() {
    let server = Server::start().await;
    let image = Image::new(&server, OLD, &[Migration::Hangs]);
    let first = gate(&server, &image, "a", "1.14.2", "a");
    let (lost, ()) = tokio::join!(pass(&first), async {
        wait_for("a migration", async || (image.migrations() == 1).then_some(())).await;
        cut(&server, "a").await;
    });
    let error = lost.expect_err("lost its lock");
    assert!(matches!(error, GateError::LockLost { .. }), "{error:?}");
    assert_eq!(error.exit(), Exit::Dependency);
    // Once for leftovers, once for the abandoned one.
    assert_eq!(image.stops.load(Ordering::SeqCst), 2);

    let second = gate(&server, &image, "b", "1.14.2", "a");
    assert_eq!(current(pass(&second).await), ("b".to_owned(), false));
    assert_eq!(image.migrations(), 2);
}

#[tokio::test]
async fn a_line_that_goes_dead_is_a_lost_lock_too() {
    let server = Server::start().await;
    let image = Image::new(&server, OLD, &[Migration::Hangs]);
    let link = Link::to(server.port()).await;
    let timings = Timings { statement: Duration::from_millis(500), ..quick() };
    let through = server.options().port(link.port);
    let first = Gate::new(
        through,
        subject("a", "1.14.2", "a"),
        Node(image.clone()),
        Secrets::default(),
        timings,
    );
    let (lost, ()) = tokio::join!(pass(&first), async {
        wait_for("a migration", async || (image.migrations() == 1).then_some(())).await;
        link.freeze();
    });
    let error = lost.expect_err("lost its lock");
    assert!(matches!(error, GateError::LockLost { .. }), "{error:?}");
    assert_eq!(image.stops.load(Ordering::SeqCst), 2);
    // The server frees the lock when it gives the silent line up; here at once.
    drop(link);
    let passed = pass(&gate(&server, &image, "b", "1.14.2", "a")).await;
    assert_eq!(current(passed), ("b".to_owned(), false));
}

#[tokio::test]
async fn a_container_the_engine_lost_is_stopped_and_nothing_is_on_record_as_failed() {
    let server = Server::start().await;
    let image = Image::new(&server, OLD, &[Migration::Lost]);
    let node = gate(&server, &image, "a", "1.14.2", "a");
    let error = pass(&node).await.expect_err("nothing is known of the migration");
    assert!(matches!(error, GateError::OneShot { .. }), "{error:?}");
    assert_eq!(image.stops.load(Ordering::SeqCst), 2);
    pass(&node).await.expect("may try again");
}

#[tokio::test]
async fn a_node_that_only_waits_survives_a_cut_connection() {
    let server = Server::start().await;
    let image = Image::new(&server, OLD, &[Migration::WorksLater]);
    let (first, second) =
        (gate(&server, &image, "a", "1.14.2", "a"), gate(&server, &image, "b", "1.14.2", "a"));
    let waits = watch::Sender::new(false);
    let report = |progress| {
        if matches!(progress, Progress::Waiting(WaitingOn::Migration(_))) {
            waits.send_replace(true);
        }
    };
    let (a, b, ()) = tokio::join!(
        pass(&first),
        async {
            wait_for("a migration", async || (image.migrations() == 1).then_some(())).await;
            second.pass(&report).await
        },
        async {
            waits.subscribe().wait_for(|waits| *waits).await.expect("lives");
            cut(&server, "b").await;
            image.release();
        }
    );
    a.expect("passes");
    b.expect("passes on a new connection");
    assert_eq!(image.migrations(), 1);
}

#[tokio::test]
async fn a_schema_made_by_an_administrator_will_do() {
    let server = Server::start().await;
    let mut administrator =
        server.administrator().database("dify").connect().await.expect("connects");
    let sql = "alter database dify owner to postgres; create schema dify_fleet authorization dify; \
               grant create on schema public to dify";
    run(&mut administrator, sql).await;
    let image = Image::new(&server, OLD, &[]);
    let node = gate(&server, &image, "a", "1.14.2", "a");
    pass(&node).await.expect("passes");
    assert!(!format!("{node:?}").contains(crate::postgres::PASSWORD));
}

#[tokio::test]
async fn exit_code_zero_is_no_proof() {
    let server = Server::start().await;
    let image = Image::new(&server, OLD, &[Migration::EndsWellAndDoesNothing]);
    let node = gate(&server, &image, "a", "1.14.2", "a");
    let refusal = refused(&node).await;
    assert!(matches!(&refusal, Refusal::Failed { node, .. } if node == "a"), "{refusal:?}");
    assert!(refusal.to_string().contains("exit code 0"), "{refusal}");
}

#[tokio::test]
async fn a_skipped_migration_is_tried_again_but_not_for_ever() {
    let server = Server::start().await;
    let image = Image::new(&server, OLD, &[Migration::Skips, Migration::Skips]);
    pass(&gate(&server, &image, "a", "1.14.2", "a")).await.expect("the third try works");
    assert_eq!(image.migrations(), 3);

    let image = Image::new(&server, NEW, &[Migration::Skips; 4]);
    let error = pass(&gate(&server, &image, "a", "1.15.0", "b")).await.expect_err("gives up");
    assert!(matches!(error, GateError::Skipped { tries: 4 }), "{error:?}");
    assert_eq!((image.migrations(), error.exit()), (4, Exit::Migration));
    // Nothing failed for good: the next attempt may find the lock gone.
    pass(&gate(&server, &image, "b", "1.15.0", "b")).await.expect("passes");
}

#[tokio::test]
async fn a_failure_is_reported_everywhere_and_not_repeated_until_cleared() {
    let server = Server::start().await;
    let image = Image::new(&server, OLD, &[Migration::Fails]);
    let (a, b) =
        (gate(&server, &image, "a", "1.14.2", "a"), gate(&server, &image, "b", "1.14.2", "a"));
    for node in [&a, &b, &a] {
        let text = refused(node).await.to_string();
        assert!(text.contains("failed on a") && text.contains("exit code 1"), "{text}");
        assert!(text.contains("password [REDACTED] is wrong"), "{text}");
    }
    assert_eq!(image.migrations(), 1);
    assert_eq!(b.clear().await.expect("clears"), Some(Outcome::Failed));
    pass(&b).await.expect("passes");
    assert_eq!(image.migrations(), 2);
}

#[tokio::test]
async fn another_build_of_the_release_may_try_after_a_failure() {
    let server = Server::start().await;
    let image = Image::new(&server, OLD, &[Migration::Fails]);
    refused(&gate(&server, &image, "a", "1.14.2", "a")).await;
    pass(&gate(&server, &image, "a", "1.14.2", "b")).await.expect("passes");
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_name_or_allowed_by_the_manifest() {
    let server = Server::start().await;
    let (old, new) = (Image::new(&server, OLD, &[]), Image::new(&server, NEW, &[]));
    let settled = gate(&server, &old, "a", "1.14.2", "a");
    pass(&settled).await.expect("an empty database");
    pass(&gate(&server, &new, "b", "1.15.0", "b")).await.expect("an upgrade");
    let expected = Refusal::Newer {
        ours: "1.14.2".parse().expect("valid"),
        revision: NEW.to_owned(),
        release: "1.15.0".parse().expect("valid"),
        node: "b".to_owned(),
    };
    assert_eq!(refused(&settled).await, expected);
    // Also by a build of the old release that never passed here.
    assert_eq!(refused(&gate(&server, &old, "c", "1.14.2", "c")).await, expected);
    assert_eq!(old.migrations(), 1);

    let mut tolerant = subject("c", "1.14.2", "a");
    tolerant.beside = vec!["1.15.0".parse().expect("valid")];
    let passed = pass(&gate_with(&server, &old, tolerant, quick())).await.expect("allowed");
    let Passed::Beside { release, .. } = passed else { panic!("{passed:?}") };
    assert_eq!(release.as_str(), "1.15.0");

    // Taken back by hand, the schema may be migrated again.
    set_revision(&mut server.connect().await, OLD).await;
    pass(&settled).await.expect("its own schema again");
    pass(&gate(&server, &new, "b", "1.15.0", "b")).await.expect("migrates again");
    assert_eq!(new.migrations(), 2);
}

#[tokio::test]
async fn an_unknown_revision_is_refused_and_tried_again_only_when_it_changes() {
    let server = Server::start().await;
    let mut connection = server.connect().await;
    set_revision(&mut connection, "feedfacefeed").await;
    let image = Image::new(&server, OLD, &[Migration::CannotLocate]);
    let node = gate(&server, &image, "a", "1.14.2", "a");
    for _ in 0..2 {
        let refusal = refused(&node).await;
        assert!(matches!(refusal, Refusal::Unknown { .. }), "{refusal:?}");
        assert!(refusal.to_string().contains("feedfacefeed"), "{refusal}");
    }
    assert_eq!(image.migrations(), 1);
    set_revision(&mut connection, "aaaabbbbcccc").await;
    pass(&node).await.expect("a revision the image can start from");
}

#[tokio::test]
async fn a_schema_that_is_right_already_is_adopted() {
    let server = Server::start().await;
    set_revision(&mut server.connect().await, OLD).await;
    let image = Image::new(&server, OLD, &[]);
    let passed = pass(&gate(&server, &image, "a", "1.14.2", "a")).await;
    assert_eq!(current(passed), ("a".to_owned(), true));
    assert_eq!(image.migrations(), 0);
    assert!(image.commands.lock().expect("whole").is_empty());
}

#[tokio::test]
async fn post_migration_commands_run_once_each() {
    let server = Server::start().await;
    let image = Image::new(&server, OLD, &[]);
    image.command_codes.lock().expect("whole").extend([0, 3]);
    let mut subject = subject("a", "1.14.2", "a");
    subject.post_migration = ["one", "two"].map(|command| vec![command.to_owned()]).to_vec();
    let node = gate_with(&server, &image, subject, quick());
    let text = refused(&node).await.to_string();
    assert!(text.contains("`flask two` ended with exit code 3"), "{text}");
    node.clear().await.expect("clears");
    pass(&node).await.expect("passes");
    pass(&node).await.expect("passes again");
    assert_eq!(*image.commands.lock().expect("whole"), ["one", "two", "two"]);
    assert_eq!(image.migrations(), 1);
}

#[tokio::test]
async fn waiting_has_a_deadline_that_says_for_whom() {
    let server = Server::start().await;
    let image = Image::new(&server, OLD, &[Migration::Hangs]);
    let leads = gate(&server, &image, "a", "1.14.2", "a");
    let short = Timings { pass: Duration::from_millis(500), ..quick() };
    let waits = gate_with(&server, &image, subject("b", "1.14.2", "a"), short);
    let waited = async {
        wait_for("a migration", async || (image.migrations() == 1).then_some(())).await;
        pass(&waits).await
    };
    let error = tokio::select! {
        _ = pass(&leads) => panic!("it hangs"),
        waited = waited => waited.expect_err("nobody finishes"),
    };
    assert_eq!(error.exit(), Exit::Deadline);
    assert!(error.to_string().contains("migration by a (since "), "{error}");
}

#[tokio::test]
async fn plugin_daemons_start_one_after_the_other() {
    let server = Server::start().await;
    let image = Image::new(&server, OLD, &[]);
    let (a, b) =
        (gate(&server, &image, "a", "1.14.2", "a"), gate(&server, &image, "b", "1.14.2", "a"));
    let within = Duration::from_secs(10);
    let starting = AtomicUsize::new(0);
    let go = watch::Sender::new(false);
    let start = async || {
        assert_eq!(starting.fetch_add(1, Ordering::SeqCst), 0, "two at once");
        go.subscribe().wait_for(|go| *go).await.expect("lives");
        starting.fetch_sub(1, Ordering::SeqCst);
        "healthy"
    };
    let unused = is_send(a.start_daemon(&|_| (), within, async {}));
    drop(unused);
    let report = |progress| {
        if matches!(progress, Progress::Waiting(WaitingOn::DaemonStart(_))) {
            go.send_replace(true);
        }
    };
    let (first, second) = tokio::join!(
        a.start_daemon(&report, within, start()),
        b.start_daemon(&report, within, start())
    );
    assert_eq!((first.expect("starts"), second.expect("starts")), ("healthy", "healthy"));
}
