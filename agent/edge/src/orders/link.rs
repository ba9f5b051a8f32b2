//! The line to the agent: connects, reads orders, sends reports, for ever.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dify_common::chain::Chain;
use dify_common::retry::Backoff;
use dify_common::wire::edge::{HEARTBEAT, Orders, Report};
use futures_util::{SinkExt, StreamExt};
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};
use tracing::{debug, info, warn};

use super::{apply, store};
use crate::state::Shared;

/// Longest line taken: orders of a hundred routes are some 20 KB.
const LINE: usize = 1024 * 1024;
/// Longest wait for the agent's socket to take a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// A line without a word for so long is dead: the agent repeats its orders
/// every [`HEARTBEAT`].
const SILENCE: Duration = Duration::from_secs(10);

/// Why a line to the agent ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("connect to the agent's socket")]
    Connect(#[source] io::Error),
    #[error("read orders")]
    Read(#[source] LinesCodecError),
    #[error("send a report")]
    Send(#[source] LinesCodecError),
    #[error("the agent closed the line")]
    Closed,
    #[error("the agent said nothing for {SILENCE:?}")]
    Silent,
}

/// Runs for the life of the process.
pub(crate) async fn run(shared: Arc<Shared>, listen: SocketAddr) {
    let backoff = Backoff::try_new(Duration::from_millis(50), Duration::from_secs(1))
        .expect("50 ms is less than 1 s");
    let mut failed = 0;
    loop {
        let mut spoke = false;
        let Err(error) = talk(&shared, listen, &mut spoke).await;
        if spoke {
            info!(error = %Chain(&error), "lost the agent, going on with its last orders");
            failed = 0;
        } else {
            debug!(error = %Chain(&error), "agent not reached");
        }
        tokio::time::sleep(backoff.wait(failed)).await;
        failed = failed.saturating_add(1);
    }
}

async fn talk(
    shared: &Arc<Shared>,
    listen: SocketAddr,
    spoke: &mut bool,
) -> Result<std::convert::Infallible, LinkError> {
    let connect = UnixStream::connect(&shared.settings.agent_socket);
    let stream = tokio::time::timeout(CONNECT, connect)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(LinkError::Connect)?;
    let mut line = Framed::new(stream, LinesCodec::new_with_max_length(LINE));
    let mut life = shared.life.subscribe();
    let mut beat = tokio::time::interval(HEARTBEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let silence = tokio::time::sleep(SILENCE);
    tokio::pin!(silence);
    loop {
        let report_now = tokio::select! {
            // cancel-safe: a codec keeps what it has read.
            read = line.next() => {
                let text = read.ok_or(LinkError::Closed)?.map_err(LinkError::Read)?;
                silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
                match serde_json::from_str::<Orders>(&text) {
                    Ok(orders) => {
                        if !*spoke {
                            info!(sequence = orders.sequence, "agent reached");
                        }
                        *spoke = true;
                        take(shared, orders).await
                    }
                    Err(error) => {
                        warn!(%error, "the agent said something that is no orders");
                        false
                    }
                }
            }
            // cancel-safe: an interval.
            _ = beat.tick() => true,
            // cancel-safe: waits on a watch; the report reads it anew.
            _ = life.changed() => true,
            // cancel-safe: a timer.
            () = &mut silence => return Err(LinkError::Silent),
        };
        if report_now {
            let text = serde_json::to_string(&report(shared, listen))
                .expect("numbers and texts always serialise");
            // Bounded by the silence above: an agent that takes nothing in also
            // repeats nothing.
            tokio::time::timeout(SILENCE, line.send(text))
                .await
                .map_err(|_| LinkError::Silent)?
                .map_err(LinkError::Send)?;
        }
    }
}

/// Puts orders in force and on disk. True: they were news.
async fn take(shared: &Arc<Shared>, orders: Orders) -> bool {
    let news = apply(shared, orders, true);
    // What is in force, which orders of an adopting agent are only a part of.
    let in_force = shared.table().map(|table| table.orders.clone());
    if news && let Some(orders) = in_force {
        let (directory, instance) =
            (shared.settings.state_dir.clone(), shared.settings.instance.to_string());
        let saved =
            tokio::task::spawn_blocking(move || store::save(&directory, &instance, &orders));
        match saved.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(error = %Chain(&error), "orders not kept on disk, a restart without the agent would not serve");
            }
            Err(error) => warn!(%error, "keeping orders on disk failed"),
        }
    }
    news
}

fn report(shared: &Shared, listen: SocketAddr) -> Report {
    let counts = shared.counts.snapshot();
    let sequence = shared.view.borrow().table.as_ref().map_or(0, |table| table.orders.sequence);
    Report {
        instance: shared.settings.instance.to_string(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sequence,
        state: shared.life.borrow().state,
        listen: Some(listen),
        in_flight: counts.in_flight,
        upgraded: counts.upgraded,
        by_upstream: counts.by_upstream,
        requests: counts.requests,
        own_answers: counts.own_answers,
    }
}
