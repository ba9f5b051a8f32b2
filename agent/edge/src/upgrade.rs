//! Tunnels: after the upstream's 101, and only then, bytes pass both ways until
//! both sides have ended, nothing moved for the idle bound, or a drain cuts them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tracing::{debug, info};

use crate::access::Exchange;
use crate::guard::Guard;
use crate::upstream::connect::Link;
use crate::websocket::Frames;
use crate::worker::Worker;

/// Longest wait for either side to hand over its socket after the 101.
const HAND_OVER: Duration = Duration::from_secs(30);
/// Longest wait for the close frame to leave.
const FAREWELL: Duration = Duration::from_secs(1);
/// A WebSocket close frame without mask, status 1001 "going away"
/// (RFC 6455, 5.5.1 and 7.4.1).
const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];

/// Starts the tunnel's task; it owns everything the exchange held.
pub(crate) fn start(
    worker: &Arc<Worker>,
    client: OnUpgrade,
    upstream: OnUpgrade,
    link: Link,
    mut exchange: Exchange,
    websocket: bool,
) {
    let held = worker.shared.counts.tunnel();
    let mut life = worker.shared.life.subscribe();
    let born = life.borrow_and_update().cuts;
    let idle = worker.shared.settings.timeouts.idle;
    worker.track(async move {
        let ready = async { tokio::try_join!(client, upstream) };
        let sides = tokio::time::timeout(HAND_OVER, ready).await;
        link.release();
        let Ok(Ok((client, upstream))) = sides else {
            debug!("a side left before the tunnel was up");
            return;
        };
        let Ok(mut tunnel) = Tunnel::new(client, upstream, websocket) else {
            debug!("a side of the tunnel is not ours");
            return;
        };
        tokio::select! {
            // cancel-safe: what is dropped is the tunnel, on purpose.
            ended = tunnel.run(idle) => match ended {
                Ok((up, down)) => {
                    exchange.sent(usize::try_from(down).unwrap_or(usize::MAX));
                    exchange.complete();
                    debug!(up, down, "tunnel ended");
                }
                Err(error) => debug!(%error, "tunnel broke"),
            },
            // cancel-safe: waits on a watch.
            () = async { let _ = life.wait_for(|life| life.cuts > born).await; } => {
                info!("tunnel cut: the drain's bound is reached");
                tunnel.farewell().await;
            }
        }
        drop((exchange, held));
    });
}

/// Both ends, watched.
struct Tunnel {
    client: Tap<TcpStream>,
    upstream: Tap<TcpStream>,
    websocket: bool,
}

impl Tunnel {
    fn new(client: Upgraded, upstream: Upgraded, websocket: bool) -> Result<Self, Upgraded> {
        let client = client.downcast::<TokioIo<Guard<TcpStream>>>()?;
        let upstream = upstream.downcast::<TokioIo<TcpStream>>()?;
        let (socket, early) = client.io.into_inner().into_parts();
        let mut from_client = client.read_buf.to_vec();
        from_client.extend_from_slice(&early);
        Ok(Self {
            client: Tap::new(socket, from_client),
            upstream: Tap::new(upstream.io.into_inner(), upstream.read_buf.to_vec()),
            websocket,
        })
    }

    /// Copies both ways; half-closes are passed on.
    async fn run(&mut self, idle: Duration) -> io::Result<(u64, u64)> {
        let moved = [Arc::clone(&self.client.moved), Arc::clone(&self.upstream.moved)];
        let total = || moved.iter().map(|side| side.load(Ordering::Relaxed)).sum::<u64>();
        let silence = async {
            let mut before = total();
            loop {
                tokio::time::sleep(idle).await;
                let now = total();
                if now == before {
                    return;
                }
                before = now;
            }
        };
        tokio::select! {
            // cancel-safe: neither is resumed.
            copied = tokio::io::copy_bidirectional(&mut self.client, &mut self.upstream) => copied,
            // cancel-safe: as above.
            () = silence => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Tells a WebSocket client why it is cut, if it stands between two frames.
    async fn farewell(mut self) {
        if self.websocket && self.client.written.at_boundary() {
            let goodbye = async {
                self.client.io.write_all(&GOING_AWAY).await?;
                self.client.io.shutdown().await
            };
            // Whether it arrives is up to the client.
            let _ = tokio::time::timeout(FAREWELL, goodbye).await;
        }
    }
}

/// One end of a tunnel: gives out first what was read early, counts what moves,
/// and follows the frames written to it.
struct Tap<S> {
    io: S,
    early: Vec<u8>,
    moved: Arc<AtomicU64>,
    written: Frames,
}

impl<S> Tap<S> {
    fn new(io: S, early: Vec<u8>) -> Self {
        Self { io, early, moved: Arc::default(), written: Frames::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.early.is_empty() {
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        } else {
            let now = self.early.len().min(buf.remaining());
            buf.put_slice(&self.early[..now]);
            self.early.drain(..now);
        }
        let count = buf.filled().len() - before;
        self.moved.fetch_add(count as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.moved.fetch_add(count as u64, Ordering::Relaxed);
        self.written.follow(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
