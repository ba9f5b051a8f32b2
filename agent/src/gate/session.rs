//! One direct connection that carries the locks of the gate. The server frees
//! an advisory lock when its connection ends, however it ends, so the lock
//! needs no clean-up and cannot outlive its holder by more than the TCP
//! keepalive set here.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use dify_common::chain::Chain;
use dify_common::retry::{Backoff, retry};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use super::{GateError, Timings};

/// Tries to connect: some seconds in all; preflight has passed.
const CONNECT_ATTEMPTS: u32 = 5;
/// First key of every lock of ours: the bytes of "dify".
pub(super) const LOCK_CLASS: i32 = 0x6469_6679;

/// A lock of the fleet: second key of the advisory lock, which PostgreSQL keeps
/// per database, so that the database is the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// Who migrates the main schema.
    Migration = 1,
    /// Who starts a plugin daemon, which migrates its own schema at each start.
    Daemon = 2,
}

/// The connection, with the backend it leads to.
#[derive(Debug)]
pub(super) struct Session {
    connection: PgConnection,
    /// Changes when a pooler stands in between: then locks mean nothing.
    pid: i32,
    within: Duration,
    held: Option<Key>,
}

/// The lock is no longer ours, and why that is known.
#[derive(Debug)]
pub(super) struct Lost(pub(super) String);

impl Session {
    pub(super) async fn connect(
        options: &PgConnectOptions,
        timings: &Timings,
    ) -> Result<Self, GateError> {
        let within = timings.statement;
        retry("gate connection", CONNECT_ATTEMPTS, Backoff::NEARBY, || Self::open(options, within))
            .await
    }

    async fn open(options: &PgConnectOptions, within: Duration) -> Result<Self, GateError> {
        let doing = "connect";
        let connecting = tokio::time::timeout(within, options.connect());
        let mut connection = connecting
            .await
            .map_err(|_| GateError::Silent { doing, within })?
            .map_err(GateError::Connect)?;
        // Keepalive: the server frees the lock 10 + 3 x 5 = 25 s after this
        // machine vanished (ignored on a unix socket).
        let settings = "set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; \
                        set tcp_keepalives_count = 3; set statement_timeout = '30s'; \
                        set lock_timeout = '5s'; set client_min_messages = warning";
        let set_up = async {
            sqlx::raw_sql(settings).execute(&mut connection).await?;
            sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(&mut connection).await
        };
        let pid = bounded(within, "set up a session", set_up).await?;
        Ok(Self { connection, pid, within, held: None })
    }

    /// Runs one unit of work on the connection, with the statement's deadline.
    pub(super) async fn ask<T>(
        &mut self,
        doing: &'static str,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, GateError> {
        let within = self.within;
        bounded(within, doing, work(&mut self.connection)).await
    }

    pub(super) fn holds(&self, key: Key) -> bool {
        self.held == Some(key)
    }

    /// Takes `key` if it is free; never waits.
    pub(super) async fn try_lock(&mut self, key: Key) -> Result<bool, GateError> {
        let taken = self
            .ask("take an advisory lock", async |connection| {
                sqlx::query_scalar("select pg_try_advisory_lock($1, $2)")
                    .bind(LOCK_CLASS)
                    .bind(key as i32)
                    .fetch_one(connection)
                    .await
            })
            .await?;
        if taken {
            self.held = Some(key);
        }
        Ok(taken)
    }

    /// Does `work` while the lock is looked at every `every`. `Lost` means
    /// that `work` was abandoned where it stood.
    pub(super) async fn keep<T>(
        &mut self,
        every: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Lost> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                // cancel-safe: pinned outside the loop, polled on next round.
                done = &mut work => return Ok(done),
                // cancel-safe: a timer.
                () = tokio::time::sleep(every) => {}
            }
            self.look().await?;
        }
    }

    /// The lock is still ours, on the same backend.
    pub(super) async fn look(&mut self) -> Result<(), Lost> {
        let Some(key) = self.held else {
            return Err(Lost("it was never taken".to_owned()));
        };
        let looked = self
            .ask("look at the advisory lock", async |connection| {
                sqlx::query_as::<_, (i32, bool)>(
                    "select pg_backend_pid(), exists (select from pg_locks \
                     where locktype = 'advisory' and granted and pid = pg_backend_pid() \
                     and classid::int8 = $1::int8 and objid::int8 = $2::int8 and objsubid = 2)",
                )
                .bind(LOCK_CLASS)
                .bind(key as i32)
                .fetch_one(connection)
                .await
            })
            .await;
        match looked {
            Ok((pid, true)) if pid == self.pid => Ok(()),
            Ok((pid, true)) => Err(Lost(format!(
                "the connection leads to backend {pid} now, not to {}: a pooler stands in between",
                self.pid
            ))),
            Ok((_, false)) => Err(Lost("the server does not list it any more".to_owned())),
            Err(error) => Err(Lost(Chain(&error).to_string())),
        }
    }

    /// Ends the connection and with it the lock. The end of this process would
    /// do as well, so a failure is of no interest.
    pub(super) async fn close(self) {
        let _ = tokio::time::timeout(self.within, self.connection.close()).await;
    }
}

async fn bounded<T>(
    within: Duration,
    doing: &'static str,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, GateError> {
    match tokio::time::timeout(within, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(GateError::Query { doing, source }),
        Err(_) => Err(GateError::Silent { doing, within }),
    }
}
