//! Carries out what [`plan`](super::plan) decides, one step at a time, looking
//! anew after each.

use std::fmt;
use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use dify_common::chain::Chain;
use dify_common::retry::Backoff;
use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;
use tracing::{info, warn};

use super::answer::Passed;
use super::ledger::{self, APPLICATION};
use super::one_shot::{Finished, OneShotError, OneShots};
use super::plan::{Outcome, Revision, Step, Verdict, judge, plan};
use super::session::{Key, Lost, Session};
use super::{GateError, Progress, Subject, Timings, WaitingOn, heads, parse_heads};
use crate::secrets::Secrets;

/// Lines kept of a failed container: enough for a Python traceback.
const TAIL_LINES: usize = 50;
/// Characters kept of each.
const TAIL_WIDTH: usize = 500;
/// Broken connections in a row, while waiting, after which the caller hears of it.
const BROKEN_IN_A_ROW: u32 = 5;

/// The gate of one node.
pub struct Gate<S> {
    pub(super) options: PgConnectOptions,
    subject: Subject,
    one_shots: S,
    secrets: Secrets,
    pub(super) timings: Timings,
}

impl<S> fmt::Debug for Gate<S> {
    /// Without the options: sqlx prints the password in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("subject", &self.subject).finish_non_exhaustive()
    }
}

/// How a container under the lock ended.
enum Led {
    Finished(Finished),
    /// Stopped at its deadline.
    Overran(Duration),
}

pub(super) type Report<'a> = &'a (dyn Fn(Progress) + Send + Sync);

impl<S: OneShots> Gate<S> {
    /// A gate for `subject` on the main database that `options` lead to,
    /// directly: not through a pooler. `secrets` are kept out of what is recorded.
    pub fn new(
        options: PgConnectOptions,
        subject: Subject,
        one_shots: S,
        secrets: Secrets,
        timings: Timings,
    ) -> Self {
        let name = format!("{APPLICATION}{}", subject.node);
        let options = options.application_name(&name).disable_statement_logging();
        Self { options, subject, one_shots, secrets, timings }
    }

    /// Waits, or migrates, until this node may serve its release. `report` is
    /// told of waiting at every look; log changes only. An error that is not
    /// permanent (a database away, a lost lock) is worth another call. Dropping
    /// the call frees the lock but may leave a one-shot container: stop it.
    pub async fn pass(&self, report: Report<'_>) -> Result<Passed, GateError> {
        let waiting = Mutex::new(WaitingOn::Database);
        let note = |progress: Progress| {
            if let Progress::Waiting(on) = &progress {
                waiting.lock().expect("nobody panics with it held").clone_from(on);
            }
            report(progress);
        };
        // Boxed: kept for hours inside futures of callers.
        let passing = Box::pin(self.on_sessions(&note));
        let within = self.timings.pass;
        if let Ok(ended) = tokio::time::timeout(within, passing).await {
            return ended;
        }
        self.stop().await.map_err(|source| GateError::OneShot {
            doing: "stop the migration at the gate's deadline",
            source,
        })?;
        let waiting_on = waiting.lock().expect("nobody panics with it held").to_string();
        Err(GateError::Deadline { within, waiting_on })
    }

    /// Lets a failed or refused migration of this release and image be tried
    /// again; answers its former outcome, `None` when there was none.
    pub async fn clear(&self) -> Result<Option<Outcome>, GateError> {
        let mut session = Session::connect(&self.options, &self.timings).await?;
        let cleared = session
            .ask("clear a failed migration", async |connection| {
                ledger::clear(connection, &self.subject).await
            })
            .await;
        session.close().await;
        cleared
    }

    /// Goes through sessions until one ends with an answer: a connection that
    /// breaks while this node only waits is replaced.
    async fn on_sessions(&self, report: Report<'_>) -> Result<Passed, GateError> {
        let mut broken = 0;
        loop {
            let mut session = Session::connect(&self.options, &self.timings).await?;
            let ended = self.on_session(&mut session, report, &mut broken).await;
            let led = session.holds(Key::Migration);
            session.close().await;
            match ended {
                Err(error @ (GateError::Query { .. } | GateError::Silent { .. }))
                    if !led && broken < BROKEN_IN_A_ROW =>
                {
                    broken += 1;
                    warn!(error = %Chain(&error), broken, "gate connection broke; connecting again");
                    report(Progress::Waiting(WaitingOn::Database));
                    self.pause().await;
                }
                ended => return ended,
            }
        }
    }

