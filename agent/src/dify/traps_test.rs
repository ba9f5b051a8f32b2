//! One test for each way a Dify deployment is known to go wrong.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use dify_common::secret::Secret;

use crate::config::settings::{PostgresTls, RedisTls, SecretName};
use crate::engine::spec::{FirewallRule, Probe};
use crate::exit::Exit;

use super::environment::CERTIFICATES;
use super::fixture::{
    RELEASES, all, everything, has_agent, plain, planted, secrets, service, stack, value, wired,
};

const PYTHON: [&str; 4] = ["api", "api_websocket", "worker", "worker_beat"];

fn problems_with(name: SecretName, text: &str) -> String {
    let mut settings = plain();
    settings.features.agent = true;
    let mut secrets = secrets();
    secrets.insert(name, Secret::from(text));
    wired(&settings, &secrets, "1.17.1").map_or_else(|error| error.to_string(), |_| String::new())
}

#[test]
fn event_bus_url_is_explicit_with_tls_options_and_streams() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        for service in PYTHON {
            let url = value(&stack, service, "EVENT_BUS_REDIS_URL").expect("is set");
            assert!(url.starts_with("rediss://:") && url.contains("@10.1.0.5:6378/0?"), "{url}");
            assert!(
                url.ends_with(
                    "?ssl_cert_reqs=required&ssl_ca_certs=/etc/dify/ca.pem&ssl_check_hostname=true"
                ),
                "{url}"
            );
            let kind = value(&stack, service, "EVENT_BUS_REDIS_CHANNEL_TYPE");
            assert_eq!(kind.as_deref(), Some("streams"));
        }
    }
    let mut unchecked = plain();
    unchecked.redis.tls = RedisTls::NoVerify;
    let url = value(&stack(&unchecked, "1.14.2"), "api", "EVENT_BUS_REDIS_URL").expect("is set");
    assert!(url.ends_with("?ssl_cert_reqs=none&ssl_check_hostname=false"), "{url}");
    unchecked.redis.tls = RedisTls::Disable;
    let url = value(&stack(&unchecked, "1.14.2"), "api", "EVENT_BUS_REDIS_URL").expect("is set");
    assert!(url.starts_with("redis://") && url.ends_with("/0"), "{url}");
}

#[test]
fn redis_auth_is_quoted_in_urls_and_raw_elsewhere() {
    let auth = "a b/c@d:e#f?g%h+i";
    let mut secrets = secrets();
    secrets.insert(SecretName::RedisPassword, Secret::from(auth));
    let stack = wired(&plain(), &secrets, "1.14.2").expect("wires");
    let quoted = "rediss://:a%20b%2Fc%40d%3Ae%23f%3Fg%25h%2Bi@10.1.0.5:6378/1";
    assert_eq!(value(&stack, "worker", "CELERY_BROKER_URL").as_deref(), Some(quoted));
    assert_eq!(value(&stack, "worker", "REDIS_PASSWORD").as_deref(), Some(auth));
    assert_eq!(value(&stack, "plugin_daemon", "REDIS_PASSWORD").as_deref(), Some(auth));
}

#[test]
fn db_extras_is_not_shared_with_the_daemon() {
    let stack = stack(&plain(), "1.14.2");
    let extras = value(&stack, "api", "DB_EXTRAS").expect("is set");
    assert_eq!(extras, "sslmode=verify-ca&sslrootcert=/etc/dify/ca.pem");
    assert_eq!(value(&stack, "plugin_daemon", "DB_EXTRAS"), None);
}

#[test]
fn daemon_sslmode_is_one_it_accepts() {
    for (tls, mode, root) in [
        (PostgresTls::Disable, "disable", None),
        (PostgresTls::Require, "require", None),
        (PostgresTls::VerifyCa, "require", Some(CERTIFICATES)),
    ] {
        let mut settings = plain();
        settings.database.tls = tls;
        let stack = stack(&settings, "1.14.2");
        assert_eq!(value(&stack, "plugin_daemon", "DB_SSL_MODE").as_deref(), Some(mode));
        assert_eq!(value(&stack, "plugin_daemon", "PGSSLROOTCERT").as_deref(), root);
    }
}

