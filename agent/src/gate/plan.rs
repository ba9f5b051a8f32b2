//! Decides the next step at the gate from what was observed. Pure.
//!
//! Whether a schema is behind or ahead is not in the database: `alembic_version`
//! is one opaque word. What the fleet has recorded answers most of it; where it
//! does not (an existing Dify is taken over), the migration may be tried,
//! because Alembic changes nothing when it does not know the revision it finds:
//! it fails with "Can't locate revision identified by".

use std::cmp::Ordering;
use std::fmt;

use dify_common::ids::ReleaseId;

use super::answer::{Passed, Refusal};
use super::{Finished, Holder, Subject, WaitingOn};

/// What `alembic_version` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revision {
    /// No table, or an empty one: Dify has never migrated here.
    Absent,
    /// One revision.
    At(String),
    /// A branched schema, which Dify does not have.
    Several(Vec<String>),
}

impl Revision {
    /// The revision, when there is exactly one.
    pub fn at(&self) -> Option<&str> {
        match self {
            Self::At(revision) => Some(revision),
            Self::Absent | Self::Several(_) => None,
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("none"),
            Self::At(revision) => f.write_str(revision),
            Self::Several(revisions) => f.write_str(&revisions.join(", ")),
        }
    }
}

/// How a recorded migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Begun; without a holder of the lock it was abandoned.
    Running,
    /// Migrated and verified.
    Succeeded,
    /// Found at the right revision; not migrated by this fleet.
    Adopted,
    /// Failed; nobody tries again until it is cleared.
    Failed,
    /// Alembic did not know the revision it found; nothing was changed.
    Refused,
    /// Failed once and cleared by an operator: may be tried again.
    Cleared,
}

impl Outcome {
    /// The word in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Adopted => "adopted",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Cleared => "cleared",
        }
    }

    /// Reads the ledger's word; one this version does not know counts as running.
    pub fn parse(word: &str) -> Self {
        [Self::Succeeded, Self::Adopted, Self::Failed, Self::Refused, Self::Cleared]
            .into_iter()
            .find(|outcome| outcome.as_str() == word)
            .unwrap_or(Self::Running)
    }
}

/// The ledger's line for our release and image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// How it stands.
    pub outcome: Outcome,
    /// Node that wrote it.
    pub node: String,
    /// RFC 3339: when it began.
    pub started_at: String,
    /// Revision found before; `None` on an empty database.
    pub before: Option<String>,
    /// Revision expected after.
    pub head: String,
    /// What went wrong, with the last lines.
    pub detail: Option<String>,
}

/// A head some image of this fleet is known to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its release.
    pub release: ReleaseId,
    /// Node that asked the image.
    pub node: String,
}

/// Who holds the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    /// Nobody.
    Free,
    /// Someone else.
    Held(Holder),
    /// This node.
    Mine,
}

/// One consistent look at the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// `alembic_version`.
    pub revision: Revision,
    /// Head of our image, when it is on record.
    pub head: Option<String>,
    /// Our release's and image's line.
    pub record: Option<Record>,
    /// Other images than ours whose head is `revision`.
    pub known: Vec<Known>,
    /// The lock.
    pub lock: Lock,
}

/// What to do next.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Go on and serve.
    Pass(Passed),
    /// Look again later.
    Wait(WaitingOn),
    /// A person must act.
    Refuse(Refusal),
    /// Try for the lock, then look again.
    TakeLock,
    /// Ask the image for its head, keep it, then look again.
    LearnHead,
    /// Run the migration and verify that it leads from `from` to `head`.
    Migrate {
        /// Expected to be found.
        from: Option<String>,
        /// Expected to be left.
        head: String,
    },
    /// The schema is right already; put that on record.
    Adopt {
        /// The revision.
        head: String,
    },
    /// Migrated: run what post-migration commands are left, then record success.
    Finish {
        /// The revision.
        head: String,
    },
}

/// The next step for `subject`.
pub fn plan(subject: &Subject, observed: &Observed) -> Step {
    if let Some(record) = &observed.record {
        match record.outcome {
            Outcome::Succeeded | Outcome::Adopted => {
                if let Some(step) = settled(subject, observed, record) {
                    return step;
                }
            }
            Outcome::Failed => return Step::Refuse(failed(subject, record)),
            Outcome::Refused if record.before.as_deref() == observed.revision.at() => {
                return Step::Refuse(foreign(subject, observed, &record.head));
            }
            // A refused one whose schema has changed since may be tried again.
            Outcome::Refused | Outcome::Running | Outcome::Cleared => {}
        }
    }
    if let Revision::Several(_) = observed.revision {
        let revision = observed.revision.clone();
        return Step::Refuse(Refusal::Branched { revision });
    }
    if let (Some(head), Some(revision)) = (&observed.head, observed.revision.at())
        && head != revision
        && let Some(step) = newer(subject, observed, revision)
    {
        return step;
    }
    match &observed.lock {
        Lock::Held(holder) => Step::Wait(WaitingOn::Migration(holder.clone())),
        Lock::Free => Step::TakeLock,
        Lock::Mine => lead(subject, observed),
    }
}

