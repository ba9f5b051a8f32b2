//! The arrows between our crates and the doors to outside systems. What is
//! linked by whom is `deny.toml`'s; here stands what it cannot see: which crate
//! of ours names which, and which file opens a door.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crate of ours -> crates of ours it may name.
const ARROWS: &[(&str, &[&str])] = &[
    ("dify-common", &[]),
    ("dify-agent", &["dify-common"]),
    ("dify-edge", &["dify-common"]),
    ("dify-supervisor", &["dify-common"]),
    ("sim", &[]),
    ("standin", &[]),
    ("tests", &["dify-agent", "dify-common", "dify-edge", "dify-supervisor", "sim"]),
];

/// Crate of ours -> crates it may not name, by itself or through ours.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("dify-common", &["anyhow", "axum", "bollard", "redis", "sqlx"]),
    ("dify-agent", &["anyhow"]),
    ("dify-edge", &["anyhow", "axum", "bollard", "redis", "serde_yaml", "sqlx"]),
    ("dify-supervisor", &["anyhow", "bollard", "redis"]),
    ("sim", &["bollard", "gcp_auth", "redis", "sqlx"]),
    ("standin", &["bollard", "gcp_auth"]),
];

/// What only files below these prefixes may name. Clock and environment have
/// their doors in `clippy.toml`.
struct Door {
    names: &'static [&'static str],
    prefixes: &'static [&'static str],
}

const DOORS: &[Door] = &[
    Door { names: &["bollard::"], prefixes: &["agent/src/engine/docker"] },
    Door { names: &["sqlx::"], prefixes: &["agent/src/backends", "agent/src/gate"] },
    Door { names: &["redis::"], prefixes: &["agent/src/backends"] },
    Door { names: &["gcp_auth::", "computeMetadata/"], prefixes: &["common/src/gcp"] },
    Door { names: &["secrecy::"], prefixes: &["common/src/secret.rs"] },
    Door { names: &["systemd_journal_logger::"], prefixes: &["common/src/telemetry"] },
];

/// The crate everyone shares must not become a cupboard.
const COMMON_LINES: usize = 2_000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Our crates and what each names in its manifest, whatever the feature.
fn named() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs, as it runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let names = dependencies.iter().map(|it| {
                // `serde_yaml` is a name of our own for another package.
                let renamed = it["rename"].as_str();
                renamed.map_or_else(|| text(&it["name"]), str::to_owned)
            });
            (text(&package["name"]), names.collect())
        })
        .collect()
}

/// Rust files below `folder`, by path from the root.
fn sources(folder: &str) -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of ours") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let name = path.strip_prefix(&root).expect("below the root");
                let text = fs::read_to_string(&path).expect("readable");
                found.push((name.to_string_lossy().into_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no source below {folder}");
    found
}

fn shipped() -> Vec<(String, String)> {
    ["agent", "common", "supervisor"].into_iter().flat_map(sources).collect()
}

/// `FILE:LINE` of each use of a door by a file that has no key. Comments, and
/// what follows `#[cfg(test)]`, are not looked at.
fn breaches(door: &Door, sources: &[(String, String)]) -> Vec<String> {
    let outside = |(path, _): &&(String, String)| {
        !door.prefixes.iter().any(|prefix| path.starts_with(prefix)) && !path.contains("/tests")
    };
    sources
        .iter()
        .filter(outside)
        .flat_map(|(path, text)| {
            let code = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
            let used = code.enumerate().filter(|(_, line)| {
                let code = line.split("//").next().unwrap_or(line);
                door.names.iter().any(|name| names(code, name))
            });
            used.map(move |(index, _)| format!("{path}:{}", index + 1))
        })
        .collect()
}

/// `code` has `name` as a word of its own: `redis::`, not `my_redis::`, and not
/// `backends::redis::`, a module of ours.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

#[test]
fn arrows_point_to_common_only() {
    let named = named();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    for (name, dependencies) in &named {
        let (_, allowed) = ARROWS
            .iter()
            .find(|(known, _)| known == name)
            .unwrap_or_else(|| panic!("{name} is new: say here what it may name"));
        for dependency in dependencies.iter().filter(|it| known.contains(it.as_str())) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} must not depend on {dependency}"
            );
        }
    }
    assert_eq!(named.len(), known.len(), "a crate listed here is gone");
}

#[test]
fn each_crate_names_only_what_its_role_allows() {
    let named = named();
    for (name, forbidden) in FORBIDDEN {
        let own = &named[*name];
        let through_ours = own.iter().filter_map(|it| named.get(it)).flatten();
        for dependency in own.iter().chain(through_ours) {
            assert!(
                !forbidden.contains(&dependency.as_str()),
                "{name} must not reach {dependency}"
            );
        }
    }
}

#[test]
fn every_outside_system_has_one_door() {
    let sources = shipped();
    let breached: Vec<String> = DOORS
        .iter()
        .flat_map(|door| {
            let found = breaches(door, &sources);
            found.into_iter().map(|place| format!("{place} uses {}", door.names[0]))
        })
        .collect();
    assert!(breached.is_empty(), "{}", breached.join("\n"));
}

#[test]
fn a_breach_of_a_door_is_noticed() {
    let door = Door { names: &["redis::"], prefixes: &["agent/src/backends"] };
    let files = [
        ("agent/src/backends/redis.rs", "use redis::Client;"),
        ("agent/src/gate.rs", "use crate::backends::redis::Probe;\n// redis::\nlet my_redis::x"),
        ("agent/src/app.rs", "//! redis::\nuse redis::Client;\n#[cfg(test)]\nuse redis::Value;"),
    ];
    let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
    assert_eq!(breaches(&door, &files), ["agent/src/app.rs:2"]);
}

#[test]
fn common_stays_small() {
    let lines: usize = sources("common/src").iter().map(|(_, text)| text.lines().count()).sum();
    assert!(lines <= COMMON_LINES, "common has {lines} lines: what does only one program use?");
}

#[test]
fn wire_types_are_tolerant() {
    for (path, text) in sources("common/src/wire") {
        assert!(
            !text.contains("deny_unknown_fields"),
            "{path}: old and new speak together during a rollout"
        );
    }
}

#[test]
fn versions_and_lints_stand_in_the_workspace_alone() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("readable");
    let members = workspace.lines().find(|line| line.starts_with("members"));
    let members: Vec<&str> =
        members.expect("members on one line").split('"').skip(1).step_by(2).collect();
    assert_eq!(members.len(), ARROWS.len());
    for member in members {
        let manifest = root().join(member).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).expect("readable");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{member}: no workspace lints");
        let mut dependencies = false;
        for line in manifest.lines() {
            if line.starts_with('[') {
                dependencies = line.ends_with("dependencies]");
            } else if dependencies && line.contains('=') && !line.starts_with('#') {
                assert!(line.contains("workspace = true"), "{member}: {line}");
            }
        }
    }
}
