//! Opening connections to containers, each driven by a task that dies with the
//! [`Link`] that owns it: a client that leaves takes the upstream along at once.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tracing::debug;

use crate::answer::Failure;
use crate::body::RequestBody;
use crate::worker;

/// Longest wait for a connection. On one machine it takes microseconds; a
/// container whose accept queue is full for so long will not answer either.
const CONNECT: Duration = Duration::from_secs(5);
/// Most bytes buffered per direction on an upstream connection; also the
/// longest response head.
const BUFFER: usize = 64 * 1024;

/// One connection to a container. Dropping it closes the connection, whatever
/// is going on there.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) sender: SendRequest<RequestBody>,
    /// Carried a request before.
    pub(crate) reused: bool,
    driver: Driver,
}

#[derive(Debug)]
struct Driver(Option<AbortHandle>);

impl Link {
    /// Connects and shakes hands.
    pub(crate) async fn open(address: SocketAddr) -> Result<Self, Failure> {
        let stream = match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                debug!(%address, %error, "upstream refused the connection");
                return Err(Failure::Connect);
            }
            Err(_) => return Err(Failure::ConnectTimeout),
        };
        // Events leave when they are written; failing costs only latency.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = Builder::new()
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Failure::Closed)?;
        let driver = worker::spawn(async move {
            // Its failures reach whoever waits for the response.
            let _ = connection.with_upgrades().await;
        });
        Ok(Self { sender, reused: false, driver: Driver(Some(driver.abort_handle())) })
    }

    /// Leaves the connection to its driver: after an upgrade it owns the socket
    /// until it has handed it over.
    pub(crate) fn release(mut self) {
        self.driver.0 = None;
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(driver) = &self.0 {
            driver.abort();
        }
    }
}
