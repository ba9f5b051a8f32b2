//! Sizes, start, stop, migration, releases.

use super::PYTHON;
use crate::dify::fixture::{
    MACHINE, RELEASES, all, everything, plain, release, secrets, service, stack, value, wired,
};
use crate::dify::stack::Machine;
use crate::dify::wire;
use crate::engine::spec::Probe;
use crate::exit::Exit;
use crate::release::Lock;
use crate::release::lock::Locked;
use std::num::NonZeroU32;

#[test]
fn worker_connections_are_never_ten() {
    let ours = stack(&plain(), "1.14.2");
    assert_eq!(value(&ours, "api", "SERVER_WORKER_CONNECTIONS").as_deref(), Some("200"));
    assert_eq!(ours.upstreams["api"].max_in_flight, 400);
    let mut settings = plain();
    settings.capacity.api_connections = NonZeroU32::new(10);
    let error = wired(&settings, &secrets(), "1.14.2").expect_err("is refused");
    assert!(error.to_string().contains("capacity.api_connections: is 10"), "{error}");
    assert_eq!(error.exit(), Exit::Configuration);
}

#[test]
fn migration_enabled_is_true_for_the_migration_alone() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        assert_eq!(value(&stack, "migration", "MIGRATION_ENABLED").as_deref(), Some("true"));
        assert_eq!(value(&stack, "migration", "MODE").as_deref(), Some("migration"));
        for service in PYTHON.into_iter().chain(["job"]) {
            let enabled = value(&stack, service, "MIGRATION_ENABLED");
            assert_eq!(enabled.as_deref(), Some("false"), "{service}");
        }
        assert_eq!(value(&stack, "job", "MODE").as_deref(), Some("job"));
    }
}

#[test]
fn logs_stay_on_stdout_and_queues_are_left_to_the_image() {
    for release in RELEASES {
        let stack = stack(&plain(), release);
        for service in ["api", "worker", "worker_beat"] {
            assert_eq!(value(&stack, service, "LOG_FILE").as_deref(), Some(""), "{service}");
        }
        assert_eq!(value(&stack, "worker", "CELERY_QUEUES"), None);
        assert_eq!(value(&stack, "worker", "CELERY_WORKER_QUEUES"), None);
    }
}

#[test]
fn what_moved_between_releases_is_where_each_release_reads_it() {
    let at = |release: &str, service: &str, key: &str| {
        value(&stack(&everything(release), release), service, key)
    };
    assert_eq!(at("1.16.1", "api", "EDITION").as_deref(), Some("SELF_HOSTED"));
    assert_eq!(at("1.17.1", "api", "EDITION"), None);
    assert_eq!(at("1.17.1", "api", "DEPLOYMENT_EDITION").as_deref(), Some("COMMUNITY"));
    assert_eq!(at("1.14.2", "plugin_daemon", "PIP_MIRROR_AUTO_DETECT"), None);
    assert_eq!(at("1.15.0", "plugin_daemon", "PIP_MIRROR_AUTO_DETECT").as_deref(), Some("false"));
    assert_eq!(
        at("1.16.1", "agent_backend", "DIFY_AGENT_SHELLCTL_ENTRYPOINT").as_deref(),
        Some("http://local_sandbox:5004")
    );
    assert_eq!(
        at("1.17.1", "agent_backend", "DIFY_AGENT_LOCAL_SANDBOX_ENDPOINT").as_deref(),
        Some("http://local_sandbox:5004")
    );
    let openapi = |release: &str| {
        stack(&plain(), release).routes.iter().any(|route| route.prefix == "/openapi")
    };
    assert!(!openapi("1.14.2") && openapi("1.15.0"));
}

#[test]
fn the_api_is_asked_by_http_and_the_worker_by_its_own_name() {
    let stack = stack(&everything("1.14.2"), "1.14.2");
    for (name, path) in
        [("api", "/health"), ("plugin_daemon", "/health/check"), ("sandbox", "/health")]
    {
        assert!(
            matches!(&service(&stack, name).probe, Probe::Http { path: p, .. } if p == path),
            "{name}"
        );
    }
    let worker = service(&stack, "worker");
    assert_eq!(worker.hostname.as_deref(), Some("worker-dify-x7f2"));
    let Probe::Exec { command, deadline } = &worker.probe else {
        panic!("{:?}", worker.probe);
    };
    assert!(command.contains(&"celery@worker-dify-x7f2".to_owned()));
    assert!(deadline.as_secs() >= 20, "Python alone takes 8 s");
}

#[test]
fn host_names_are_labels_however_long_the_node_is_called() {
    let mut settings = plain();
    settings.node = format!("a{}-x7f2", "b".repeat(57)).parse().expect("an id");
    let stack = stack(&settings, "1.14.2");
    let hostname = service(&stack, "worker").hostname.clone().expect("is set");
    assert!(hostname.len() <= 63 && hostname.ends_with("-x7f2"), "{hostname}");
}