#[test]
fn password_characters_the_daemon_dsn_cannot_carry_are_refused_with_the_reason() {
    for bad in ["has space 1234", "has'quote12", "has\"quote12", "back\\slash12"] {
        let said = problems_with(SecretName::DatabasePassword, bad);
        assert!(
            said.contains("secrets.database_password: contains a space, quote or backslash"),
            "{said}"
        );
        assert!(said.contains("connection string") && !said.contains(bad), "{said}");
    }
    // The vector database is not the daemon's.
    assert_eq!(problems_with(SecretName::VectorPassword, "has space'and quote"), "");
    let mut settings = plain();
    settings.plugin_database = "dify plugin".into();
    let error = wired(&settings, &secrets(), "1.14.2").expect_err("is refused");
    assert!(error.to_string().contains("plugin_database: contains a space"), "{error}");
}

#[test]
fn pgvector_tls_comes_from_libpqs_environment_and_may_differ_from_the_main_database() {
    let mut settings = plain();
    settings.database.tls = PostgresTls::Require;
    let stack = stack(&settings, "1.14.2");
    for service in ["api", "worker"] {
        assert_eq!(value(&stack, service, "PGSSLMODE").as_deref(), Some("verify-ca"));
        assert_eq!(value(&stack, service, "PGSSLROOTCERT").as_deref(), Some(CERTIFICATES));
        assert_eq!(value(&stack, service, "PGVECTOR_PORT").as_deref(), Some("5432"));
        assert_eq!(value(&stack, service, "DB_EXTRAS").as_deref(), Some("sslmode=require"));
    }
}

#[test]
fn verification_without_a_ca_is_refused() {
    let mut settings = plain();
    settings.certificates = None;
    let error = wired(&settings, &secrets(), "1.14.2").expect_err("is refused").to_string();
    for path in ["database.tls", "vector.tls", "redis.tls"] {
        assert!(error.contains(&format!("{path}: wants the server's certificate")), "{error}");
    }
}

#[test]
fn the_ca_bundle_is_where_the_environment_says() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        for container in all(&stack) {
            let says =
                container.env.values().any(|v| super::fixture::reveal(v).contains(CERTIFICATES));
            let has = container.files.iter().any(|f| f.path == CERTIFICATES);
            assert_eq!(says, has, "{release}: {}", container.service);
        }
    }
}

#[test]
fn plugin_storage_is_the_bucket_under_a_prefix_of_its_own() {
    for release in RELEASES {
        let stack = stack(&plain(), release);
        for (key, expected) in [
            ("PLUGIN_STORAGE_TYPE", "gcs"),
            ("PLUGIN_STORAGE_OSS_BUCKET", "plugins-of-dify"),
            ("PLUGIN_INSTALLED_PATH", "plugins"),
            ("PLUGIN_REMOTE_INSTALLING_ENABLED", "false"),
            ("FORCE_VERIFYING_SIGNATURE", "true"),
        ] {
            assert_eq!(value(&stack, "plugin_daemon", key).as_deref(), Some(expected), "{key}");
        }
    }
}

#[test]
fn bucket_access_is_keyless() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        for container in all(&stack) {
            for key in [
                "GOOGLE_STORAGE_SERVICE_ACCOUNT_JSON_BASE64",
                "GCS_CREDENTIALS",
                "GOOGLE_APPLICATION_CREDENTIALS",
            ] {
                assert!(!container.env.contains_key(key), "{}", container.service);
            }
        }
        assert_eq!(value(&stack, "api", "STORAGE_TYPE").as_deref(), Some("google-storage"));
    }
}

#[test]
fn simulated_google_reaches_those_that_need_it_and_real_google_needs_nothing() {
    let (simulated, real) = (stack(&everything("1.14.2"), "1.14.2"), stack(&plain(), "1.14.2"));
    for service in PYTHON.into_iter().chain(["plugin_daemon", "migration", "job"]) {
        let emulator = value(&simulated, service, "STORAGE_EMULATOR_HOST");
        assert_eq!(emulator.as_deref(), Some("http://10.88.1.1:4443"), "{service}");
        let metadata = value(&simulated, service, "GCE_METADATA_HOST");
        assert_eq!(metadata.as_deref(), Some("10.88.1.1:8080"), "{service}");
    }
    for container in all(&real) {
        assert!(!container.env.contains_key("STORAGE_EMULATOR_HOST"));
        assert!(!container.env.contains_key("GCE_METADATA_HOST"));
    }
    for service in ["web", "sandbox", "ssrf_proxy"] {
        assert_eq!(value(&simulated, service, "GCE_METADATA_HOST"), None);
    }
}

