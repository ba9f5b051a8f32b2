//! The gate's answers: how a node passed, or why a person must act.

use std::fmt;

use dify_common::ids::ReleaseId;
use dify_common::wire::status::Finding;

use super::Subject;
use super::plan::Revision;

/// How a node passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passed {
    /// The schema is the one the image expects.
    Current {
        /// The revision.
        revision: String,
        /// Node that migrated, or found it right.
        by: String,
        /// It was found right: this fleet ran no post-migration commands for it.
        adopted: bool,
    },
    /// A newer release's schema, which the manifest allows us to serve on.
    Beside {
        /// The newer release.
        release: ReleaseId,
        /// The revision.
        revision: String,
    },
}

impl Passed {
    /// What an operator should know about it, for `/status`.
    pub fn finding(&self, subject: &Subject) -> Option<Finding> {
        match self {
            Self::Current { adopted: true, .. } if !subject.post_migration.is_empty() => {
                let commands: Vec<_> =
                    subject.post_migration.iter().map(|args| args.join(" ")).collect();
                Some(Finding {
                    code: "post-migration-not-run".to_owned(),
                    message: format!(
                        "the schema was right before this fleet came, so it ran no post-migration commands of \
                         {}; if nobody has, run: dify-agent job -- {}",
                        subject.release,
                        commands.join("; ")
                    ),
                })
            }
            Self::Current { .. } => None,
            Self::Beside { release, revision } => Some(Finding {
                code: "schema-of-newer-release".to_owned(),
                message: format!(
                    "{} serves on the schema of {release} ({revision}), which its manifest allows; \
                     finish the rollout",
                    subject.release
                ),
            }),
        }
    }
}

/// Why a person must act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A newer release has migrated this database.
    Newer {
        /// Our release.
        ours: ReleaseId,
        /// The schema's revision.
        revision: String,
        /// Release it belongs to.
        release: ReleaseId,
        /// Node that put that on record.
        node: String,
    },
    /// A revision neither this image nor this fleet's record knows.
    Unknown {
        /// Our release.
        ours: ReleaseId,
        /// What was found.
        revision: Revision,
        /// Head of our image.
        head: String,
    },
    /// More than one revision at once.
    Branched {
        /// What was found.
        revision: Revision,
    },
    /// The migration failed, here or on another node.
    Failed {
        /// Our release.
        release: ReleaseId,
        /// Node it failed on.
        node: String,
        /// When it began.
        started_at: String,
        /// What went wrong, with the last lines.
        detail: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer { ours, revision, release, node } => write!(
                f,
                "the schema is newer than release {ours}: it is at {revision}, which belongs to release \
                 {release} (recorded by {node}); run {release}, or restore a backup from before it"
            ),
            Self::Unknown { ours, revision, head } => write!(
                f,
                "release {ours} does not know the schema's revision {revision} (its own head is {head}): \
                 another version of Dify has migrated this database; run that version, or restore a backup"
            ),
            Self::Branched { revision } => write!(
                f,
                "alembic_version holds several revisions ({revision}); Dify's schema has one: repair it by hand"
            ),
            Self::Failed { release, node, started_at, detail } => write!(
                f,
                "the migration to {release} failed on {node} (begun {started_at}) and is not tried again \
                 until it is cleared: {detail}"
            ),
        }
    }
}
