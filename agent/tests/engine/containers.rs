//! Containers on the real engine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use dify_agent::engine::execute::{Carried, Wanted};
use dify_agent::engine::observed::RunState;
use dify_agent::engine::plan::{Step, plan};
use dify_agent::engine::spec::{Attachment, EnvValue, FileMount, VolumeMount};
use dify_agent::engine::{EngineErrorKind, Observed};
use dify_common::secret::Secret;
use futures_util::StreamExt;
use tokio::time::Instant;

use super::bed::{Bed, guest_image, on_engine, wait_for};
use super::guest::PORT;

pub(crate) async fn observe(bed: &Bed) -> Observed {
    bed.engine.observe(bed.site.node()).await.expect("observed")
}

#[tokio::test]
async fn a_plan_is_carried_out_and_changes_nothing_the_second_time() {
    on_engine("plan", 1, async |bed: Bed| {
        let image = guest_image(&bed).await;
        let networks = [bed.network("main", 0), bed.network("inner", 1)];
        let mut api = bed.container("api", 10, "serve", &image);
        api.networks.push(Attachment {
            network: bed.name("inner"),
            address: bed.address(140),
            aliases: vec!["api-in".into()],
        });
        api.env.insert("PASSWORD".into(), EnvValue::Secret(Secret::from("hunter2")));
        api.files.push(FileMount {
            path: "/etc/own.conf".into(),
            content: "own".into(),
            mode: 0o444,
        });
        api.volumes.push(VolumeMount { volume: bed.name("data"), path: "/data".into() });
        let worker = bed.container("worker", 11, "stop-on-term", &image);
        let mut containers = vec![api, worker];

        let carry_out = async |containers: &[_]| -> Vec<(Step, Carried)> {
            let wanted = Wanted { containers, networks: &networks };
            let plan = plan(containers, &networks, &wanted.hashes(&bed.site), &observe(&bed).await);
            assert_eq!(plan.foreign_conflicts, []);
            let mut carried = Vec::new();
            for step in plan.steps.clone() {
                let first =
                    bed.engine.carry_out(&step, wanted, &bed.site).await.expect("carried out");
                let second = bed.engine.carry_out(&step, wanted, &bed.site).await.expect("again");
                assert_eq!((first, second), (Carried::Out, Carried::AlreadySo), "{step:?}");
                carried.push((step, first));
            }
            carried
        };
        assert_eq!(carry_out(&containers).await.len(), 6);
        assert_eq!(carry_out(&containers).await, [], "nothing left to do");

        let observed = observe(&bed).await;
        let found = &observed.containers[&bed.name("api")];
        assert!(found.state.is_running());
        assert_eq!((found.service.as_str(), found.release.as_str()), ("api", "1.0"));
        let expected = BTreeMap::from([
            (bed.name("main"), bed.address(10)),
            (bed.name("inner"), bed.address(140)),
        ]);
        assert_eq!(found.addresses, expected);
        assert_eq!(found.stop_timeout, Duration::from_secs(1));
        assert!(observed.volumes.contains(&bed.name("data")));
        assert!(!format!("{observed:?}").contains("hunter2"));
        for last in [10, 140] {
            let address = SocketAddr::from((bed.address(last), PORT));
            wait_for("the guest's port", async || {
                tokio::net::TcpStream::connect(address).await.is_ok()
            })
            .await;
        }

        // What changes is replaced, alone.
        let before = observe(&bed).await.containers[&bed.name("worker")].id.clone();
        containers[0].env.insert("PASSWORD".into(), EnvValue::Secret(Secret::from("hunter3")));
        let steps = carry_out(&containers).await;
        assert_eq!(steps.len(), 2);
        assert!(matches!(steps[0].0, Step::Replace { .. }), "{steps:?}");
        assert_eq!(observe(&bed).await.containers[&bed.name("worker")].id, before);

        // What dies is started again; what leaves the stack goes.
        bed.engine.kill(&bed.name("worker"), "SIGKILL").await.expect("killed");
        bed.engine
            .wait_stopped(&bed.name("worker"), Duration::from_secs(10))
            .await
            .expect("stopped");
        let state = observe(&bed).await.containers[&bed.name("worker")].state.clone();
        assert!(matches!(state, RunState::Exited { code: 137, oom: false, .. }), "{state:?}");
        assert_eq!(carry_out(&containers).await.len(), 1);
        containers.remove(0);
        assert_eq!(carry_out(&containers).await.len(), 1);
        assert_eq!(observe(&bed).await.containers.len(), 1);
        assert_eq!(bed.site.files().collect(&containers).expect("collected"), 1);
    })
    .await;
}

