//! Connections to the main database, pooled as SQLAlchemy does.
//!
//! Not sqlx's pool: that one waits and retries when the server is gone, while
//! the real api answers 500 within 20 ms.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::env::Env;
use crate::failure::Failure;
use crate::postgres::Target;

/// SQLAlchemy's QueuePool: bounded, no retry, and after a broken connection the
/// whole pool is dropped. Without pre-ping the first user of a dead connection fails.
#[derive(Debug)]
pub(crate) struct Pool {
    target: Target,
    idle: Mutex<Vec<PgConnection>>,
    keep: usize,
    slots: Arc<Semaphore>,
    wait: Duration,
    pre_ping: bool,
}

/// A connection on loan; give it back with [`Pool::give_back`] after success only.
#[derive(Debug)]
pub(crate) struct Loan {
    /// The connection.
    pub(crate) connection: PgConnection,
    slot: OwnedSemaphorePermit,
}

impl Pool {
    /// SQLALCHEMY_POOL_* of one process times the number of processes.
    pub(crate) fn new(target: Target, env: &Env, processes: usize) -> Self {
        let keep = env.number("SQLALCHEMY_POOL_SIZE", 30_usize) * processes;
        let most = keep + env.number("SQLALCHEMY_MAX_OVERFLOW", 10_usize) * processes;
        Self {
            target,
            idle: Mutex::new(Vec::new()),
            keep,
            slots: Arc::new(Semaphore::new(most.max(1))),
            wait: env.seconds("SQLALCHEMY_POOL_TIMEOUT", 30),
            pre_ping: env.flag("SQLALCHEMY_POOL_PRE_PING", false),
        }
    }

    /// Borrows a connection.
    pub(crate) async fn take(&self) -> Result<Loan, Failure> {
        let waiting = tokio::time::timeout(self.wait, Arc::clone(&self.slots).acquire_owned());
        let Ok(Ok(slot)) = waiting.await else {
            return Err(Failure::new(
                "sqlalchemy.exc.TimeoutError: QueuePool limit reached, connection timed out",
            ));
        };
        while let Some(mut connection) = self.pop() {
            if !self.pre_ping || connection.ping().await.is_ok() {
                return Ok(Loan { connection, slot });
            }
        }
        Ok(Loan { connection: self.target.connect().await?, slot })
    }

    /// Returns a connection that worked.
    pub(crate) fn give_back(&self, loan: Loan) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.keep {
            idle.push(loan.connection);
        }
        drop(loan.slot);
    }

    /// A broken connection condemns the others.
    pub(crate) fn invalidate(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn pop(&self) -> Option<PgConnection> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}
