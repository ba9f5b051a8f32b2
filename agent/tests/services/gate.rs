//! The migration gate with a scripted Dify image.

mod image;

use crate::link::Link;
use crate::postgres::{Server, run};
use crate::{is_send, wait_for};
use dify_agent::exit::Exit;
use dify_agent::gate::plan::Outcome;
use dify_agent::gate::{Gate, GateError, Passed, Progress, Refusal, Timings, WaitingOn};
use dify_agent::secrets::Secrets;
use sqlx::ConnectOptions as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;

use self::image::*;

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
