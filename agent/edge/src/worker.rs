//! One thread, one runtime, one accept loop. Whatever a connection needs (its
//! streams, upstreams, pooled connections, timers) stays on the thread that
//! accepted it. This module owns the tasks of the data plane.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::drain::Stage;
use crate::forward;
use crate::guard::{Client, Guard};
use crate::state::Shared;
use crate::upstream::pool::Pool;

/// Most bytes buffered per direction on a client connection; a head (at most
/// half of it) with the beginning of its body fits.
const BUFFER: usize = 64 * 1024;
/// How often a thread shows that it runs, and sweeps its pool.
pub(crate) const BEAT: Duration = Duration::from_secs(1);
/// Pause after the kernel refused an accept (out of descriptors or memory).
const REFUSED: Duration = Duration::from_millis(50);

/// One thread's share of the instance.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    tasks: TaskTracker,
    /// Milliseconds after the start at which this thread last showed itself.
    beat: Arc<AtomicU64>,
}

/// Starts a task on this thread's runtime.
#[expect(
    clippy::disallowed_methods,
    reason = "the owner of the data plane's tasks: each is a connection that ends with its peer \
              or is aborted by the guard that started it; common's Tasks would add two tasks to each"
)]
pub(crate) fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(task)
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, beat: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self { shared, pool: Pool::default(), tasks: TaskTracker::new(), beat })
    }

    /// Starts a task the thread waits for before it ends.
    pub(crate) fn track<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        spawn(self.tasks.track_future(task));
    }

    /// Accepts until told not to, then lets every connection end.
    pub(crate) async fn run(
        self: Arc<Self>,
        socket: std::net::TcpListener,
        inherited: bool,
    ) -> io::Result<()> {
        let listener = TcpListener::from_std(socket)?;
        let mut life = self.shared.life.subscribe();
        let mut beat = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                // cancel-safe: an accept that is dropped accepted nothing.
                accepted = listener.accept() => self.accepted(accepted).await,
                // cancel-safe: waits on a watch.
                _ = life.wait_for(|life| !life.accept) => break,
                // cancel-safe: an interval.
                _ = beat.tick() => self.show(),
            }
        }
        if !inherited {
            // Closing a socket resets what its queue holds, and nobody else
            // will take it.
            while let Some(accepted) = listener.accept().now_or_never() {
                self.accepted(accepted).await;
            }
        }
        drop(listener);
        self.tasks.close();
        loop {
            tokio::select! {
                // cancel-safe: waits for a count.
                () = self.tasks.wait() => return Ok(()),
                // cancel-safe: an interval.
                _ = beat.tick() => self.show(),
            }
        }
    }

    fn show(&self) {
        let now = u64::try_from(self.shared.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat.store(now, Ordering::Relaxed);
        self.pool.sweep();
    }

    async fn accepted(self: &Arc<Self>, accepted: io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((stream, address)) => {
                let worker = Arc::clone(self);
                self.track(worker.serve(stream, address));
            }
            Err(error) => {
                // Transient kinds concern one client; the others need a pause,
                // or the loop would spin.
                warn!(%error, "accept failed");
                tokio::time::sleep(REFUSED).await;
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, address: SocketAddr) {
        let shared = Arc::clone(&self.shared);
        let _held = shared.counts.connection();
        // Events leave when they are written; failing costs only latency.
        let _ = stream.set_nodelay(true);
        let surplus = shared.counts.connections() > shared.settings.max_connections;
        let client = Arc::new(Client::new(address, surplus));
        let guard = Guard::new(stream, Arc::clone(&client), shared.settings.timeouts);
        let service = service_fn(move |request| {
            forward::handle(Arc::clone(&self), Arc::clone(&client), request)
        });
        let connection = http1::Builder::new()
            .half_close(false)
            // The guard has its own, better clocks.
            .header_read_timeout(None)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(guard), service)
            .with_upgrades();
        tokio::pin!(connection);
        let mut life = shared.life.subscribe();
        let born = life.borrow_and_update().cuts;
        loop {
            tokio::select! {
                // cancel-safe: pinned outside the loop.
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        let error = dify_common::chain::Chain(&error);
                        debug!(client = %address, %error, "connection ended");
                    }
                    return;
                }
                // cancel-safe: waits on a watch, read anew.
                changed = life.changed() => {
                    let now = *life.borrow_and_update();
                    if changed.is_err() || now.cuts > born {
                        debug!(client = %address, "connection cut");
                        return;
                    }
                    if now.stage == Stage::Closing {
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }
    }
}