#[test]
fn every_url_users_see_is_https_on_the_public_host() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        for service in ["api", "worker", "api_websocket"] {
            for key in [
                "CONSOLE_API_URL",
                "CONSOLE_WEB_URL",
                "SERVICE_API_URL",
                "APP_WEB_URL",
                "TRIGGER_URL",
                "FILES_URL",
            ] {
                let url = value(&stack, service, key);
                assert_eq!(url.as_deref(), Some("https://dify.example.com"), "{service}.{key}");
            }
            let template = value(&stack, service, "ENDPOINT_URL_TEMPLATE");
            assert_eq!(template.as_deref(), Some("https://dify.example.com/e/{hook_id}"));
            let inner = value(&stack, service, "INTERNAL_FILES_URL");
            assert_eq!(inner.as_deref(), Some("http://api:5001"));
        }
        for (key, expected) in [
            ("CONSOLE_API_URL", "https://dify.example.com"),
            ("APP_API_URL", "https://dify.example.com"),
            ("NEXT_PUBLIC_SOCKET_URL", "wss://dify.example.com"),
        ] {
            assert_eq!(value(&stack, "web", key).as_deref(), Some(expected));
        }
    }
}

#[test]
fn published_default_secrets_are_refused() {
    for (name, text) in [
        (SecretName::SecretKey, "sk-9f73s3ljTXVcMT3Blb3ljTqtsKiGHXVcMT3BlbkFJLK7U"),
        (SecretName::DatabasePassword, "difyai123456"),
        (SecretName::VectorPassword, "difyai123456"),
        (SecretName::RedisPassword, "difyai123456"),
        (SecretName::PluginDaemonKey, "lYkiYYT6owG+71oLerGzA7GXCgOT++6ovaezWAjpCjf+Sjc3ZtU+qUEi"),
        (SecretName::PluginDaemonKey, "plugin-api-key"),
        (SecretName::InnerApiKey, "QaHbTe77CtuXmsfyhR7+vRjI/+XbV1AaFy691iy+kGDv2Jvy0/eAh8Y1"),
        (SecretName::InnerApiKey, "inner-api-key"),
        (SecretName::CodeExecutionKey, "dify-sandbox"),
        (SecretName::AgentServerKey, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"),
        (SecretName::AgentApiToken, "dify-agent-run-token-for-dev-only"),
    ] {
        let said = problems_with(name, text);
        let expected = format!("secrets.{}: is a default published", name.as_str());
        assert!(said.contains(&expected) && !said.contains(text), "{said}");
        // A default is one in every place.
        assert!(problems_with(SecretName::ShellctlToken, text).contains("published"));
    }
}

#[test]
fn init_password_guards_setup_or_setup_is_refused() {
    let said = problems_with(SecretName::InitPassword, &"x".repeat(31));
    assert!(
        said.contains("secrets.init_password: has 31 characters, Dify accepts at most 30"),
        "{said}"
    );
    assert_eq!(problems_with(SecretName::InitPassword, &"x".repeat(30)), "");

    let guarded = stack(&plain(), "1.14.2");
    assert!(guarded.setup_refusals.is_empty());
    assert!(value(&guarded, "api", "INIT_PASSWORD").is_some());
    let mut secrets = secrets();
    secrets.remove(&SecretName::InitPassword);
    for release in RELEASES {
        let open = wired(&plain(), &secrets, release).expect("wires");
        let prefixes: Vec<&str> = open.setup_refusals.iter().map(|r| r.prefix.as_str()).collect();
        assert_eq!(prefixes, ["/console/api/setup", "/console/api/init", "/install", "/init"]);
        assert!(open.setup_refusals.iter().all(|r| r.status == 403));
        assert!(open.findings.iter().any(|f| f.code == "setup-unguarded"));
        assert_eq!(value(&open, "api", "INIT_PASSWORD"), None);
    }
}

#[test]
fn secrets_have_the_length_and_shape_their_readers_want() {
    for (name, text, part) in [
        (SecretName::SecretKey, "x".repeat(41), "has 41 characters, expected at least 42"),
        (SecretName::PluginDaemonKey, "x".repeat(15), "has 15 characters"),
        (SecretName::AgentServerKey, "A".repeat(42), "is not 32 bytes as base64url"),
        (
            SecretName::AgentServerKey,
            format!("{}=", "A".repeat(43)),
            "is not 32 bytes as base64url",
        ),
        (
            SecretName::AgentServerKey,
            format!("{}/", "A".repeat(42)),
            "is not 32 bytes as base64url",
        ),
        (
            SecretName::RedisPassword,
            "ends-in-a-line-end\n".to_owned(),
            "contains a control character",
        ),
        (SecretName::VectorPassword, String::new(), "is empty"),
    ] {
        let said = problems_with(name, &text);
        assert!(said.contains(&format!("secrets.{}: {part}", name.as_str())), "{said}");
    }
    assert_eq!(problems_with(SecretName::AgentServerKey, &"A".repeat(43)), "");
}

#[test]
fn missing_secrets_are_named_all_at_once() {
    let error = wired(&plain(), &BTreeMap::new(), "1.14.2").expect_err("is refused");
    for name in [
        "secret_key",
        "database_password",
        "vector_password",
        "plugin_daemon_key",
        "inner_api_key",
        "code_execution_key",
    ] {
        assert!(error.to_string().contains(&format!("secrets.{name}: is missing")), "{error}");
    }
    assert_eq!(error.exit(), Exit::Secret);
    assert_eq!(error.problems.iter().count(), 6);
}

#[test]
fn shared_keys_are_equal_on_both_sides() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        let mut pairs = vec![
            (("api", "PLUGIN_DAEMON_KEY"), ("plugin_daemon", "SERVER_KEY")),
            (("worker", "INNER_API_KEY_FOR_PLUGIN"), ("plugin_daemon", "DIFY_INNER_API_KEY")),
            (("worker", "CODE_EXECUTION_API_KEY"), ("sandbox", "API_KEY")),
            (("api", "SECRET_KEY"), ("worker_beat", "SECRET_KEY")),
        ];
        if has_agent(release) {
            pairs.push((
                ("api", "AGENT_BACKEND_API_TOKEN"),
                ("agent_backend", "DIFY_AGENT_API_TOKEN"),
            ));
            pairs.push((
                ("api", "PLUGIN_DAEMON_KEY"),
                ("agent_backend", "DIFY_AGENT_PLUGIN_DAEMON_API_KEY"),
            ));
            let token = if release == "1.16.1" {
                "DIFY_AGENT_SHELLCTL_AUTH_TOKEN"
            } else {
                "DIFY_AGENT_LOCAL_SANDBOX_AUTH_TOKEN"
            };
            pairs.push((("local_sandbox", "SHELLCTL_AUTH_TOKEN"), ("agent_backend", token)));
        }
        for ((a, key_a), (b, key_b)) in pairs {
            let one = value(&stack, a, key_a);
            assert!(one.is_some(), "{a}.{key_a}");
            assert_eq!(one, value(&stack, b, key_b), "{a}.{key_a} and {b}.{key_b}");
        }
    }
}

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
fn the_api_never_goes_out_unfiltered() {
    for release in RELEASES {
        let stack = stack(&plain(), release);
        for service in ["api", "worker"] {
            for key in ["SSRF_PROXY_HTTP_URL", "SSRF_PROXY_HTTPS_URL"] {
                assert_eq!(value(&stack, service, key).as_deref(), Some("http://ssrf_proxy:3128"));
            }
        }
        assert_eq!(
            value(&stack, "sandbox", "HTTPS_PROXY").as_deref(),
            Some("http://ssrf_proxy:3128")
        );
    }
}

