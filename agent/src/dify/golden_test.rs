//! What each release is wired to, as files a reviewer can read. Regenerate with
//! `UPDATE=1 cargo test -p dify-agent golden` and look at the difference.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use dify_common::settings::{Environment, Source as _};

use crate::config::settings::{SecretName, Settings};
use crate::release::{Derived, Value};

use super::explain::explain;
use super::fixture::{RELEASES, everything, plain, release, secrets, service, stack};

fn compare(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dify/golden").join(name);
    if Environment.get("UPDATE").is_some() {
        fs::write(&path, found).expect("writes the golden file");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    for (number, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "{name}:{}; UPDATE=1 regenerates", number + 1);
    }
    assert_eq!(
        found.lines().count(),
        expected.lines().count(),
        "{name}: length; UPDATE=1 regenerates"
    );
}

fn text(settings: &Settings, release: &str) -> String {
    serde_yaml::to_string(&explain(&stack(settings, release))).expect("is YAML")
}

#[test]
fn golden_defaults() {
    for release in RELEASES {
        compare(&format!("{release}.defaults.txt"), &text(&plain(), release));
    }
}

#[test]
fn golden_everything_on() {
    for release in RELEASES {
        compare(&format!("{release}.everything.txt"), &text(&everything(release), release));
    }
}

/// Each key of each manifest reaches its container, and a container has no
/// other. With everything on only `settable` keys and absent roots may be away.
#[test]
fn every_key_in_every_manifest_is_wired_and_every_wired_key_is_known() {
    for name in RELEASES {
        let (manifest, stack) = (release(name), stack(&everything(name), name));
        for wanted in &manifest.services {
            let wired: BTreeSet<&str> =
                service(&stack, &wanted.name).env.keys().map(String::as_str).collect();
            let known = manifest.keys(wanted, |_| true);
            for (key, value) in &known {
                let may_be_away = **value == Value::Settable;
                assert!(
                    wired.contains(key) || may_be_away,
                    "{name}: {}.{key} is not wired",
                    wanted.name
                );
            }
            for key in wired {
                assert!(known.contains_key(key), "{name}: {}.{key} is unknown", wanted.name);
            }
        }
    }
}

/// Nothing in the vocabulary is dead.
#[test]
fn every_source_of_values_is_used_by_some_manifest() {
    let mut used: BTreeSet<String> = BTreeSet::new();
    for name in RELEASES {
        let manifest = release(name);
        let groups = manifest.environment.values().flat_map(|g| g.keys.values());
        let own = manifest.services.iter().flat_map(|s| s.set.values());
        used.extend(groups.chain(own).map(ToString::to_string));
    }
    for derived in Derived::ALL {
        let text = Value::Derived(derived).to_string();
        assert!(used.contains(&text), "{text}");
    }
    for secret in SecretName::ALL {
        let text = Value::Secret(secret).to_string();
        assert!(used.contains(&text), "{text}");
    }
    assert_eq!(secrets().len(), SecretName::ALL.len());
}
