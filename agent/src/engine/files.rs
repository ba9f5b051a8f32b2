//! Files of ours that containers see: written under `STATE/files/SERVICE/HASH/`,
//! bind-mounted read-only. A changed file is a new path, never a change under a
//! running container; what no spec wants any more is collected.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rand::RngExt;
use sha2::{Digest as _, Sha256};

use super::error::EngineError;
use super::spec::{ContainerSpec, FileMount};

/// A file on this machine and where a container sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedFile {
    /// On this machine.
    pub source: PathBuf,
    /// In the container.
    pub target: String,
}

/// The folder of such files. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Below the agent's state directory.
    pub fn new(state: &Path) -> Self {
        Self { root: state.join("files") }
    }

    /// Writes the files of one container, unless they are there already.
    pub fn place(&self, spec: &ContainerSpec) -> Result<Vec<PlacedFile>, EngineError> {
        let Some(folder) = self.folder(spec) else {
            return Ok(Vec::new());
        };
        if !folder.is_dir() {
            write_folder(&folder, &spec.files).map_err(|error| {
                EngineError::file("write the files of a container to", &folder, &error)
            })?;
        }
        let placed = spec.files.iter().enumerate().map(|(index, file)| PlacedFile {
            source: folder.join(file_name(index, file)),
            target: file.path.clone(),
        });
        Ok(placed.collect())
    }

    /// Removes what none of `keep` uses. Call it when the containers that are
    /// not in `keep` are gone.
    pub fn collect<'a>(
        &self,
        keep: impl IntoIterator<Item = &'a ContainerSpec>,
    ) -> Result<usize, EngineError> {
        let keep: BTreeSet<PathBuf> =
            keep.into_iter().filter_map(|spec| self.folder(spec)).collect();
        let mut removed = 0;
        for service in folders(&self.root)? {
            for folder in folders(&service)? {
                if !keep.contains(&folder) {
                    fs::remove_dir_all(&folder).map_err(|error| {
                        EngineError::file("remove old files from", &folder, &error)
                    })?;
                    removed += 1;
                }
            }
            // Fails where something is left, and then it should stay.
            let _ = fs::remove_dir(&service);
        }
        Ok(removed)
    }

    /// Nothing in it is secret, so the hash is plain.
    fn folder(&self, spec: &ContainerSpec) -> Option<PathBuf> {
        if spec.files.is_empty() {
            return None;
        }
        let mut hash = Sha256::new();
        for FileMount { path, content, mode } in &spec.files {
            for part in [path.as_bytes(), content.as_bytes(), &mode.to_be_bytes()] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        let hash = hex::encode(&hash.finalize()[..16]);
        Some(self.root.join(&spec.service).join(hash))
    }
}

fn file_name(index: usize, file: &FileMount) -> String {
    let last = file.path.rsplit('/').next().unwrap_or_default();
    format!("{index}-{last}")
}

/// Beside its final place, synced, then renamed: a folder that exists is whole.
fn write_folder(folder: &Path, files: &[FileMount]) -> std::io::Result<()> {
    let nonce: u64 = rand::rng().random();
    let draft = folder.with_extension(format!("draft-{nonce:016x}"));
    fs::create_dir_all(&draft)?;
    for (index, file) in files.iter().enumerate() {
        let path = draft.join(file_name(index, file));
        let mut out =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        out.write_all(file.content.as_bytes())?;
        // Not by `mode` above: the umask would take bits away.
        out.set_permissions(Permissions::from_mode(file.mode))?;
        out.sync_all()?;
    }
    match fs::rename(&draft, folder) {
        // Somebody was faster with the same content.
        Err(_) if folder.is_dir() => fs::remove_dir_all(&draft),
        renamed => renamed,
    }
}

fn folders(root: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let listed = || -> std::io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.push(entry.path());
            }
        }
        Ok(found)
    };
    match listed() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|error| EngineError::file("list", root, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sample;

    fn with_file(content: &str) -> ContainerSpec {
        let mut spec = sample::container("sandbox", 2);
        spec.files = vec![FileMount {
            path: "/conf/config.yaml".into(),
            content: content.into(),
            mode: 0o644,
        }];
        spec
    }

    #[test]
    fn files_are_placed_once_kept_while_wanted_and_collected() {
        let state = tempfile::tempdir().expect("temporary directory");
        let files = Files::new(state.path());
        let (old, new) = (with_file("a: 1"), with_file("a: 2"));
        let placed = files.place(&old).expect("placed");
        assert_eq!(files.place(&old).expect("placed again"), placed);
        let other = files.place(&new).expect("placed");
        assert_ne!(placed, other, "a changed file is another path");
        assert_eq!(placed[0].target, "/conf/config.yaml");
        assert_eq!(fs::read_to_string(&placed[0].source).expect("readable"), "a: 1");
        let mode = fs::metadata(&placed[0].source).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o644);

        assert_eq!(files.collect([&old, &new]).expect("collected"), 0);
        assert_eq!(files.collect([&new]).expect("collected"), 1);
        assert!(!placed[0].source.exists() && other[0].source.exists());
        assert_eq!(files.collect([]).expect("collected"), 1);
        assert_eq!(files.collect([]).expect("nothing to do"), 0);
    }

    #[test]
    fn what_a_crash_left_half_written_is_not_taken_for_whole() {
        let state = tempfile::tempdir().expect("temporary directory");
        let files = Files::new(state.path());
        let spec = with_file("whole");
        let folder = files.folder(&spec).expect("has files");
        fs::create_dir_all(folder.with_extension("draft-00")).expect("made");
        let placed = files.place(&spec).expect("placed");
        assert_eq!(fs::read_to_string(&placed[0].source).expect("readable"), "whole");
        assert_eq!(files.collect([&spec]).expect("collected"), 1, "the draft goes");
    }
}