#[test]
fn user_code_shares_a_network_with_its_proxy_alone() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        let on = |network: &str| -> Vec<&str> {
            all(&stack)
                .filter(|c| c.networks.iter().any(|leg| leg.network == network))
                .map(|c| c.service.as_str())
                .collect()
        };
        assert_eq!(on("dify-dify-x7f2-sandbox"), ["ssrf_proxy", "sandbox"]);
        assert_eq!(on("dify-dify-x7f2-code"), ["api", "ssrf_proxy", "worker", "migration", "job"]);
        let sandbox = service(&stack, "sandbox");
        assert_eq!(sandbox.networks.len(), 1);
        assert!(sandbox.cap_drop.contains(&"NET_RAW".to_owned()) && sandbox.no_new_privileges);
        for network in &stack.networks {
            assert_eq!(network.internal, !network.name.ends_with("-main"), "{}", network.name);
        }
        // api and worker say `sandbox` and reach the proxy's relay.
        assert_eq!(
            value(&stack, "worker", "CODE_EXECUTION_ENDPOINT").as_deref(),
            Some("http://sandbox:8194")
        );
        let relay = service(&stack, "ssrf_proxy")
            .networks
            .iter()
            .find(|leg| leg.network.ends_with("-code"));
        assert_eq!(relay.expect("is there").aliases, ["ssrf_proxy", "sandbox"]);
        let bridges: Vec<&str> = stack
            .firewall
            .iter()
            .map(|FirewallRule::CloseHost { bridge }| bridge.as_str())
            .collect();
        assert!(bridges.contains(&"dify-0a5801-s"), "{bridges:?}");
        assert!(!bridges.contains(&"dify-0a5801-m"), "{bridges:?}");
    }
}

