//! Secrets from files, for machines without Google Cloud: systemd credentials
//! (`/run/credentials/UNIT/NAME`) or a tmpfs.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Raw, SecretError};

/// Secret Manager's own limit, so that both sources behave alike.
const LARGEST: u64 = 64 * 1024;

/// Reads a small local file; blocking, as tmpfs does not block.
pub(super) fn read(path: &Path) -> Result<Raw, SecretError> {
    let failed = |source| SecretError::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    // Asked of the open file, not of the path: nobody can swap it in between.
    let about = file.metadata().map_err(failed)?;
    let mode = about.mode() & 0o7777;
    let us = rustix::process::geteuid().as_raw();
    if (about.uid() != 0 && about.uid() != us) || mode & 0o022 != 0 {
        return Err(SecretError::FileNotOurs {
            path: path.to_owned(),
            found: format!("owner {}, mode {mode:04o}", about.uid()),
        });
    }
    let mut bytes = Vec::new();
    file.by_ref().take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err(failed(std::io::Error::other("larger than 64 KiB")));
    }
    let exposed = (mode & 0o044 != 0).then(|| {
        format!(
            "{} can be read by others on this machine (mode {mode:04o}); chmod 0400",
            path.display()
        )
    });
    Ok(Raw { bytes, version: path.display().to_string(), exposed })
}
