//! The signals that end a process.

use tokio::signal::unix::{SignalKind, signal};

/// Resolves with the name of the first of SIGTERM and SIGINT.
///
/// # Errors
/// The kernel refused the handler (it does not, for these two).
pub async fn requested() -> std::io::Result<&'static str> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        // cancel-safe: `recv` loses no signal when dropped.
        _ = term.recv() => "SIGTERM",
        // cancel-safe: as above.
        _ = interrupt.recv() => "SIGINT",
    })
}
