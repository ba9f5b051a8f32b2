//! One mistake at a time, each made by a change to the shipped example.

use std::collections::BTreeSet;

use super::{PLANTED, changed, parse};

/// Change to the example, and `path: text` that must be among the mistakes.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("schema: 1", "", "schema: is missing: expected 1"),
    ("schema: 1", "schema: 1.0", "schema: is a number with a fraction"),
    ("release: 1.14.2", "release: 1.14", "put a text that reads as a number or a switch in quotes"),
    (
        "release: 1.14.2",
        "release: ../etc",
        "release: is a text of 6 characters: expected a release id",
    ),
    ("release: 1.14.2", "release:", "release: is missing"),
    ("dify.example.com", "https://dify.example.com", "public_host: is a text"),
    ("dify.example.com", "dify.example.com:443", "public_host: "),
    ("dify.example.com", "-dify.example.com", "public_host: "),
    ("dify.example.com", "'dify.example.com '", "public_host: "),
    ("host: 10.20.0.5", "host: 10.20.0.500", "database.host: "),
    ("host: 10.20.0.5", "host: 10.213.0.9", "database.host: lies inside node.subnet"),
    ("host: 10.20.0.5", "hostname: 10.20.0.5", "database.hostname: is not a known key"),
    (
        "host: 10.20.0.6",
        "host: 10.20.0.6\n  plugin_name: x",
        "vector.plugin_name: is not a known key",
    ),
    (
        "port: 6378",
        "port: 65536",
        "redis.port: is a number: expected a whole number from 1 to 65535",
    ),
    ("port: 6378", "port: '6378'", "redis.port: is a text of 4 characters"),
    ("port: 6378", "port: -1", "redis.port: "),
    ("tls: verify-ca", "tls: verify_ca", "did you mean verify-ca?"),
    ("tls: verify-ca", "tls: verify-full", "database.tls: "),
    ("tls: verify\n", "tls: false\n", "redis.tls: is true or false: expected one of"),
    ("name: dify\n", "name: di fy\n", "database.name: "),
    ("name: dify\n", "name: dify_plugin\n", "database.plugin_name: is database.name too"),
    ("name: example-project-dify", "name: gs://files", "bucket.name: "),
    ("name: example-project-dify", "name: Files", "bucket.name: "),
    (
        "sm://example-project/dify-secret-key",
        PLANTED,
        "secrets.secret_key: is a text of 14 characters: expected a reference",
    ),
    ("sm://example-project/dify-database-password", PLANTED, "database.password: "),
    (
        "sm://example-project/dify-redis-auth/latest",
        "[hunter2hunter2]",
        "redis.password: is a list",
    ),
    (
        "  secret_key:",
        "  secret_kye:",
        "secrets.secret_kye: is not a known key: did you mean secret_key?",
    ),
    ("  agent: false", "  agent: true", "secrets.agent_server_key: is missing"),
    (
        "  agent: false",
        "  agent: 'no'",
        "features.agent: is a text of 2 characters: expected true or false",
    ),
    ("max_vms: 4", "max_vms: 0", "capacity.max_vms: "),
    ("max_vms: 4", "max_vms: 4\n  max_vms: 5", "capacity.max_vms: is given twice"),
    ("notice: 30s", "notice: 30", "drain.notice: is a number: expected a duration with its unit"),
    ("notice: 30s", "notice: '30'", "drain.notice: "),
    ("notice: 30s", "notice: 25m", "drain.notice: is not shorter than drain.bound"),
    ("bound: 25m", "bound: 2h", "drain.bound: "),
    (
        "logs:",
        "liveness: {docker_after: 0s}\nlogs:",
        "liveness.docker_after: is a text of 2 characters",
    ),
    ("mode: auto", "mode: stdout", "logs.mode: "),
    ("filter: info", "filter: loud", "logs.filter: "),
    ("filter: info", "filter: dify_agent=loud", "logs.filter: "),
    ("-----BEGIN", "-----BGIN", "certificates: "),
    ("-----END CERTIFICATE-----", "", "certificates: "),
    ("BEGIN CERTIFICATE-----\n", "BEGIN CERTIFICATE-----\n  AAAA\n", "certificates: "),
    ("capacity:", "node: {subnet: 10.213.7.1/24}\ncapacity:", "node.subnet: "),
    ("capacity:", "node: {subnet: 10.213.7.0/16}\ncapacity:", "node.subnet: "),
    ("capacity:", "node: {subnet: 8.8.8.0/24}\ncapacity:", "node.subnet: "),
    ("capacity:", "node: {id: Node_1}\ncapacity:", "node.id: "),
    ("capacity:", "paths: {state: var/lib}\ncapacity:", "paths.state: "),
    ("capacity:", "paths: {state: /var/../etc}\ncapacity:", "paths.state: "),
    ("capacity:", "ops: {listen: 1081}\ncapacity:", "ops.listen: is a number"),
    ("capacity:", "ops: {listen: 'localhost:1081'}\ncapacity:", "ops.listen: "),
    ("capacity:", "google: {storage: 'storage.googleapis.com'}\ncapacity:", "google.storage: "),
    ("capacity:", "google: {storage: 'https://u:hunter2hunter2@h'}\ncapacity:", "google.storage: "),
    ("capacity:", "google: {storage: 'https://h/'}\ncapacity:", "google.storage: "),
    ("capacity:", "google: {metadata: '169.254.169.254'}\ncapacity:", "google.metadata: "),
    ("capacity:", "images: {mirror: 'https://eu.pkg.dev'}\ncapacity:", "images.mirror: "),
    ("capacity:", "images: {concurrency: 33}\ncapacity:", "images.concurrency: "),
    ("capacity:", "images: 7\ncapacity:", "images: is a number: expected a section of keys"),
    ("  api:\n", "  API:\n", "environment.API: is not a service name"),
    (
        "UPLOAD_FILE_SIZE_LIMIT",
        "upload_limit",
        "environment.api.upload_limit: is not a variable name",
    ),
    (
        "UPLOAD_FILE_SIZE_LIMIT: 50",
        "SMTP_PASSWORD: hunter2hunter2",
        "environment.api.SMTP_PASSWORD: is named like a secret",
    ),
    (
        "UPLOAD_FILE_SIZE_LIMIT: 50",
        "PROXY: 'http://u:hunter2hunter2@h:1/'",
        "environment.api.PROXY: is a text of 28 characters: expected no secret",
    ),
    ("UPLOAD_FILE_SIZE_LIMIT: 50", "A: \"x\\ny\"", "environment.api.A: "),
    ("UPLOAD_FILE_SIZE_LIMIT: 50", "A: 0.10", "environment.api.A: is a number with a fraction"),
    ("UPLOAD_FILE_SIZE_LIMIT: 50", "A: 1\n    A: 2", "environment.api.A: is given twice"),
    ("schema: 1", "schema: 1\nhunter: [", "document: is not YAML"),
    ("schema: 1", "schema: !x 1", "schema: has a YAML tag"),
    ("schema: 1", "schema: 1\n<<: {a: b}", "<<: is not a known key"),
];

#[test]
fn each_mistake_is_named_with_its_place_and_without_its_value() {
    for (from, to, expected) in MISTAKES {
        let problems = match parse(&changed(from, to)) {
            Ok(_) => panic!("{to:?} was taken"),
            Err(problems) => problems.to_string(),
        };
        assert!(problems.contains(expected), "{to:?}: {problems}");
        assert!(!problems.contains(PLANTED), "{to:?}: {problems}");
    }
}

#[test]
fn one_mistake_is_reported_once() {
    for (from, to, _) in MISTAKES.iter().filter(|(from, ..)| !from.starts_with("---")) {
        let problems = parse(&changed(from, to)).expect_err("a mistake");
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let distinct: BTreeSet<&String> = all.iter().collect();
        assert_eq!(all.len(), distinct.len(), "{problems}");
        // A key misspelt is two: the one unknown and the one missing; the agent needs three secrets.
        assert!(all.len() <= 3, "{to:?}: {problems}");
    }
}
