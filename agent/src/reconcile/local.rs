//! Node-local faults: the only reasons for which `/health/live` may ask Google
//! to recreate the VM. Never a shared service, configuration, migration, drain
//! or overload: those would recreate the whole fleet, and cure nothing.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dify_common::tasks::Tasks;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, info_span, warn};

use crate::board::Board;
use crate::config::Settings;
use crate::config::settings::Liveness;
use crate::engine::{Engine, EngineErrorKind};

/// Disk and Docker are tried this often.
const PERIOD: Duration = Duration::from_secs(2);
/// Docker answers `/version` in milliseconds; a busy one was seen to take seconds.
const DOCKER_DEADLINE: Duration = Duration::from_secs(20);
/// A write of one block and its flush that takes longer is as bad as a failure.
const DEADLINE: Duration = Duration::from_secs(20);

/// Watches whether this machine's disk still takes writes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Disk {
    path: PathBuf,
    bad_since: Arc<Mutex<Option<Instant>>>,
}

impl Disk {
    /// Watches the file system of `state`.
    pub fn new(state: &Path) -> Self {
        Self { path: state.join("disk-probe"), bad_since: Arc::default() }
    }

    /// Tries the disk until told to stop.
    fn spawn(&self, tasks: &Tasks) {
        let (disk, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn_essential("disk", info_span!("disk"), async move {
            let mut period = interval(PERIOD);
            period.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    // cancel-safe: a tick is not lost.
                    _ = period.tick() => disk.look().await,
                    // cancel-safe: a token can be awaited again.
                    () = stopping.cancelled() => return,
                }
            }
        });
    }

    /// For how long it has not taken a write.
    pub fn bad_for(&self) -> Option<Duration> {
        let since = *self.bad_since.lock().expect("never poisoned: no panic under the lock");
        since.map(|since| since.elapsed())
    }

    async fn look(&self) {
        let result = match timeout(DEADLINE, write_through(&self.path)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
        };
        let mut bad = self.bad_since.lock().expect("never poisoned: no panic under the lock");
        match (result, bad.is_some()) {
            (Ok(()), true) => {
                info!("the disk takes writes again");
                *bad = None;
            }
            (Err(error), false) => {
                warn!(%error, path = %self.path.display(), "the disk does not take a write");
                *bad = Some(Instant::now());
            }
            (Ok(()), false) | (Err(_), true) => {}
        }
    }
}

async fn write_through(path: &Path) -> io::Result<()> {
    let mut file = tokio::fs::File::create(path).await?;
    // A whole block: a few bytes may fit where no file does any more.
    file.write_all(&[0x5a; 4096]).await?;
    file.sync_all().await?;
    drop(file);
    tokio::fs::remove_file(path).await
}

/// Watches Docker beside everything else, so that it is seen in every phase.
#[derive(Debug, Clone, Default)]
struct Docker(Option<Instant>);

impl Docker {
    async fn look(&mut self, socket: &Path) {
        // Anything but silence is an answer: an engine that fails at one call
        // is not away.
        let asked = timeout(DOCKER_DEADLINE, Engine::connect(socket)).await;
        let silent = match asked {
            Err(_) => true,
            Ok(Err(error)) => {
                matches!(error.kind(), EngineErrorKind::Unreachable | EngineErrorKind::Deadline)
            }
            Ok(Ok(_)) => false,
        };
        match (silent, self.0) {
            (true, None) => {
                warn!(socket = %socket.display(), "Docker does not answer");
                self.0 = Some(Instant::now());
            }
            (false, Some(_)) => {
                info!("Docker answers again");
                self.0 = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }
}

/// Keeps the board's faults true for as long as the agent runs.
pub fn spawn(told: watch::Receiver<Arc<Settings>>, disk: Disk, board: Board, tasks: &Tasks) {
    disk.spawn(tasks);
    let stopping = tasks.stopping();
    tasks.spawn_essential("faults", info_span!("faults"), async move {
        let (mut docker, mut period) = (Docker::default(), interval(PERIOD));
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // cancel-safe: a tick is not lost.
                _ = period.tick() => {}
                // cancel-safe: a token can be awaited again.
                () = stopping.cancelled() => return,
            }
            let settings = told.borrow().clone();
            docker.look(&settings.paths.docker).await;
            let away = docker.0.map(|since| since.elapsed());
            let faults = faults(settings.liveness, away, disk.bad_for());
            board.amend(|view| {
                if view.faults != faults {
                    info!(faults = ?faults, "node-local faults");
                }
                view.faults = faults;
                view.silent_fault_after = settings.liveness.agent_after;
            });
        }
    });
}

/// The faults that have outlasted repair.
pub fn faults(
    limits: Liveness,
    docker_away: Option<Duration>,
    disk_bad: Option<Duration>,
) -> BTreeSet<String> {
    let mut faults = BTreeSet::new();
    if docker_away.is_some_and(|away| away >= limits.docker_after) {
        faults.insert("docker".to_owned());
    }
    if disk_bad.is_some_and(|bad| bad >= limits.disk_after) {
        faults.insert("disk".to_owned());
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Liveness = Liveness {
        docker_after: Duration::from_mins(2),
        disk_after: Duration::from_mins(5),
        agent_after: Duration::from_mins(5),
    };

    #[test]
    fn only_what_outlasts_repair_is_a_fault() {
        let some = |seconds| Some(Duration::from_secs(seconds));
        assert!(faults(LIMITS, None, None).is_empty());
        assert!(faults(LIMITS, some(119), some(299)).is_empty());
        assert!(faults(LIMITS, some(120), None).contains("docker"));
        assert!(faults(LIMITS, None, some(300)).contains("disk"));
    }

    #[tokio::test]
    async fn a_disk_that_takes_no_write_is_seen_and_forgiven() {
        let dir = tempfile::tempdir().expect("temp dir");
        let state = dir.path().join("state");
        let disk = Disk::new(&state);
        disk.look().await;
        assert!(disk.bad_for().is_some());
        std::fs::create_dir(&state).expect("mkdir");
        disk.look().await;
        assert!(disk.bad_for().is_none());
    }
}
