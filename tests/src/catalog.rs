//! Which stand-in image takes the place of which of Dify's: read from the
//! release manifests, so that a new tag there is a new image here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_yaml::Value;

use crate::{Broken, Doing as _, Outcome};

/// Releases with a manifest, oldest first.
pub const RELEASES: [&str; 4] = ["1.14.2", "1.15.0", "1.16.1", "1.17.1"];

/// One image of a release.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Repository without registry, such as `langgenius/dify-api`.
    pub repository: String,
    /// Tag.
    pub tag: String,
    /// What it stands in for.
    pub role: Role,
}

/// What an image stands in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// api, worker, beat, migration and jobs.
    Api,
    /// The Next.js front end.
    Web,
    /// Plugin daemon.
    PluginDaemon,
    /// Code sandbox.
    Sandbox,
    /// Squid, for either proxy.
    Squid,
    /// Agent services' back end.
    AgentBackend,
    /// Agent services' shell.
    LocalSandbox,
}

impl Role {
    fn of(repository: &str) -> Option<Self> {
        let name = repository.rsplit('/').next().unwrap_or(repository);
        Some(match name {
            "dify-api" => Self::Api,
            "dify-web" => Self::Web,
            "dify-plugin-daemon" => Self::PluginDaemon,
            "dify-sandbox" => Self::Sandbox,
            "squid" => Self::Squid,
            "dify-agent-backend" => Self::AgentBackend,
            "dify-agent-local-sandbox" => Self::LocalSandbox,
            _ => return None,
        })
    }

    /// The stand-in program's word for it; the api image has an entrypoint of its own.
    pub fn word(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Web => "web",
            Self::PluginDaemon => "plugin_daemon",
            Self::Sandbox => "sandbox",
            Self::Squid => "squid",
            Self::AgentBackend => "agent_backend",
            Self::LocalSandbox => "local_sandbox",
        }
    }
}

/// The folder of manifests in the repository.
pub fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/releases")
}

/// The images `release` names in its manifest under `folder`.
pub fn entries(folder: &Path, release: &str) -> Outcome<Vec<Entry>> {
    let path = folder.join(format!("{release}.yaml"));
    let text = std::fs::read_to_string(&path).doing(|| format!("read {}", path.display()))?;
    of_manifest(&text).doing(|| format!("read the images of {}", path.display()))
}

fn of_manifest(text: &str) -> Outcome<Vec<Entry>> {
    let manifest: Value = serde_yaml::from_str(text).doing(|| "parse YAML".into())?;
    let mut references = BTreeSet::new();
    collect(&manifest, &mut references);
    if references.is_empty() {
        return Err(Broken::new("found no key `image` with a text"));
    }
    references.iter().map(|reference| entry(reference)).collect()
}

/// Every text under a key `image`, wherever it stands.
fn collect(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Mapping(mapping) => {
            for (key, value) in mapping {
                match (key.as_str(), value.as_str()) {
                    (Some("image"), Some(reference)) => {
                        found.insert(reference.to_owned());
                    }
                    _ => collect(value, found),
                }
            }
        }
        Value::Sequence(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Tagged(tagged) => collect(&tagged.value, found),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn entry(reference: &str) -> Outcome<Entry> {
    let (repository, tag) = reference
        .rsplit_once(':')
        .filter(|(_, tag)| !tag.contains('/'))
        .ok_or_else(|| Broken::new(format!("image {reference:?} has no tag")))?;
    let role = Role::of(repository)
        .ok_or_else(|| Broken::new(format!("no stand-in takes the place of {reference:?}")))?;
    Ok(Entry { repository: repository.to_owned(), tag: tag.to_owned(), role })
}

/// Schema revisions of `release`'s stand-in, oldest first; the last one is its
/// head. Each release adds one, as each of Dify's minors adds some.
pub fn revisions(release: &str) -> Vec<String> {
    let numbers = |release: &str| -> Vec<u32> {
        release.split('.').map(|part| part.parse().unwrap_or(0)).collect()
    };
    let wanted = numbers(release);
    let mut all: Vec<&str> = RELEASES.into_iter().filter(|known| numbers(known) < wanted).collect();
    all.push(release);
    all.into_iter()
        .map(|release| {
            let parts = numbers(release);
            let part = |index: usize| parts.get(index).copied().unwrap_or(0);
            format!("{:04x}{:04x}{:04x}", part(0), part(1), part(2))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_wherever_they_stand() {
        let manifest = "services:\n  api: {image: \"langgenius/dify-api:1.14.2\"}\n  worker:\n    image: langgenius/dify-api:1.14.2\n  proxy: {run: [{image: ubuntu/squid:6.6-24.04_edge}]}\n";
        let found = of_manifest(manifest).unwrap();
        let roles: Vec<Role> = found.iter().map(|entry| entry.role).collect();
        assert_eq!(roles, [Role::Api, Role::Squid]);
        assert_eq!(found[1].tag, "6.6-24.04_edge");
    }

    #[test]
    fn an_image_nobody_stands_in_for_is_an_error() {
        assert!(of_manifest("a: {image: \"redis:7\"}").is_err());
        assert!(of_manifest("a: {image: \"localhost:5000/langgenius/dify-api\"}").is_err());
        assert!(of_manifest("a: {image: {name: x}}").is_err());
    }

    #[test]
    fn a_newer_release_knows_every_older_revision() {
        let old = revisions("1.14.2");
        let new = revisions("1.16.1");
        assert_eq!(old, ["0001000e0002"]);
        assert_eq!(new.len(), 3);
        assert_eq!(new[0], old[0]);
    }
}
