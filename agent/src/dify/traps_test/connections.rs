//! Databases, Redis and buckets: the ways they are wired wrongly.

use super::PYTHON;
use crate::config::settings::{PostgresTls, RedisTls, SecretName};
use crate::dify::environment::CERTIFICATES;
use crate::dify::fixture::{
    RELEASES, all, everything, plain, reveal, secrets, stack, value, wired,
};
use dify_common::secret::Secret;

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
            let says = container.env.values().any(|v| reveal(v).contains(CERTIFICATES));
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
