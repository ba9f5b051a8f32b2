//! Secrets: which will do, and who may hold them.

use super::problems_with;
use crate::config::settings::SecretName;
use crate::dify::fixture::{
    RELEASES, all, everything, has_agent, plain, planted, reveal, secrets, stack, value, wired,
};
use crate::exit::Exit;
use std::collections::BTreeMap;

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
                let holds = container.env.values().any(|v| reveal(v).contains(&planted(name)));
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
        let shown = serde_json::to_string(&crate::dify::explain::explain(&stack)).expect("is JSON");
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