    async fn on_session(
        &self,
        session: &mut Session,
        report: Report<'_>,
        broken: &mut u32,
    ) -> Result<Passed, GateError> {
        loop {
            let mine = session.holds(Key::Migration);
            let observed = session
                .ask("read the state of the schema", async |connection| {
                    ledger::observe(connection, &self.subject, mine).await
                })
                .await?;
            *broken = 0;
            match plan(&self.subject, &observed) {
                Step::Pass(passed) => return Ok(passed),
                Step::Refuse(refusal) => return Err(GateError::Refused(refusal)),
                Step::Wait(on) => {
                    report(Progress::Waiting(on));
                    self.pause().await;
                }
                Step::TakeLock => self.take_lock(session).await?,
                Step::LearnHead => self.learn_head(session, report).await?,
                Step::Migrate { from, head } => {
                    self.migrate(session, report, from.as_deref(), &head).await?;
                }
                Step::Adopt { head } => {
                    info!(head, "the schema is right already; putting that on record");
                    self.record(session, Outcome::Adopted, &observed.revision, &head, None).await?;
                }
                Step::Finish { head } => {
                    self.finish(session, report, &observed.revision, &head).await?;
                }
            }
        }
    }

    async fn take_lock(&self, session: &mut Session) -> Result<(), GateError> {
        if !session.try_lock(Key::Migration).await? {
            self.pause().await;
            return Ok(());
        }
        // A former process of this agent may have died in mid-migration.
        self.stop().await.map_err(|source| GateError::OneShot {
            doing: "remove what a former migration left",
            source,
        })?;
        session
            .ask("create the tables of schema dify_fleet", async |connection| {
                ledger::create(connection).await
            })
            .await
    }

    async fn learn_head(&self, session: &mut Session, report: Report<'_>) -> Result<(), GateError> {
        report(Progress::LearningHead);
        let doing = "ask the image for its schema head";
        let within = self.timings.heads;
        let finished = match self.led(session, doing, within, self.one_shots.heads()).await? {
            Led::Finished(finished) => finished,
            Led::Overran(within) => return Err(GateError::Silent { doing, within }),
        };
        let tail = self.tail(&finished.lines);
        let head = if finished.exit_code == 0 {
            parse_heads(finished.lines.iter().map(String::as_str))
        } else {
            let exit_code = finished.exit_code;
            Err(heads::HeadsError::Exit { exit_code, tail: tail.clone() })
        };
        let head = head.map_err(|error| {
            GateError::Heads(match error {
                heads::HeadsError::None { .. } => heads::HeadsError::None { tail },
                other @ (heads::HeadsError::Exit { .. } | heads::HeadsError::Several(_)) => other,
            })
        })?;
        info!(head, "the image named its schema head");
        session
            .ask("keep the head of an image", async |connection| {
                ledger::keep_head(connection, &self.subject, &head).await
            })
            .await
    }

    /// Leaves the schema at `head`, or a record of why not.
    async fn migrate(
        &self,
        session: &mut Session,
        report: Report<'_>,
        from: Option<&str>,
        head: &str,
    ) -> Result<(), GateError> {
        session
            .ask("put the begin of a migration on record", async |connection| {
                ledger::begin(connection, &self.subject, from, head).await
            })
            .await?;
        let on_line = |line: &str| report(Progress::Line(self.clean(line)));
        for _ in 0..self.timings.skipped_tries {
            info!(from, head, "migrating the schema");
            report(Progress::Migrating { from: from.map(str::to_owned), to: head.to_owned() });
            let within = self.timings.migration;
            let container = self.one_shots.migrate(&on_line);
            let (verdict, lines, after) =
                match self.led(session, "migrate the schema", within, container).await? {
                    Led::Finished(finished) => {
                        let after = Self::revision(session).await?;
                        (judge(&finished, &after, head), finished.lines, after)
                    }
                    Led::Overran(within) => {
                        let why =
                            format!("the migration did not end within {within:?} and was stopped");
                        (Verdict::Failed(why), Vec::new(), Self::revision(session).await?)
                    }
                };
            let detail = |why: &str| format!("{why}\n{}", self.tail(&lines).join("\n"));
            match verdict {
                Verdict::Done => return Ok(()),
                Verdict::Unlocatable => {
                    let detail = detail("Alembic does not know the revision it found");
                    return self
                        .record(session, Outcome::Refused, &after, head, Some(&detail))
                        .await;
                }
                Verdict::Failed(why) => {
                    let detail = detail(&why);
                    return self
                        .record(session, Outcome::Failed, &after, head, Some(&detail))
                        .await;
                }
                Verdict::Skipped => {
                    report(Progress::Waiting(WaitingOn::DifyUpgradeLock));
                    let wait = tokio::time::sleep(self.timings.skipped_wait);
                    let kept = session.keep(self.timings.keep_alive, wait).await;
                    kept.map_err(|Lost(why)| GateError::LockLost { why })?;
                }
            }
        }
        Err(GateError::Skipped { tries: self.timings.skipped_tries })
    }