#[test]
fn what_serves_starts_first_and_the_daemon_stops_last() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        assert_eq!(stack.containers[0].service, "api");
        assert!(stack.containers[0].after.is_empty());
        let mut started: Vec<&str> = Vec::new();
        for container in &stack.containers {
            for need in &container.after {
                assert!(started.contains(&need.as_str()), "{} needs {need}", container.service);
            }
            // No more start at once than there are cores (the reconciler's plan),
            // and a core that is contended goes to the api.
            let light = ["web", "ssrf_proxy", "agent_ssrf_proxy"];
            if container.service != "api" && !light.contains(&container.service.as_str()) {
                let shares = container.limits.cpu_shares.unwrap_or(1024);
                assert!(shares < 1024, "{} takes the api's cores", container.service);
            }
            started.push(&container.service);
        }
        let order = |name: &str| service(&stack, name).stop_order;
        let last = stack.containers.iter().map(|c| c.stop_order).max();
        assert_eq!(Some(order("plugin_daemon")), last);
        assert!(order("worker_beat") < order("api") && order("api") < order("worker"));
        let limit: u64 = value(&stack, "worker", "WORKFLOW_MAX_EXECUTION_TIME")
            .and_then(|text| text.parse().ok())
            .expect("is set");
        assert!(service(&stack, "worker").stop_timeout.as_secs() > limit);
    }
}

#[test]
fn the_budget_counts_every_pool_that_is_wired() {
    let stack = stack(&everything("1.14.2"), "1.14.2");
    assert_eq!(
        stack.budget.database_arithmetic,
        "(api 3 x 20 + plugin_daemon 1 x 20 + worker 1 x 20 + api_websocket 1 x 10 + worker_beat 1 x 4 + agent 1 x 3) x 4 VMs + migration 40 = 508"
    );
    assert_eq!(
        stack.budget.vector_arithmetic,
        "(api 3 x 10 + worker 1 x 10 + agent 1 x 1) x 4 VMs = 164"
    );
}

#[test]
fn an_unlocked_release_is_refused_unless_told_otherwise() {
    let mut settings = plain();
    settings.images.allow_unlocked = false;
    let error = wired(&settings, &secrets(), "1.14.2").expect_err("is refused");
    assert!(error.to_string().contains("run `dify-agent releases lock`"), "{error}");
    assert_eq!(error.exit(), Exit::Manifest);
    settings.images.allow_unlocked = true;
    let open = stack(&settings, "1.14.2");
    assert!(open.findings.iter().any(|f| f.code == "unlocked-release"));
}

#[test]
fn a_locked_release_runs_by_digest_through_the_mirror() {
    let manifest = release("1.14.2");
    let digest = format!("sha256:{}", "0".repeat(64));
    let mut lock = Lock::new(manifest.release.clone());
    for image in manifest.images() {
        lock.images.insert(
            image.to_owned(),
            Locked {
                digest: digest.parse().expect("a digest"),
                media_type: "application/vnd.oci.image.index.v1+json".into(),
                registry: "registry-1.docker.io".into(),
                resolved_at: "2026-11-22T00:00:00Z".into(),
            },
        );
    }
    let mut settings = plain();
    settings.images.allow_unlocked = false;
    settings.images.mirror = Some("mirror.example/hub/".into());
    let stack = wire(&settings, &secrets(), &manifest, Some(&lock), MACHINE).expect("wires");
    for container in all(&stack) {
        assert!(container.image.starts_with("mirror.example/hub/"), "{}", container.image);
        assert!(container.image.ends_with(&format!("@{digest}")), "{}", container.image);
    }
    assert!(stack.findings.iter().all(|f| f.code != "unlocked-release"));

    lock.images.remove("langgenius/dify-web:1.14.2");
    let error =
        wire(&settings, &secrets(), &manifest, Some(&lock), MACHINE).expect_err("is refused");
    assert!(
        error.to_string().contains("images.lock.langgenius/dify-web:1.14.2: is not in the lock"),
        "{error}"
    );
    assert_eq!(error.exit(), Exit::Manifest);
}

#[test]
fn a_release_with_published_holes_is_a_finding() {
    for (name, known) in [("1.14.1", true), ("1.9.3", true), ("1.14.2", false), ("1.15.0", false)] {
        let mut manifest = release("1.14.2");
        manifest.release = name.parse().expect("an id");
        let stack = wire(&plain(), &secrets(), &manifest, None, MACHINE).expect("wires");
        let found = stack.findings.iter().any(|f| f.code == "known-vulnerabilities");
        assert_eq!(found, known, "{name}");
    }
}

#[test]
fn a_machine_too_small_for_the_services_is_a_finding() {
    let small = Machine { cores: 2, memory: 2 << 30 };
    let stack = wire(&plain(), &secrets(), &release("1.14.2"), None, small).expect("wires");
    assert!(stack.findings.iter().any(|f| f.code == "small-machine"));
    assert!(self::stack(&plain(), "1.14.2").findings.iter().all(|f| f.code != "small-machine"));
}
