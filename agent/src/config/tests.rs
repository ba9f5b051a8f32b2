//! The document as a whole: the shipped example, a table of mistakes, and
//! damaged documents.

use std::collections::BTreeSet;
use std::path::Path;

use dify_common::settings::Problems;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use super::settings::{PostgresTls, RedisTls, SecretName};
use super::{Overrides, Settings};

mod documented;
mod mistakes;
mod source;

const EXAMPLE: &str = include_str!("../../../packaging/config.example.yaml");
/// A text that must never come back in any message.
const PLANTED: &str = "hunter2hunter2";

fn machine() -> Overrides {
    Overrides { machine: Some("dify-x7f2".parse().expect("a node id")), ..Overrides::default() }
}

fn parse(yaml: &str) -> Result<Settings, Problems> {
    Settings::parse(yaml, &machine())
}

/// The example with `from` replaced, which must be there.
fn changed(from: &str, to: &str) -> String {
    assert!(EXAMPLE.contains(from), "{from:?} is not in the example");
    EXAMPLE.replacen(from, to, 1)
}

/// The example with every key given a value.
fn everything() -> String {
    changed(
        "features:\n  collaboration: false\n  agent: false\n",
        "features: {collaboration: true, agent: true}\n",
    )
    .replacen(
        "  secret_key:",
        "  agent_server_key: sm://p/a/3\n  agent_api_token: file:///run/keys/b\n  \
         shellctl_token: sm://p/c\n  secret_key:",
        1,
    )
    .replacen(
        "  max_vms: 4\n",
        "  max_vms: 4\n  api_workers: 2\n  api_connections: 200\n  celery_concurrency: 4\n  \
         pool_size: 5\n  pool_overflow: 0\nimages: {mirror: \"eu.example.com:5000/p/hub\", \
         concurrency: 2, allow_unlocked: true, releases_dir: /etc/dify-agent/releases}\n\
         google: {secret_manager: \"http://127.0.0.1:1/sm\", storage: \"http://localhost:2\", \
         metadata: \"127.0.0.1:3\"}\npaths: {state: /s, run: /r, docker: /d}\n\
         ops: {listen: \"[::1]:0\"}\nliveness: {docker_after: 90s, disk_after: 1h, agent_after: 1s}\n",
        1,
    )
}

#[test]
fn every_document_we_ship_parses() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    let mut found = 0;
    for entry in std::fs::read_dir(folder).expect("packaging/ is there") {
        let path = entry.expect("readable").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("config") {
            let yaml = std::fs::read_to_string(&path).expect("readable");
            if let Err(problems) = parse(&yaml) {
                panic!("{name}: {problems}");
            }
            found += 1;
        }
    }
    assert!(found > 0, "no document found");
}

#[test]
fn defaults_are_filled_in() {
    let settings = parse(EXAMPLE).expect("the example is valid");
    assert_eq!(settings.node.as_str(), "dify-x7f2");
    assert_eq!(settings.network.base.to_string(), "10.213.0.0");
    assert_eq!(settings.database.port, 5432);
    assert_eq!(settings.database.tls, PostgresTls::VerifyCa);
    assert_eq!(settings.redis.tls, RedisTls::Verify);
    assert_eq!(settings.bucket.plugins, settings.bucket.name);
    assert_eq!(settings.images.concurrency.get(), 4);
    assert_eq!(settings.paths.ops.to_string(), "127.0.0.1:1081");
    assert_eq!(settings.environment["api"]["UPLOAD_FILE_SIZE_LIMIT"], "50");
    assert_eq!(
        settings.secrets[&SecretName::RedisPassword].to_string(),
        "sm://example-project/dify-redis-auth/latest"
    );
}

#[test]
fn what_is_known_from_outside_wins_or_fills_in() {
    let overrides = Overrides {
        release: "1.15.0".parse().ok(),
        node: "chosen".parse().ok(),
        machine: "machine".parse().ok(),
    };
    let yaml = changed("release: 1.14.2\n", "node: {id: named, subnet: 10.213.7.0/24}\n");
    let settings = Settings::parse(&yaml, &overrides).expect("valid");
    assert_eq!(settings.release.as_str(), "1.15.0");
    assert_eq!(settings.node.as_str(), "chosen");
    assert_eq!(settings.network.base.to_string(), "10.213.7.0");

    let overrides = Overrides { node: None, ..overrides };
    let settings = Settings::parse(&yaml, &overrides).expect("valid");
    assert_eq!(settings.node.as_str(), "named");
}