    /// Runs what post-migration commands are left, then records success. A
    /// command whose node died in the middle of it is run again.
    async fn finish(
        &self,
        session: &mut Session,
        report: Report<'_>,
        revision: &Revision,
        head: &str,
    ) -> Result<(), GateError> {
        let done = session
            .ask("read what post-migration commands ran", async |connection| {
                ledger::commands_done(connection, &self.subject).await
            })
            .await?;
        for args in &self.subject.post_migration {
            let command = args.join(" ");
            if done.contains(&command) {
                continue;
            }
            info!(command, "running a post-migration command");
            report(Progress::PostCommand(command.clone()));
            self.note_command(session, &command, None).await?;
            let within = self.timings.post_command;
            let container = self.one_shots.run(args);
            let why = match self
                .led(session, "run a post-migration command", within, container)
                .await?
            {
                Led::Finished(finished) => {
                    self.note_command(session, &command, Some(finished.exit_code)).await?;
                    (finished.exit_code != 0).then(|| {
                        format!(
                            "post-migration command `flask {command}` ended with exit code {}\n{}",
                            finished.exit_code,
                            self.tail(&finished.lines).join("\n")
                        )
                    })
                }
                Led::Overran(within) => Some(format!(
                    "post-migration command `flask {command}` did not end within {within:?} and was stopped"
                )),
            };
            if let Some(why) = why {
                return self.record(session, Outcome::Failed, revision, head, Some(&why)).await;
            }
        }
        self.record(session, Outcome::Succeeded, revision, head, None).await
    }

    /// Runs a container while the lock is kept; without the lock it is stopped.
    async fn led(
        &self,
        session: &mut Session,
        doing: &'static str,
        within: Duration,
        container: impl Future<Output = Result<Finished, OneShotError>>,
    ) -> Result<Led, GateError> {
        // Asked right before: what follows must not start on a lock long gone.
        let kept = match session.look().await {
            Ok(()) => {
                let bounded = tokio::time::timeout(within, container);
                session.keep(self.timings.keep_alive, bounded).await
            }
            Err(lost) => Err(lost),
        };
        match kept {
            Ok(Ok(Ok(finished))) => Ok(Led::Finished(finished)),
            Ok(Ok(Err(source))) => {
                // Nothing is known of the container: it may run on.
                if let Err(error) = self.stop().await {
                    warn!(error = %Chain(&error), doing, "could not stop a lost one-shot container");
                }
                Err(GateError::OneShot { doing, source })
            }
            Ok(Err(_)) => match self.stop().await {
                Ok(()) => Ok(Led::Overran(within)),
                Err(source) => Err(GateError::OneShot { doing, source }),
            },
            Err(Lost(why)) => {
                warn!(why, doing, "lost the migration lock; stopping the container");
                Err(match self.stop().await {
                    Ok(()) => GateError::LockLost { why },
                    Err(source) => GateError::LockLostAndRunning { why, source },
                })
            }
        }
    }

    async fn stop(&self) -> Result<(), OneShotError> {
        let within = self.timings.stop;
        match tokio::time::timeout(within, self.one_shots.stop_all()).await {
            Ok(stopped) => stopped,
            Err(late) => Err(OneShotError(Box::new(late))),
        }
    }

    async fn revision(session: &mut Session) -> Result<Revision, GateError> {
        session
            .ask("read alembic_version", async |connection| ledger::revision(connection).await)
            .await
    }

    async fn record(
        &self,
        session: &mut Session,
        outcome: Outcome,
        revision: &Revision,
        head: &str,
        detail: Option<&str>,
    ) -> Result<(), GateError> {
        session
            .ask("put the end of a migration on record", async |connection| {
                ledger::end(connection, &self.subject, outcome, revision, head, detail).await
            })
            .await
    }

    async fn note_command(
        &self,
        session: &mut Session,
        command: &str,
        exit_code: Option<i64>,
    ) -> Result<(), GateError> {
        session
            .ask("put a post-migration command on record", async |connection| {
                ledger::command(connection, &self.subject, command, exit_code).await
            })
            .await
    }

    fn clean(&self, line: &str) -> String {
        let line = self.secrets.scrub(line);
        line.chars().take(TAIL_WIDTH).collect()
    }

    fn tail(&self, lines: &[String]) -> Vec<String> {
        let first = lines.len().saturating_sub(TAIL_LINES);
        lines[first..].iter().map(|line| self.clean(line)).collect()
    }

    /// One to two polls, so that the nodes of a fleet do not ask in step.
    pub(super) async fn pause(&self) {
        let ceiling = self.timings.poll * 2;
        let wait = Backoff::try_new(ceiling, ceiling).map_or(ceiling, |backoff| backoff.wait(0));
        tokio::time::sleep(wait).await;
    }
}
