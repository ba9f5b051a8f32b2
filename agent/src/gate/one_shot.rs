//! What the gate wants of the container engine.

use std::error::Error;
use std::future::Future;

/// How a one-shot container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its exit code.
    pub exit_code: i64,
    /// Its last lines, stdout and stderr as they came; some hundred suffice.
    pub lines: Vec<String>,
}

/// A one-shot container could not be run: nothing is known of its work.
#[derive(Debug, thiserror::Error)]
#[error("run a one-shot container")]
pub struct OneShotError(#[source] pub Box<dyn Error + Send + Sync>);

/// Runs one-shot containers of the api image. A call ends when its container
/// has exited and is removed. Dropping a call may leave the container running:
/// [`OneShots::stop_all`] is called then.
pub trait OneShots: Send + Sync {
    /// `MODE=job`, `flask db heads`.
    fn heads(&self) -> impl Future<Output = Result<Finished, OneShotError>> + Send;

    /// `MODE=migration` with `MIGRATION_ENABLED=true`. `on_line` takes each
    /// line as it is printed.
    fn migrate(
        &self,
        on_line: &(dyn Fn(&str) + Send + Sync),
    ) -> impl Future<Output = Result<Finished, OneShotError>> + Send;

    /// `MODE=job`, `flask ARGS`.
    fn run(&self, args: &[String]) -> impl Future<Output = Result<Finished, OneShotError>> + Send;

    /// Kills and removes every one-shot container of this node, also one a
    /// former process of this agent left; none there is success.
    fn stop_all(&self) -> impl Future<Output = Result<(), OneShotError>> + Send;
}
