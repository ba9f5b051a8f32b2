//! One-shots: containers that run once and are removed, whatever happens. If
//! this process dies in between, the label names it, and whoever looks next
//! knows an orphan (`Observed::one_shots`).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;

use super::{Engine, EngineError, EngineErrorKind, observe};
use crate::engine::lines::Tail;
use crate::engine::observed::RunState;
use crate::engine::site::Site;
use crate::engine::spec::{ContainerSpec, label};

/// Value of [`label::ROLE`].
pub(super) const ONE_SHOT: &str = "one-shot";
/// Lines kept for the report of a failure.
const TAIL: usize = 50;
/// After the container ended, its log may still take this long to arrive.
const LOG_MARGIN: Duration = Duration::from_secs(10);

/// What came of a one-shot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub ended: Ended,
    /// Its last lines.
    pub tail: Vec<String>,
}

impl Finished {
    /// Whether it exited 0.
    pub fn succeeded(&self) -> bool {
        self.ended == Ended::Exited(0)
    }
}

/// How a one-shot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Exited(i64),
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// We killed it: it took longer than it may.
    Deadline(Duration),
}

impl Engine {
    /// Creates, starts and waits for a one-shot, handing on each line, and
    /// removes it. A leftover of the same name is removed first; one that
    /// somebody waits for is a conflict.
    pub async fn run_once(
        &self,
        spec: &ContainerSpec,
        site: &Site,
        deadline: Duration,
        mut on_line: impl FnMut(&str),
    ) -> Result<Finished, EngineError> {
        const DOING: &str = "run one-shot";
        let Some(_waiting) = Waiting::begin(&self.running, &spec.name) else {
            let found = "this process runs it already";
            return Err(EngineError::new(EngineErrorKind::Stale, DOING, &spec.name, found));
        };
        self.clear_leftover(spec, site).await?;
        let labels = vec![
            (label::ROLE.to_owned(), ONE_SHOT.to_owned()),
            (label::OWNER.to_owned(), this_process()),
        ];
        let id = self.create_labelled(spec, site, labels).await?;
        let finished = self.watch(&id, deadline, &mut on_line).await;
        let removed = self.remove(&id).await;
        let finished = finished?;
        removed.map(|()| finished)
    }

    /// Removes the node's one-shots nobody waits for any more; says how many.
    pub async fn remove_orphans(&self, site: &Site) -> Result<usize, EngineError> {
        let observed = self.observe(site.node()).await?;
        let mut removed = 0;
        for one_shot in observed.one_shots.values().filter(|one_shot| one_shot.orphan) {
            self.remove(&one_shot.id).await?;
            removed += 1;
        }
        Ok(removed)
    }

    async fn watch(
        &self,
        id: &str,
        deadline: Duration,
        on_line: &mut impl FnMut(&str),
    ) -> Result<Finished, EngineError> {
        self.start(id).await?;
        let mut tail = Tail::new(TAIL);
        let mut lines = Box::pin(self.logs(id, None, true));
        let mut seen = 0_usize;
        // The log ends when the container does, or breaks with the engine.
        let mut read = async || {
            while let Some(line) = lines.next().await {
                let text = line?.text;
                on_line(&text);
                tail.push(text);
                seen += 1;
            }
            self.wait_stopped(id, LOG_MARGIN).await?;
            // An engine that follows a log may miss its last lines (seen with
            // Docker 20.10): what is written is read again from where we are.
            let mut rest = Box::pin(self.logs(id, None, false).skip(seen));
            while let Some(line) = rest.next().await {
                let text = line?.text;
                on_line(&text);
                tail.push(text);
                seen += 1;
            }
            Ok::<(), EngineError>(())
        };
        let ended = tokio::time::timeout(deadline, read()).await;
        if let Ok(failed @ Err(_)) = ended {
            failed?;
        } else if ended.is_err() {
            let _ = self.kill(id, "SIGKILL").await;
            let _ = tokio::time::timeout(LOG_MARGIN, read()).await;
            return Ok(Finished { ended: Ended::Deadline(deadline), tail: tail.into_lines() });
        }
        let inspected = self.inspect(id.to_owned()).await?;
        let ended = match inspected.as_ref().map(observe::state) {
            Some(RunState::Exited { oom: true, .. }) => Ended::OutOfMemory,
            Some(RunState::Exited { code, .. }) => Ended::Exited(code),
            Some(RunState::Created | RunState::Running { .. } | RunState::Odd(_)) | None => {
                let found = "it ended, but the engine has no exit code of it";
                return Err(EngineError::new(
                    EngineErrorKind::Engine,
                    "wait for one-shot",
                    id,
                    found,
                ));
            }
        };
        Ok(Finished { ended, tail: tail.into_lines() })
    }

    async fn clear_leftover(&self, spec: &ContainerSpec, site: &Site) -> Result<(), EngineError> {
        const DOING: &str = "run one-shot";
        let Some(found) = self.inspect(spec.name.clone()).await? else {
            return Ok(());
        };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        let label = |key| labels.get(key).map_or("", String::as_str);
        if label(label::NODE) != site.node().as_str() || label(label::ROLE) != ONE_SHOT {
            let found = "a container of that name exists";
            return Err(EngineError::new(EngineErrorKind::Conflict, DOING, &spec.name, found));
        }
        let owner = label(label::OWNER);
        if owner != this_process() && is_alive(owner) {
            let found = format!("process {owner} runs it already");
            return Err(EngineError::new(EngineErrorKind::Stale, DOING, &spec.name, found));
        }
        self.remove(&found.id.unwrap_or_else(|| spec.name.clone())).await
    }

    /// Whether somebody will remove this one-shot when it is done.
    pub(super) fn is_waited_for(&self, name: &str, owner: &str) -> bool {
        if owner == this_process() {
            self.running.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
        } else {
            is_alive(owner)
        }
    }
}

/// Held while a one-shot runs; a caller that is dropped lets go of it too.
struct Waiting {
    running: Arc<Mutex<BTreeSet<String>>>,
    name: String,
}

impl Waiting {
    fn begin(running: &Arc<Mutex<BTreeSet<String>>>, name: &str) -> Option<Self> {
        let is_new = running.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        is_new.then(|| Self { running: running.clone(), name: name.to_owned() })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

fn this_process() -> String {
    let pid = std::process::id();
    format!("{pid}:{}", start_time(pid).unwrap_or_default())
}

fn is_alive(owner: &str) -> bool {
    let Some((pid, started)) = owner.split_once(':') else {
        return false;
    };
    pid.parse().is_ok_and(|pid| start_time(pid).is_some_and(|time| time == started))
}

/// Field 22 of `/proc/PID/stat` (proc(5)), in clock ticks since boot; the
/// fields are counted from the last parenthesis, as a name may hold anything.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start() {
        let me = this_process();
        assert!(is_alive(&me));
        let pid = std::process::id();
        for other in [
            format!("{pid}:1"),
            format!("{pid}:"),
            "4294967295:1".to_owned(),
            String::new(),
            "x".to_owned(),
        ] {
            assert!(!is_alive(&other), "{other:?}");
        }
    }
}