#[test]
fn terraforms_null_means_not_given() {
    let yaml = changed("  plugin_name: dify_plugin\n", "  plugin_name: null\n  port: null\n");
    assert_eq!(parse(&yaml), parse(EXAMPLE));
}

#[test]
fn settings_in_force_are_a_document_again() {
    for yaml in [EXAMPLE, &everything()] {
        let settings = parse(yaml).unwrap_or_else(|problems| panic!("{problems}"));
        let rendered = settings.to_yaml();
        // Nothing may come from outside the second time.
        let again = Settings::parse(&rendered, &Overrides::default());
        assert_eq!(again.as_ref(), Ok(&settings), "{rendered}");
    }
}

#[test]
fn all_mistakes_come_at_once() {
    let yaml = "schema: 2\nreleas: 1.14.2\nvector: {host: 'a b', port: 0}\nredis: []\n\
                drain: {notice: 30, bound: 1 week}\nredis: {}\n";
    let problems = parse(yaml).expect_err("all wrong");
    let paths: BTreeSet<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
    for path in [
        "schema",
        "releas",
        "release",
        "public_host",
        "database.host",
        "database.password",
        "vector.host",
        "vector.port",
        "vector.password",
        "redis",
        "bucket.name",
        "secrets.secret_key",
        "capacity.max_vms",
        "drain.notice",
        "drain.bound",
    ] {
        assert!(paths.contains(path), "{path} in {problems}");
    }
    let text = problems.to_string();
    assert!(text.contains("releas: is not a known key: did you mean release?"), "{text}");
    assert!(text.contains("redis: is given twice"), "{text}");
}

#[test]
fn a_private_key_among_the_certificates_is_refused_unseen() {
    let key =
        "  -----BEGIN PRIVATE KEY-----\n  aHVudGVyMmh1bnRlcjI=\n  -----END PRIVATE KEY-----\n";
    let problems = parse(&changed("\nsecrets:\n", &format!("{key}\nsecrets:\n")));
    let text = problems.expect_err("refused").to_string();
    assert!(text.contains("certificates: ") && !text.contains("aHVud"), "{text}");
}

#[test]
fn verified_tls_needs_certificates_and_names_who_asks() {
    let start = EXAMPLE.find("certificates: |").expect("there");
    let end = EXAMPLE.find("\nsecrets:\n").expect("there");
    let without = format!("{}{}", &EXAMPLE[..start], &EXAMPLE[end..]);
    let text = parse(&without).expect_err("refused").to_string();
    assert!(text.contains("that database.tls, vector.tls, redis.tls verifies against"), "{text}");

    let unverified = without
        .replace("tls: verify-ca", "tls: require")
        .replace("tls: verify\n", "tls: no-verify\n");
    assert!(parse(&unverified).is_ok_and(|settings| settings.certificates.is_none()));
}

#[test]
fn a_node_without_any_name_is_told_so() {
    let text = Settings::parse(EXAMPLE, &Overrides::default()).expect_err("refused").to_string();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("node.id: is missing"), "{text}");
}

#[test]
fn damaged_documents_are_refused_or_read_but_never_panic() {
    let mut random = SmallRng::seed_from_u64(1);
    let planted = changed("sm://example-project/dify-secret-key", PLANTED);
    let mut refused = 0;
    for round in 0..2_000 {
        let mut bytes = planted.clone().into_bytes();
        match round % 3 {
            0 => bytes.truncate(random.random_range(0..bytes.len())),
            1 => {
                for _ in 0..random.random_range(1..8) {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] = random.random_range(0..=127);
                }
            }
            _ => {
                bytes.truncate(random.random_range(0..400));
                random.fill_bytes(&mut bytes);
            }
        }
        if let Err(problems) = parse(&String::from_utf8_lossy(&bytes)) {
            assert!(!problems.is_empty());
            assert!(!problems.to_string().contains(PLANTED), "{problems}");
            refused += 1;
        }
    }
    // The planted text itself is a mistake: only luck makes a document valid.
    assert!(refused > 1_900, "{refused}");
}
