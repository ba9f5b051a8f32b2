//! One plugin daemon of the fleet starts at a time.
//!
//! Source: the daemon runs GORM's AutoMigrate on its own database at every
//! start (dify-plugin-daemon, internal/db) and takes no lock around it.

use std::future::Future;
use std::pin::pin;
use std::sync::Mutex;
use std::time::Duration;

use tracing::warn;

use super::execute::{Gate, Report};
use super::ledger;
use super::one_shot::OneShots;
use super::plan::Lock;
use super::session::{Key, Lost, Session};
use super::{GateError, Holder, Progress, WaitingOn};

impl<S: OneShots> Gate<S> {
    /// Runs `start`, which starts this node's plugin daemon and waits until it
    /// is healthy, while no other node of the fleet does so: the daemon migrates
    /// its own schema at every start and takes no lock of its own. Waits at most
    /// `within` for the turn; `start` has a deadline of its own. Losing the lock
    /// meanwhile is only logged: stopping a daemon half-way would be worse.
    pub async fn start_daemon<T>(
        &self,
        report: Report<'_>,
        within: Duration,
        start: impl Future<Output = T>,
    ) -> Result<T, GateError> {
        let waiting = Mutex::new(WaitingOn::Database);
        let turn = Box::pin(self.daemon_turn(report, &waiting));
        let Ok(turn) = tokio::time::timeout(within, turn).await else {
            let waiting_on = waiting.lock().expect("nobody panics with it held").to_string();
            return Err(GateError::Deadline { within, waiting_on });
        };
        let mut session = turn?;
        report(Progress::StartingDaemon);
        let mut start = pin!(start);
        match session.keep(self.timings.keep_alive, start.as_mut()).await {
            Ok(done) => {
                session.close().await;
                Ok(done)
            }
            Err(Lost(why)) => {
                warn!(why, "lost the plugin daemon's start lock; going on");
                Ok(start.await)
            }
        }
    }

    async fn daemon_turn(
        &self,
        report: Report<'_>,
        waiting: &Mutex<WaitingOn>,
    ) -> Result<Session, GateError> {
        let mut session = Session::connect(&self.options, &self.timings).await?;
        while !session.try_lock(Key::Daemon).await? {
            let lock = session
                .ask("see who starts a plugin daemon", async |connection| {
                    ledger::holder(connection, Key::Daemon).await
                })
                .await?;
            let holder = match lock {
                Lock::Held(holder) => holder,
                Lock::Free | Lock::Mine => Holder::default(),
            };
            let on = WaitingOn::DaemonStart(holder);
            waiting.lock().expect("nobody panics with it held").clone_from(&on);
            report(Progress::Waiting(on));
            self.pause().await;
        }
        Ok(session)
    }
}
