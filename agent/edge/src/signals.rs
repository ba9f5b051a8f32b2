//! Signals, turned into what the instance is asked.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::app::Handle;
use crate::drain::Ask;

/// Passes signals on for the life of the process: SIGTERM and SIGINT drain and
/// end (a second one cuts), SIGUSR1 hands over to another instance.
///
/// # Errors
/// The kernel refused a handler.
pub async fn pass_on(handle: Handle) -> io::Result<std::convert::Infallible> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hand_over = signal(SignalKind::user_defined1())?;
    loop {
        let ask = tokio::select! {
            // cancel-safe: `recv` loses no signal when dropped.
            _ = term.recv() => Ask::Terminate("SIGTERM"),
            // cancel-safe: as above.
            _ = interrupt.recv() => Ask::Terminate("SIGINT"),
            // cancel-safe: as above.
            _ = hand_over.recv() => Ask::HandOver,
        };
        info!(?ask, "signal");
        handle.ask(ask);
    }
}
