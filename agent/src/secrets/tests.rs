use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn files(
    content: &[(SecretName, &[u8], u32)],
) -> (tempfile::TempDir, BTreeMap<SecretName, SecretRef>) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut references = BTreeMap::new();
    for (name, bytes, mode) in content {
        let path = dir.path().join(name.as_str());
        std::fs::write(&path, bytes).expect("writes");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).expect("chmod");
        references.insert(*name, SecretRef::File(path));
    }
    (dir, references)
}

#[tokio::test]
async fn files_are_read_and_a_line_end_is_left_out_and_said() {
    let (_dir, references) = files(&[
        (SecretName::SecretKey, b"plain-value", 0o400),
        (SecretName::RedisPassword, b"with-line-end\r\n", 0o444),
    ]);
    let secrets = fetch_all(&references, None).await.expect("all there");
    let value = |name| secrets.get(name).expect("is there").expose_secret();
    assert_eq!(value(SecretName::SecretKey), "plain-value");
    assert_eq!(value(SecretName::RedisPassword), "with-line-end");
    let codes: Vec<_> = secrets.findings().iter().map(|f| f.code.as_str()).collect();
    assert_eq!(codes.len(), 2);
    assert!(codes.contains(&"secret-line-end") && codes.contains(&"secret-file-mode"));
}

#[tokio::test]
async fn everything_that_fails_is_said_at_once_and_no_value_is() {
    let (dir, mut references) = files(&[
        (SecretName::SecretKey, b"hunter2\xff", 0o400),
        (SecretName::InitPassword, b"\n", 0o400),
        (SecretName::RedisPassword, b"hunter2hunter2", 0o466),
        (SecretName::InnerApiKey, b"fine-by-itself", 0o400),
    ]);
    references.insert(SecretName::DatabasePassword, SecretRef::File(dir.path().join("absent")));
    references.insert(SecretName::VectorPassword, "sm://p/s".parse().expect("valid"));
    let errors = fetch_all(&references, None).await.expect_err("five are bad");
    let kinds: Vec<_> = errors.iter().map(|(name, error)| (name, error.kind())).collect();
    assert_eq!(
        kinds,
        [
            (SecretName::SecretKey, "secret-not-text"),
            (SecretName::InitPassword, "secret-not-text"),
            (SecretName::DatabasePassword, "secret-file"),
            (SecretName::VectorPassword, "secret-identity"),
            (SecretName::RedisPassword, "secret-file"),
        ]
    );
    assert!(!format!("{errors} {errors:?}").contains("hunter2"));
}

#[test]
fn scrubbing_finds_plain_and_encoded_forms() {
    let secrets: Secrets = [
        (SecretName::RedisPassword, Secret::from("p@ss-w/or d")),
        (SecretName::InitPassword, Secret::from("abc")),
    ]
    .into_iter()
    .collect();
    let clean = secrets.scrub("redis://:p%40ss-w%2For%20d@h p%40ss-w%2For+d p@ss-w/or d abc");
    assert_eq!(clean, "redis://:[REDACTED]@h [REDACTED] [REDACTED] abc");
}
