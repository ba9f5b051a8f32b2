//! Every task has an owner and its end is observed: a loop that returns or
//! panics when nobody asked it to is a fault of the process, not a silence.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, error, info, warn};

/// The tasks of one process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    died: watch::Sender<Option<&'static str>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            died: watch::Sender::new(None),
        }
    }
}

impl Tasks {
    /// Fires when the process should wind down; every loop selects on it.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// The same owner with a stop of its own: what is started through it can be
    /// ended without ending the rest.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { stop: self.stop.child_token(), ..self.clone() }
    }

    /// Tells the tasks of this owner to stop and does not wait.
    pub fn dismiss(&self) {
        self.stop.cancel();
    }

    /// Starts a task that must run until [`Tasks::stopping`] fires. If it ends
    /// sooner, [`Tasks::died`] resolves with its name.
    pub fn spawn_essential<F>(&self, name: &'static str, span: Span, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, died) = (self.stop.clone(), self.died.clone());
        let inner = self.start(task.instrument(span));
        self.start(async move {
            let ended = inner.await;
            if stop.is_cancelled() {
                return;
            }
            match ended {
                Ok(()) => error!(task = name, "essential task returned"),
                Err(error) => error!(task = name, %error, "essential task died"),
            }
            died.send_replace(Some(name));
        });
    }

    /// Starts a task that may end whenever it is done, and is dropped when told
    /// to stop. A panic is logged.
    pub fn spawn<F>(&self, name: &'static str, span: Span, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        let task = async move {
            let _ = stop.run_until_cancelled(task).await;
        };
        let inner = self.start(task.instrument(span));
        self.start(async move {
            if let Err(error) = inner.await
                && error.is_panic()
            {
                error!(task = name, %error, "task panicked");
            }
        });
    }

    /// Resolves with the name of the first essential task that ended on its own.
    pub async fn died(&self) -> &'static str {
        let mut died = self.died.subscribe();
        let found = died.wait_for(Option::is_some).await.ok().and_then(|name| *name);
        found.expect("the sender lives in self")
    }

    /// Tells every task to stop and waits at most `bound`. False: some did not.
    pub async fn stop(&self, bound: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        let left = self.tracker.len();
        if tokio::time::timeout(bound, self.tracker.wait()).await.is_ok() {
            info!(tasks = left, "all tasks ended");
            true
        } else {
            warn!(tasks = self.tracker.len(), ?bound, "tasks did not end in time");
            false
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the owner the ban names")]
    fn start<F>(&self, task: F) -> tokio::task::JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.tracker.track_future(task))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_death_of_an_essential_task_is_seen() {
        let tasks = Tasks::default();
        tasks.spawn_essential("loop", Span::none(), async { panic!("bug") });
        assert_eq!(tasks.died().await, "loop");
    }

    #[tokio::test(start_paused = true)]
    async fn stop_waits_but_not_for_ever() {
        let tasks = Tasks::default();
        tasks.spawn("dropped", Span::none(), std::future::pending());
        assert!(tasks.stop(Duration::from_secs(1)).await);

        let tasks = Tasks::default();
        tasks.spawn_essential("deaf", Span::none(), std::future::pending());
        assert!(!tasks.stop(Duration::from_secs(1)).await);
    }
}
