//! `docs/configuration.md` knows every key, and no other.

use std::collections::BTreeSet;

use serde_yaml::Value;

use super::parse;

const PAGE: &str = include_str!("../../../../docs/configuration.md");

/// Leaves of `value` by path; `environment` is the operator's own.
fn keys(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    let Some(mapping) = value.as_mapping().filter(|_| path != "environment") else {
        found.insert(path.to_owned());
        return;
    };
    for (key, value) in mapping {
        let key = key.as_str().expect("keys are texts");
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        keys(&path, value, found);
    }
}

#[test]
fn every_key_is_explained_and_every_explained_key_exists() {
    let settings = parse(&super::everything()).expect("valid");
    let rendered: Value = serde_yaml::from_str(&settings.to_yaml()).expect("YAML");
    let mut known = BTreeSet::new();
    keys("", &rendered, &mut known);
    let explained: BTreeSet<String> = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|key| !key.contains("://"))
        .map(str::to_owned)
        .collect();
    assert_eq!(known, explained);
}