#[test]
fn the_proxy_denies_private_and_metadata_addresses_before_it_allows_anything() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        for name in ["ssrf_proxy", "agent_ssrf_proxy"] {
            let Some(proxy) = stack.containers.iter().find(|c| c.service == name) else {
                assert!(!has_agent(release));
                continue;
            };
            let conf = &proxy.files[0].content;
            let place = |line: &str| {
                conf.lines()
                    .position(|l| l.starts_with(line))
                    .unwrap_or_else(|| panic!("{line} in {conf}"))
            };
            for range in [
                "169.254.0.0/16",
                "10.0.0.0/8",
                "172.16.0.0/12",
                "192.168.0.0/16",
                "127.0.0.0/8",
                "100.64.0.0/10",
                "fc00::/7",
                "fe80::/10",
            ] {
                assert!(conf.contains(range), "{range}");
            }
            let open = conf.lines().position(|l| l == "http_access allow clients").expect("opens");
            assert!(place("http_access deny to_private") < open);
            assert!(place("http_access deny CONNECT !tunnel_ports") < open);
            assert!(place("acl tunnel_ports port 443") < open);
            assert_eq!(
                conf.lines().rfind(|l| l.starts_with("http_access")),
                Some("http_access deny all")
            );
        }
    }
}

#[test]
fn socket_io_has_an_upstream_only_with_collaboration() {
    for (settings, on) in [(plain(), false), (everything("1.14.2"), true)] {
        let stack = stack(&settings, "1.14.2");
        assert_eq!(stack.upstreams.contains_key("api_websocket"), on);
        assert_eq!(stack.routes.iter().any(|r| r.prefix == "/socket.io/"), on);
        assert_eq!(stack.refusals.iter().any(|r| r.prefix == "/socket.io/"), !on);
        for route in &stack.routes {
            assert!(stack.upstreams.contains_key(&route.upstream), "{route:?}");
        }
    }
}

#[test]
fn inner_api_is_refused_and_only_hooks_reach_the_daemon() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        assert!(stack.refusals.iter().any(|r| r.prefix == "/inner/api" && r.status == 404));
        let daemon: Vec<_> =
            stack.routes.iter().filter(|r| r.upstream == "plugin_daemon").collect();
        assert!(daemon.len() == 1 && daemon[0].prefix == "/e/" && daemon[0].hook_url);
    }
}

#[test]
fn idle_connections_take_no_slot_of_the_api() {
    for release in RELEASES {
        for (name, upstream) in &stack(&everything(release), release).upstreams {
            assert_eq!(upstream.pooled, name == "web", "{name}");
        }
    }
}

