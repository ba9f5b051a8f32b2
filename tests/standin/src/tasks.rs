//! The one place that starts background work.

use std::future::Future;

use tokio_util::sync::CancellationToken;

/// Runs a future beside the caller until the program ends.
#[expect(
    clippy::disallowed_methods,
    reason = "the owner is the process: a stand-in has no supervisor of tasks"
)]
pub(crate) fn spawn<F>(work: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(work)
}

/// A token that is cancelled by the first SIGTERM or SIGINT.
///
/// As PID 1 a program without a handler ignores SIGTERM, so every role calls this first.
pub(crate) fn stop_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let token = stop.clone();
    spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        token.cancel();
    });
    Ok(stop)
}