/// With the lock in hand and nothing settled on record.
fn lead(subject: &Subject, observed: &Observed) -> Step {
    let Some(head) = observed.head.clone() else {
        return Step::LearnHead;
    };
    if observed.revision.at() != Some(&head) {
        let from = observed.revision.at().map(str::to_owned);
        return Step::Migrate { from, head };
    }
    // Begun by this fleet (with this image, or another build of the release)
    // means that the post-migration commands are ours to run; a schema that was
    // right before we came has had them from its owner.
    let ours = observed.record.is_some()
        || observed.known.iter().any(|known| known.release == subject.release);
    if ours { Step::Finish { head } } else { Step::Adopt { head } }
}

/// Our migration is on record as done; has the schema stayed there? `None`: it
/// went back to an older release's on purpose (`flask db downgrade`), so it
/// may be migrated again.
fn settled(subject: &Subject, observed: &Observed, record: &Record) -> Option<Step> {
    let refuse = || Some(Step::Refuse(foreign(subject, observed, &record.head)));
    let Some(revision) = observed.revision.at() else {
        // A lost or branched schema after a recorded success is beyond us.
        return refuse();
    };
    if revision == record.head {
        return Some(Step::Pass(Passed::Current {
            revision: revision.to_owned(),
            by: record.node.clone(),
            adopted: record.outcome == Outcome::Adopted,
        }));
    }
    let behind = |known: &Known| compare(&known.release, &subject.release) == Some(Ordering::Less);
    if observed.known.iter().any(behind) {
        return None;
    }
    newer(subject, observed, revision).or_else(refuse)
}

/// The step for a schema of a newer release; `None` when it is not one.
fn newer(subject: &Subject, observed: &Observed, revision: &str) -> Option<Step> {
    if let Some(known) = observed.known.iter().find(|known| subject.beside.contains(&known.release))
    {
        return Some(Step::Pass(Passed::Beside {
            release: known.release.clone(),
            revision: revision.to_owned(),
        }));
    }
    // Releases may share a revision; one that is not newer than ours means behind.
    let ahead =
        |known: &Known| compare(&known.release, &subject.release) == Some(Ordering::Greater);
    let first = observed.known.first()?;
    observed.known.iter().all(ahead).then(|| {
        Step::Refuse(Refusal::Newer {
            ours: subject.release.clone(),
            revision: revision.to_owned(),
            release: first.release.clone(),
            node: first.node.clone(),
        })
    })
}

fn foreign(subject: &Subject, observed: &Observed, head: &str) -> Refusal {
    let other = |known: &&Known| {
        !matches!(compare(&known.release, &subject.release), Some(Ordering::Less | Ordering::Equal))
    };
    match observed.known.iter().find(other) {
        Some(known) => Refusal::Newer {
            ours: subject.release.clone(),
            revision: observed.revision.to_string(),
            release: known.release.clone(),
            node: known.node.clone(),
        },
        None => Refusal::Unknown {
            ours: subject.release.clone(),
            revision: observed.revision.clone(),
            head: head.to_owned(),
        },
    }
}

fn failed(subject: &Subject, record: &Record) -> Refusal {
    Refusal::Failed {
        release: subject.release.clone(),
        node: record.node.clone(),
        started_at: record.started_at.clone(),
        detail: record.detail.clone().unwrap_or_default(),
    }
}

/// Order of two releases by the numbers they begin with, as in `1.14.2`;
/// `None` when one has none.
fn compare(a: &ReleaseId, b: &ReleaseId) -> Option<Ordering> {
    let numbers = |release: &ReleaseId| -> Option<Vec<u64>> {
        let text = release.as_str();
        let end = text.find(['-', '_']).unwrap_or(text.len());
        text[..end].split('.').map(|part| part.parse().ok()).collect()
    };
    Some(numbers(a)?.cmp(&numbers(b)?))
}

/// What a migration container did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The schema is at the head.
    Done,
    /// Dify's own lock was taken; nothing was done.
    Skipped,
    /// Alembic does not know the revision it found; nothing was done.
    Unlocatable,
    /// Failed, or ended well and did not migrate.
    Failed(String),
}

/// Judges a migration by what it left behind, not by its exit code alone.
pub fn judge(finished: &Finished, after: &Revision, head: &str) -> Verdict {
    let says = |text: &str| finished.lines.iter().any(|line| line.contains(text));
    match (finished.exit_code, after.at()) {
        (0, Some(revision)) if revision == head => Verdict::Done,
        // Words of `flask upgrade-db` in Dify's api/commands.
        (0, _) if says("Database migration skipped") => Verdict::Skipped,
        (0, _) => Verdict::Failed(format!(
            "the migration ended with exit code 0, but the schema is at {after} and not at {head}"
        )),
        // Words of Alembic's script directory.
        (_, _) if says("Can't locate revision identified by") => Verdict::Unlocatable,
        (code, _) => Verdict::Failed(format!(
            "the migration ended with exit code {code}; the schema is at {after}, expected {head}"
        )),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
