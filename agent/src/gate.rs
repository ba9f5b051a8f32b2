//! The migration gate: exactly one node of the fleet migrates a release, and
//! nobody serves before the schema is the one its image expects.
//!
//! ```text
//! observe -> plan -> Pass | Refuse | Wait -> observe ...
//!                 -> TakeLock -> observe -> plan -> LearnHead -> ...
//!                                                -> Migrate -> verify -> Finish -> Pass
//! ```
//!
//! [`plan`] decides and is pure. [`Gate`] observes and acts. The lock is a
//! PostgreSQL advisory lock on one direct connection (`session`): the
//! connection is the lock, and every record is written through it, so a node
//! that lost the lock cannot write one. What is known stands in schema
//! `dify_fleet` of the main database (`ledger`); a restore of that database
//! restores both together.
//!
//! The migration itself is Dify's `flask upgrade-db` in a one-shot container
//! ([`OneShots`]). Its exit code proves nothing (it is 0 as well when Dify's
//! own Redis lock was taken and nothing was done), so `alembic_version` is
//! compared with the head the image itself names.

mod answer;
mod daemon;
mod execute;
mod heads;
mod ledger;
mod one_shot;
pub mod plan;
mod session;

pub use answer::{Passed, Refusal};
pub use execute::Gate;
pub use heads::{HeadsError, parse_heads};
pub use one_shot::{Finished, OneShotError, OneShots};

use std::fmt;
use std::time::Duration;

use dify_common::ids::{Digest, NodeId, ReleaseId};
use dify_common::retry::Retryable;

use crate::exit::Exit;

/// Who wants to pass, with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// This node.
    pub node: NodeId,
    /// The release it is to run.
    pub release: ReleaseId,
    /// Digest of the api image: what names the expected head.
    pub digest: Digest,
    /// flask arguments run once per release after its migration.
    pub post_migration: Vec<Vec<String>>,
    /// Newer releases whose schema this one may serve on: what the manifest
    /// says it may run beside.
    pub beside: Vec<ReleaseId>,
}

/// Times of the gate. The default suits production.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    /// One statement, and one connection attempt.
    pub statement: Duration,
    /// Between two looks at the held lock. With `statement` it bounds how long
    /// a migration goes on after its lock is lost: 15 s, less than the 25 s
    /// after which the server gives up a silent client and frees the lock.
    pub keep_alive: Duration,
    /// Least time between two looks of a node that waits; at most twice that.
    pub poll: Duration,
    /// All of the waiting and leading together: longer than `migration`.
    pub pass: Duration,
    /// One migration container. Index migrations on large tables take long.
    pub migration: Duration,
    /// `flask db heads`, nearly all of it Python's start.
    pub heads: Duration,
    /// One post-migration command.
    pub post_command: Duration,
    /// Dify's own lock (`db_upgrade_lock` in Redis) lives 60 s without renewal:
    /// a skipped migration is tried again this much later ...
    pub skipped_wait: Duration,
    /// ... this often: 80 s in all.
    pub skipped_tries: u32,
    /// Time to stop a one-shot container.
    pub stop: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        let (seconds, minutes) = (Duration::from_secs, Duration::from_mins);
        Self {
            statement: seconds(5),
            keep_alive: seconds(10),
            poll: seconds(1),
            pass: minutes(180),
            migration: minutes(120),
            heads: minutes(10),
            post_command: minutes(60),
            skipped_wait: seconds(20),
            skipped_tries: 4,
            stop: seconds(30),
        }
    }
}

/// What the gate is doing, as it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do but wait.
    Waiting(WaitingOn),
    /// The image is asked for its head.
    LearningHead,
    /// This node migrates.
    Migrating {
        /// Present revision; `None` on an empty database.
        from: Option<String>,
        /// Revision the image expects.
        to: String,
    },
    /// A line the migration printed, scrubbed.
    Line(String),
    /// A post-migration command runs.
    PostCommand(String),
    /// This node holds the daemon lock.
    StartingDaemon,
}

