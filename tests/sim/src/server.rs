//! A listener and its connections: HTTP/1, faults and the request log around a service.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, Mutex},
};

use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Service,
    faults::{Effect, Faults},
    locked,
    requests::Requests,
    wire::{self, Body, Call, Reply},
};

/// What answers requests.
pub(crate) trait Answer: Send + Sync + 'static {
    /// Which service a path belongs to.
    fn service(&self, path: &str) -> Service;
    /// An error of this status in the service's own shape.
    fn refuse(&self, service: Service, status: StatusCode) -> Reply;
    /// The answer, faults aside.
    fn answer(&self, service: Service, call: Call) -> BoxFuture<'_, Reply>;
}

/// A listener that can be closed and opened again on the same address.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    open: Mutex<Option<Open>>,
}

struct Shared {
    answer: Arc<dyn Answer>,
    faults: Faults,
    requests: Requests,
}

struct Open {
    end: CancellationToken,
    accepting: JoinHandle<()>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(open) = locked(&self.open).take() {
            open.end.cancel();
        }
    }
}

impl Server {
    pub(crate) fn start(listener: StdListener, answer: Arc<dyn Answer>) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { answer, faults: Faults::default(), requests: Requests::default() });
        let server = Self { address: listener.local_addr()?, shared, open: Mutex::new(None) };
        server.open_on(listener)?;
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    pub(crate) fn requests(&self) -> &Requests {
        &self.shared.requests
    }

    /// Closes the listener and every connection; when this returns, connecting is refused.
    pub(crate) async fn close(&self) {
        let open = locked(&self.open).take();
        if let Some(Open { end, accepting }) = open {
            end.cancel();
            // An error here is a panic of a connection's task, and that one has been printed.
            let _ = accepting.await;
        }
    }

    /// Listens again on the same address.
    pub(crate) async fn reopen(&self) -> io::Result<()> {
        self.close().await;
        self.open_on(bind(self.address)?)
    }

    /// Listens on `listener`, which the caller has bound (in another network namespace, say).
    pub(crate) fn open_on(&self, listener: StdListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let end = CancellationToken::new();
        let accepting = spawn(accept(listener, Arc::clone(&self.shared), end.clone()));
        *locked(&self.open) = Some(Open { end, accepting });
        Ok(())
    }
}

/// Binds with `SO_REUSEADDR`, as a server that is opened again on its port needs.
pub(crate) fn bind(address: SocketAddr) -> io::Result<StdListener> {
    // std sets SO_REUSEADDR on listeners on Unix.
    StdListener::bind(address)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, end: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            // cancel-safe: a connection not yet accepted is reset with the listener, which is what closing means.
            accepted = listener.accept() => accepted,
            // cancel-safe: nothing is held.
            () = end.cancelled() => break,
        };
        // A connection that died in the queue is its client's matter.
        let Ok((stream, _)) = accepted else { continue };
        let (shared, end) = (Arc::clone(&shared), end.clone());
        spawn(connections.track_future(async move {
            let service = service_fn(|request| shared.serve(request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // cancel-safe: dropping it closes the connection, which is what closing means. Its error is either
                // the client's going away or a fault that asked for it.
                _ = connection => {}
                // cancel-safe: nothing is held.
                () = end.cancelled() => {}
            }
        }));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

impl Shared {
    /// An error closes the connection without an answer.
    async fn serve(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let service = self.answer.service(request.uri().path());
        let head_only = request.method() == Method::HEAD;
        let mut call = Call::read(request).await?;
        let arrived = self.requests.arrived(service, call.method.as_str(), &call.target);
        let struck = self.faults.strike(service, &call.method, &call.target);
        let effect = struck.as_ref().map(|struck| struck.effect);
        match effect {
            Some(Effect::Status(status)) => {
                let status = StatusCode::from_u16(status).map_err(io::Error::other)?;
                arrived.answered(status.as_u16());
                return Ok(wire::whole(self.answer.refuse(service, status)));
            }
            Some(Effect::LoseRequest) => return Err(io::Error::other("request lost by a fault")),
            Some(Effect::Delay(by)) => tokio::time::sleep(by).await,
            Some(Effect::Hang) => {
                let struck = struck.expect("an effect comes from a fault");
                struck.cleared.cancelled().await;
            }
            Some(Effect::WrongChecksum) => call.spoil_checksum = true,
            Some(Effect::LoseAnswer | Effect::CutAnswer(_)) | None => {}
        }
        let mut reply = self.answer.answer(service, call).await;
        if effect == Some(Effect::LoseAnswer) {
            return Err(io::Error::other("answer lost by a fault"));
        }
        arrived.answered(reply.status().as_u16());
        if head_only {
            let length = reply.body().len().to_string();
            wire::set(&mut reply, "content-length", &length);
            *reply.body_mut() = bytes::Bytes::new();
        }
        Ok(if let Some(Effect::CutAnswer(keep)) = effect {
            wire::cut(reply, keep)
        } else {
            wire::whole(reply)
        })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "every task of the simulator starts here; its server cancels it"
)]
fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task)
}
