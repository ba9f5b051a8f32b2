//! Where manifests and locks are found: built in, and over that a folder of
//! the operator's, whose files may carry a checksum beside them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dify_common::ids::ReleaseId;
use dify_common::settings::Problems;
use sha2::{Digest as _, Sha256};

use super::check::check;
use super::lock::Lock;
use super::manifest::Release;
use crate::exit::Exit;

const BUILT_IN: [(&str, &str); 4] = [
    ("1.14.2", include_str!("../../../images/releases/1.14.2.yaml")),
    ("1.15.0", include_str!("../../../images/releases/1.15.0.yaml")),
    ("1.16.1", include_str!("../../../images/releases/1.16.1.yaml")),
    ("1.17.1", include_str!("../../../images/releases/1.17.1.yaml")),
];

/// Text of a built-in manifest.
pub(super) fn built_in(release: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(name, _)| *name == release).map(|(_, text)| *text)
}

/// Why a release cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// No manifest of that name.
    #[error(
        "find a manifest for release {release}: known are {known}; add {release}.yaml to the releases folder"
    )]
    Missing {
        /// What was asked for.
        release: ReleaseId,
        /// What there is.
        known: String,
    },
    /// A file or the folder could not be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what its checksum says.
    #[error(
        "check {}: its sha256 is {found}, {}.sha256 says {expected}; copy both again from where they come from",
        path.display(), path.display()
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// First word of the checksum file.
        expected: String,
        /// What was computed.
        found: String,
    },
    /// Not YAML of the right shape.
    #[error("read {name} as a {what}")]
    Syntax {
        /// File or release.
        name: String,
        /// `manifest` or `lock`.
        what: &'static str,
        /// Where and why.
        #[source]
        source: serde_yaml::Error,
    },
    /// The shape is right, the content is not.
    #[error("check the manifest {name}")]
    Invalid {
        /// File or release.
        name: String,
        /// Every mistake.
        #[source]
        problems: Problems,
    },
    /// The file says it is another release.
    #[error("check {name}: it says it is release {found}")]
    Misnamed {
        /// File.
        name: String,
        /// What it says.
        found: ReleaseId,
    },
}

impl ReleaseError {
    /// How a command ends on it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Read { .. }
            | Self::Missing { .. }
            | Self::Checksum { .. }
            | Self::Syntax { .. }
            | Self::Invalid { .. }
            | Self::Misnamed { .. } => Exit::Manifest,
        }
    }
}

/// The manifests and locks this machine knows.
#[derive(Debug, Clone, Default)]
pub struct Library {
    folder: Option<PathBuf>,
}