#[test]
fn the_api_is_asked_by_http_and_the_worker_by_its_own_name() {
    let stack = stack(&everything("1.14.2"), "1.14.2");
    for (service, path) in
        [("api", "/health"), ("plugin_daemon", "/health/check"), ("sandbox", "/health")]
    {
        assert!(
            matches!(&self::service(&stack, service).probe, Probe::Http { path: p, .. } if p == path),
            "{service}"
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
            if !matches!(container.service.as_str(), "api" | "web") {
                assert!(!container.after.is_empty(), "{} takes the api's cores", container.service);
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

/// Which secrets each service may hold. A secret that turns up elsewhere, in
/// whatever form, fails.
#[test]
fn each_container_receives_only_its_own_secrets() {
    use SecretName::{
        AgentApiToken, AgentServerKey, CodeExecutionKey, DatabasePassword, InitPassword,
        InnerApiKey, PluginDaemonKey, RedisPassword, SecretKey, ShellctlToken, VectorPassword,
    };
    let base = [SecretKey, DatabasePassword, RedisPassword];
    let client = [VectorPassword, PluginDaemonKey, InnerApiKey, CodeExecutionKey];
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        for container in all(&stack) {
            let mut allowed: Vec<SecretName> = match container.service.as_str() {
                "api" => [&base[..], &client, &[InitPassword]].concat(),
                "worker" | "job" => [&base[..], &client].concat(),
                "api_websocket" | "worker_beat" => base.to_vec(),
                "migration" => [&base[..], &[VectorPassword]].concat(),
                "plugin_daemon" => {
                    vec![DatabasePassword, RedisPassword, PluginDaemonKey, InnerApiKey]
                }
                "sandbox" => vec![CodeExecutionKey],
                "agent_backend" => vec![
                    RedisPassword,
                    PluginDaemonKey,
                    InnerApiKey,
                    AgentServerKey,
                    AgentApiToken,
                    ShellctlToken,
                ],
                "local_sandbox" => vec![ShellctlToken],
                "web" | "ssrf_proxy" | "agent_ssrf_proxy" => vec![],
                other => panic!("decide what {other} may hold"),
            };
            if has_agent(release) && matches!(container.service.as_str(), "api" | "worker" | "job")
            {
                allowed.push(AgentApiToken);
            }
            for name in SecretName::ALL {
                let holds = container
                    .env
                    .values()
                    .any(|v| super::fixture::reveal(v).contains(&planted(name)));
                assert_eq!(
                    holds,
                    allowed.contains(&name),
                    "{release}: {} and {}",
                    container.service,
                    name.as_str()
                );
            }
            for file in &container.files {
                assert!(!file.content.contains("planted"), "{}", file.path);
            }
        }
    }
}

#[test]
fn no_secret_is_shown() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        let shown = serde_json::to_string(&super::explain::explain(&stack)).expect("is JSON");
        for text in [shown, format!("{stack:?}")] {
            assert!(!text.contains("planted"), "{release}");
            assert!(text.contains("REDACTED"));
        }
    }
}

#[test]
fn the_operator_sets_what_the_manifest_leaves_open_and_nothing_else() {
    let with = |service: &str, key: &str| {
        let mut settings = plain();
        settings.environment.insert(service.into(), BTreeMap::from([(key.into(), "x1".into())]));
        wired(&settings, &secrets(), "1.14.2")
    };
    let stack = with("api", "UPLOAD_FILE_SIZE_LIMIT").expect("is open");
    assert_eq!(value(&stack, "api", "UPLOAD_FILE_SIZE_LIMIT").as_deref(), Some("x1"));
    assert_eq!(value(&stack, "worker", "UPLOAD_FILE_SIZE_LIMIT").as_deref(), Some("15"));
    for (service, key, part) in [
        ("api", "SECRET_KEY", "environment.api.SECRET_KEY: carries a secret"),
        ("api", "CONSOLE_API_URL", "environment.api.CONSOLE_API_URL: is derived"),
        ("api", "MIGRATION_ENABLED", "environment.api.MIGRATION_ENABLED: is fixed"),
        ("api", "UPLOAD_FILE_SIZE", "environment.api.UPLOAD_FILE_SIZE: is not in the manifest"),
        ("nginx", "X", "environment.nginx: is no service of release 1.14.2"),
    ] {
        let error = with(service, key).expect_err("is refused").to_string();
        assert!(error.contains(part), "{error}");
    }
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
fn agent_services_are_refused_where_the_release_has_none() {
    let mut settings = plain();
    settings.features.agent = true;
    let error = wired(&settings, &secrets(), "1.15.0").expect_err("is refused").to_string();
    assert!(
        error.contains("features.agent: is on, but release 1.15.0 has no agent services"),
        "{error}"
    );
    let off = stack(&plain(), "1.17.1");
    assert!(off.containers.iter().all(|c| !c.service.contains("agent")));
    assert_eq!(value(&off, "api", "AGENT_BACKEND_BASE_URL"), None);
    assert_eq!(value(&off, "web", "NEXT_PUBLIC_ENABLE_AGENT_V2").as_deref(), Some("false"));
}
