//! Exit codes, stable for scripts (BSD `sysexits.h` where it has a word).

use std::process::ExitCode;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: failed for a reason without a code of its own.
    Failed,
    /// 2: still going.
    StillGoing,
    /// 64: usage or configuration.
    Configuration,
    /// 65: bad manifest, lock or digest.
    Manifest,
    /// 69: something this node depends on is down.
    Dependency,
    /// 70: a fault of ours.
    Bug,
    /// 73: disk full or not writable.
    Disk,
    /// 75: a deadline passed.
    Deadline,
    /// 76: schema migration failed, or the schema does not fit the release.
    Migration,
    /// 77: a secret is missing or a permission is.
    Secret,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::StillGoing => 2,
            Self::Configuration => 64,
            Self::Manifest => 65,
            Self::Dependency => 69,
            Self::Bug => 70,
            Self::Disk => 73,
            Self::Deadline => 75,
            Self::Migration => 76,
            Self::Secret => 77,
        }
    }

    /// The word used as `kind` on the wire.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::StillGoing => "still-going",
            Self::Configuration => "configuration",
            Self::Manifest => "manifest",
            Self::Dependency => "dependency",
            Self::Bug => "bug",
            Self::Disk => "disk",
            Self::Deadline => "deadline",
            Self::Migration => "migration",
            Self::Secret => "secret",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