impl Library {
    /// The built-in ones, and over them those of `folder`.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// Names of every release there is a manifest for, oldest first.
    pub fn known(&self) -> Result<Vec<ReleaseId>, ReleaseError> {
        let mut names: BTreeSet<(Vec<u64>, String)> =
            BUILT_IN.iter().map(|(name, _)| (version(name), (*name).to_owned())).collect();
        if let Some(folder) = &self.folder {
            let read = |source| ReleaseError::Read { path: folder.clone(), source };
            let entries = match fs::read_dir(folder) {
                Ok(entries) => Some(entries),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(read(error)),
            };
            for entry in entries.into_iter().flatten() {
                let name = entry.map_err(read)?.file_name();
                if let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".yaml"))
                    && stem.strip_suffix(".lock").is_none()
                {
                    names.insert((version(stem), stem.to_owned()));
                }
            }
        }
        Ok(names.into_iter().filter_map(|(_, name)| name.parse().ok()).collect())
    }

    /// A checked manifest.
    pub fn manifest(&self, release: &ReleaseId) -> Result<Release, ReleaseError> {
        let file = format!("{release}.yaml");
        if let Some((path, text)) = self.read(&file)? {
            return parse(release, &path.display().to_string(), &text);
        }
        match built_in(release.as_str()) {
            Some(text) => parse(release, &file, text),
            None => Err(ReleaseError::Missing {
                release: release.clone(),
                known: self.known()?.iter().map(ReleaseId::as_str).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// A release's lock, when it has one.
    pub fn lock(&self, release: &ReleaseId) -> Result<Option<Lock>, ReleaseError> {
        let Some((path, text)) = self.read(&format!("{release}.lock.yaml"))? else {
            return Ok(None);
        };
        let name = path.display().to_string();
        let lock = Lock::parse(&text).map_err(|source| ReleaseError::Syntax {
            name: name.clone(),
            what: "lock",
            source,
        })?;
        if lock.release == *release {
            Ok(Some(lock))
        } else {
            Err(ReleaseError::Misnamed { name, found: lock.release })
        }
    }

    fn read(&self, file: &str) -> Result<Option<(PathBuf, String)>, ReleaseError> {
        let Some(folder) = &self.folder else {
            return Ok(None);
        };
        let path = folder.join(file);
        let Some(text) = read_if_there(&path)? else {
            return Ok(None);
        };
        if let Some(sums) = read_if_there(&folder.join(format!("{file}.sha256")))? {
            let expected = sums.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
            let found = hex::encode(Sha256::digest(text.as_bytes()));
            if expected != found {
                return Err(ReleaseError::Checksum { path, expected, found });
            }
        }
        Ok(Some((path, text)))
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>, ReleaseError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ReleaseError::Read { path: path.to_owned(), source }),
    }
}

fn parse(wanted: &ReleaseId, name: &str, text: &str) -> Result<Release, ReleaseError> {
    let release: Release = serde_yaml::from_str(text).map_err(|source| ReleaseError::Syntax {
        name: name.to_owned(),
        what: "manifest",
        source,
    })?;
    if release.release != *wanted {
        return Err(ReleaseError::Misnamed { name: name.to_owned(), found: release.release });
    }
    match check(&release).into_result() {
        Ok(()) => Ok(release),
        Err(problems) => Err(ReleaseError::Invalid { name: name.to_owned(), problems }),
    }
}

/// Numbers of a version, for ordering: `1.9.0` before `1.14.2`.
pub(crate) fn version(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ReleaseId {
        text.parse().expect("an id")
    }

    #[test]
    fn every_built_in_manifest_is_sound() {
        let library = Library::default();
        for release in library.known().expect("reads") {
            let manifest = library
                .manifest(&release)
                .unwrap_or_else(|e| panic!("{}", dify_common::chain::Chain(&e)));
            assert_eq!(manifest.release, release);
        }
    }

    #[test]
    fn an_unknown_release_says_what_there_is() {
        let error = Library::default().manifest(&id("0.1.0")).expect_err("is unknown");
        assert!(error.to_string().contains("1.14.2, 1.15.0, 1.16.1, 1.17.1"), "{error}");
        assert_eq!(error.exit(), Exit::Manifest);
    }

    #[test]
    fn a_folder_adds_and_overrides_and_its_checksums_count() {
        let folder = tempfile::tempdir().expect("a folder");
        let mine = built_in("1.14.2")
            .expect("is built in")
            .replace("release: 1.14.2", "release: 1.14.2-mine");
        let path = folder.path().join("1.14.2-mine.yaml");
        fs::write(&path, &mine).expect("writes");
        let library = Library::new(Some(folder.path().to_owned()));
        assert!(library.known().expect("reads").contains(&id("1.14.2-mine")));
        library.manifest(&id("1.14.2-mine")).expect("is sound");

        let sums = folder.path().join("1.14.2-mine.yaml.sha256");
        let right = hex::encode(Sha256::digest(mine.as_bytes()));
        fs::write(&sums, format!("{right}  1.14.2-mine.yaml\n")).expect("writes");
        library.manifest(&id("1.14.2-mine")).expect("matches");
        fs::write(&path, mine + "\n# touched\n").expect("writes");
        assert!(matches!(library.manifest(&id("1.14.2-mine")), Err(ReleaseError::Checksum { .. })));
    }

    #[test]
    fn an_unknown_key_in_a_manifest_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = built_in("1.14.2").expect("is built in").to_owned() + "\nextra: 1\n";
        fs::write(folder.path().join("1.14.2.yaml"), text).expect("writes");
        let library = Library::new(Some(folder.path().to_owned()));
        assert!(matches!(library.manifest(&id("1.14.2")), Err(ReleaseError::Syntax { .. })));
    }

    #[test]
    fn versions_sort_as_numbers() {
        assert!(version("1.9.0") < version("1.14.2"));
    }
}
