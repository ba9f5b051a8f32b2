//! Facts that outlive the agent but not the machine: empty files in the run
//! directory, which a reboot clears.

use std::fs;
use std::path::Path;

use tracing::warn;

/// What a file says by being there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// Containers of this node served since the machine started.
    Serving,
    /// An operator took the node out of service.
    Drained,
}

impl Marker {
    fn file(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Drained => "drained",
        }
    }
}

/// Whether it is set.
pub fn is_set(run: &Path, marker: Marker) -> bool {
    run.join(marker.file()).exists()
}

/// Sets it. A run directory that takes no file is said, not fatal.
pub fn set(run: &Path, marker: Marker) {
    if let Err(error) = fs::write(run.join(marker.file()), []) {
        warn!(%error, file = marker.file(), "keep a marker in the run directory");
    }
}

/// Clears it.
pub fn clear(run: &Path, marker: Marker) {
    let _ = fs::remove_file(run.join(marker.file()));
}