/// What a node at the gate waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingOn {
    /// Another node migrates, or makes sure that it need not.
    Migration(Holder),
    /// Another node starts its plugin daemon.
    DaemonStart(Holder),
    /// Somebody outside this fleet's gate holds Dify's own upgrade lock.
    DifyUpgradeLock,
    /// The database does not answer.
    Database,
}

/// Who holds a lock, as far as the server tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holder {
    /// Node, when it is one of ours.
    pub node: Option<String>,
    /// RFC 3339: since when it is connected.
    pub since: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.node.as_deref().unwrap_or("another node"))?;
        match &self.since {
            Some(since) => write!(f, " (since {since})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for WaitingOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Migration(holder) => write!(f, "migration by {holder}"),
            Self::DaemonStart(holder) => write!(f, "start of the plugin daemon on {holder}"),
            Self::DifyUpgradeLock => f.write_str(
                "Dify's own upgrade lock in Redis, held by a migration outside this gate or one that died",
            ),
            Self::Database => f.write_str("the main database"),
        }
    }
}

/// Why a node did not pass.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The schema does not fit, or the migration failed: a person must act.
    #[error("{0}")]
    Refused(Refusal),
    /// No connection to the main database.
    #[error("connect to the main database for the migration gate")]
    Connect(#[source] sqlx::Error),
    /// A statement failed.
    #[error("{doing} in the main database")]
    Query {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: sqlx::Error,
    },
    /// No answer from the main database in time.
    #[error("{doing} in the main database: no answer within {within:?}")]
    Silent {
        /// What was being done.
        doing: &'static str,
        /// How long was waited.
        within: Duration,
    },
    /// The connection that is the lock broke while this node was leading. The
    /// one-shot container was stopped; another node may go on.
    #[error("lost the migration lock ({why}); the one-shot container was stopped")]
    LockLost {
        /// How that was seen.
        why: String,
    },
    /// As [`GateError::LockLost`], and the container could not be stopped.
    #[error("lost the migration lock ({why}) and could not stop the one-shot container")]
    LockLostAndRunning {
        /// How that was seen.
        why: String,
        /// Why it still runs.
        #[source]
        source: OneShotError,
    },
    /// A one-shot container could not be run at all.
    #[error("{doing} in a one-shot container")]
    OneShot {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: OneShotError,
    },
    /// The image did not name one head.
    #[error("ask the image for its schema head (flask db heads)")]
    Heads(#[source] HeadsError),
    /// Dify's own lock stayed taken.
    #[error(
        "Dify skipped the migration {tries} times: its upgrade lock in Redis (db_upgrade_lock) stays held; \
         is something outside this fleet migrating the same database?"
    )]
    Skipped {
        /// How often it was tried.
        tries: u32,
    },
    /// Waited long enough.
    #[error("not through the gate within {within:?}; last waited for: {waiting_on}")]
    Deadline {
        /// The bound.
        within: Duration,
        /// What for, in words.
        waiting_on: String,
    },
}

impl GateError {
    /// How a command that meets it ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Refused(_) | Self::Heads(_) | Self::Skipped { .. } => Exit::Migration,
            Self::Connect(_)
            | Self::Query { .. }
            | Self::Silent { .. }
            | Self::LockLost { .. }
            | Self::LockLostAndRunning { .. } => Exit::Dependency,
            Self::OneShot { .. } => Exit::Failed,
            Self::Deadline { .. } => Exit::Deadline,
        }
    }

    /// Short and stable, for metrics and JSON.
    pub fn kind(&self) -> &'static str {
        self.exit().kind()
    }
}

impl Retryable for GateError {
    fn is_permanent(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Heads(_) => true,
            Self::Connect(_)
            | Self::Query { .. }
            | Self::Silent { .. }
            | Self::LockLost { .. }
            | Self::LockLostAndRunning { .. }
            | Self::OneShot { .. }
            | Self::Skipped { .. }
            | Self::Deadline { .. } => false,
        }
    }
}