#[tokio::test]
async fn stopping_asks_first_and_kills_what_does_not_listen() {
    on_engine("stop", 2, async |bed: Bed| {
        let image = guest_image(&bed).await;
        bed.engine.ensure_network(&bed.network("main", 0), &bed.site).await.expect("network");
        let polite = bed.container("polite", 10, "stop-on-term", &image);
        let deaf = bed.container("deaf", 11, "serve", &image);
        for (spec, signal, code) in [
            (&polite, None, 0),
            (&polite, Some("SIGINT"), 0),
            (&deaf, None, 137),
            (&deaf, Some("SIGTERM"), 137),
        ] {
            bed.engine.create(spec, &bed.site).await.expect("created");
            bed.engine.start(&spec.name).await.expect("started");
            // Its handler must be in place: libtest says so before it runs it.
            wait_for("the guest", async || {
                let lines = bed.engine.logs(&spec.name, None, false);
                lines
                    .any(async |line| line.is_ok_and(|line| line.text.contains("running 1 test")))
                    .await
            })
            .await;
            wait_for("a handler or a listener", async || {
                let state = observe(&bed).await.containers[&spec.name].state.clone();
                let RunState::Running { pid, .. } = state else {
                    return false;
                };
                let status =
                    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let caught = status
                    .lines()
                    .find_map(|line| line.strip_prefix("SigCgt:"))
                    .unwrap_or_default();
                let caught = u64::from_str_radix(caught.trim(), 16).unwrap_or(0);
                spec.service == "deaf" || caught & (1 << 14) != 0
            })
            .await;
            let begun = Instant::now();
            bed.engine.stop(&spec.name, signal, Duration::from_secs(1)).await.expect("stopped");
            assert!(begun.elapsed() < Duration::from_secs(20));
            bed.engine
                .stop(&spec.name, signal, Duration::from_secs(1))
                .await
                .expect("again is fine");
            let state = observe(&bed).await.containers[&spec.name].state.clone();
            assert!(
                matches!(state, RunState::Exited { code: found, .. } if found == code),
                "{state:?}"
            );
            bed.engine.remove(&spec.name).await.expect("removed");
            bed.engine.remove(&spec.name).await.expect("again is fine");
            bed.engine
                .stop(&spec.name, signal, Duration::from_secs(1))
                .await
                .expect("gone is fine");
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_not_ours_is_a_conflict_and_is_left_alone() {
    on_engine("foreign", 5, async |bed: Bed| {
        let image = guest_image(&bed).await;
        let network = bed.network("main", 0);
        bed.engine.ensure_network(&network, &bed.site).await.expect("network");
        let spec = bed.container("api", 10, "serve", &image);
        bed.engine.create(&spec, &bed.site).await.expect("created");

        // The same names seen from another node.
        on_engine("other", 6, async |other: Bed| {
            let theirs = observe(&other).await;
            assert!(theirs.foreign_containers.contains(&spec.name));
            assert!(theirs.foreign_networks.contains_key(&network.name));
            let kind = |error: dify_agent::engine::EngineError| error.kind();
            assert_eq!(
                other.engine.create(&spec, &other.site).await.map_err(kind),
                Err(EngineErrorKind::Conflict)
            );
            assert_eq!(
                other.engine.ensure_network(&network, &other.site).await.map_err(kind),
                Err(EngineErrorKind::Conflict)
            );
            let once =
                other.engine.run_once(&spec, &other.site, Duration::from_secs(5), |_| ()).await;
            assert_eq!(once.map_err(kind), Err(EngineErrorKind::Conflict));
            let mut overlapping = other.network("main", 0);
            (overlapping.subnet, overlapping.gateway) = (network.subnet, network.gateway);
            assert_eq!(
                other.engine.ensure_network(&overlapping, &other.site).await.map_err(kind),
                Err(EngineErrorKind::Conflict)
            );
        })
        .await;
        assert!(observe(&bed).await.containers.contains_key(&spec.name));

        // Ours, from another spec: for the plan to replace.
        let mut changed = network.clone();
        changed.internal = true;
        let error = bed.engine.ensure_network(&changed, &bed.site).await.expect_err("stale");
        assert_eq!(error.kind(), EngineErrorKind::Stale);
    })
    .await;
}

#[tokio::test]
async fn nothing_is_left_of_a_container_that_could_not_be_made_whole() {
    on_engine("whole", 7, async |bed: Bed| {
        let image = guest_image(&bed).await;
        bed.engine.ensure_network(&bed.network("main", 0), &bed.site).await.expect("network");
        let mut spec = bed.container("api", 10, "serve", &image);
        spec.env.insert("KEY".into(), EnvValue::Secret(Secret::from("hunter2")));
        spec.networks.push(Attachment {
            network: bed.name("missing"),
            address: bed.address(140),
            aliases: vec![],
        });
        let error = bed.engine.create(&spec, &bed.site).await.expect_err("no such network");
        assert_eq!(error.kind(), EngineErrorKind::NotFound, "{error}");
        spec.networks.pop();
        spec.image = "127.0.0.1:1/wt-engine/none:1".into();
        let error = bed.engine.create(&spec, &bed.site).await.expect_err("no such image");
        assert_eq!(error.kind(), EngineErrorKind::BadImage, "{error}");
        assert!(!error.to_string().contains("hunter2"));
        assert!(observe(&bed).await.containers.is_empty());
    })
    .await;
}

#[tokio::test]
async fn events_wake_commands_run_inside_and_memory_is_read() {
    on_engine("inside", 8, async |bed: Bed| {
        let image = guest_image(&bed).await;
        bed.engine.ensure_network(&bed.network("main", 0), &bed.site).await.expect("network");
        let spec = bed.container("api", 10, "serve", &image);
        let mut events = Box::pin(bed.engine.events(bed.site.node()));
        // The subscription is made by the first poll.
        let woken = events.next();
        let made = async {
            let id = bed.engine.create(&spec, &bed.site).await.expect("created");
            bed.engine.start(&id).await.expect("started");
        };
        let (woken, ()) = tokio::join!(tokio::time::timeout(super::bed::PATIENCE, woken), made);
        assert_eq!(woken.expect("in time"), Some(Ok(())));

        let command =
            |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let bound = Duration::from_secs(20);
        let listed =
            bed.engine.exec(&spec.name, &command(&["/guest", "--list"]), bound).await.expect("ran");
        assert_eq!(listed.exit, 0);
        assert!(listed.output.contains("guest::guest: test"), "{}", listed.output);
        let wrong = bed
            .engine
            .exec(&spec.name, &command(&["/guest", "--no-such-option"]), bound)
            .await
            .expect("ran");
        assert_ne!(wrong.exit, 0);
        assert!(bed.engine.memory(&spec.name).await.expect("read") > 100 << 10);

        let mut lines = Box::pin(bed.engine.logs(&spec.name, Some(1), true));
        let last = tokio::time::timeout(bound, lines.next())
            .await
            .expect("in time")
            .expect("a line")
            .expect("read");
        assert!(!last.stderr && !last.text.is_empty());
    })
    .await;
}

#[tokio::test]
async fn the_engine_says_what_it_is_and_where_it_keeps_things() {
    on_engine("info", 9, async |bed: Bed| {
        bed.engine.ping().await.expect("answers");
        assert!(bed.engine.version().major() >= 20, "{:?}", bed.engine.version());
        assert!(bed.engine.info().await.expect("told").root.is_dir());
        let missing = dify_agent::engine::Engine::connect("/nowhere/docker.sock".as_ref())
            .await
            .expect_err("nobody");
        assert_eq!(missing.kind(), EngineErrorKind::Unreachable);
    })
    .await;
}
