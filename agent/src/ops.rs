//! Operator endpoints: on a unix socket of root's and on port 1081, which is
//! bound to loopback until the fleet's identity check exists.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /status` | the whole [`AgentStatus`](dify_common::wire::status::AgentStatus) |
//! | `GET /metrics` | the same as Prometheus text |
//! | `POST /drain` | 202: leaves service, containers keep running |
//! | `POST /undrain` | 202: back into service |

mod client;
mod metrics;

use std::net::SocketAddr;
use std::path::Path;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use dify_common::tasks::Tasks;
use tokio::net::{TcpListener, UnixListener};
use tracing::{error, info, info_span};

pub use self::client::{OpsClient, OpsError};
use crate::board::Board;
use crate::front::bind_unix;
use crate::intent::Intent;

/// A listener could not be made.
#[derive(Debug, thiserror::Error)]
#[error("listen for operators on {place}; is another agent of this node running?")]
pub struct BindError {
    place: String,
    #[source]
    source: std::io::Error,
}

/// The bound listeners.
#[derive(Debug)]
pub struct Ops {
    unix: UnixListener,
    tcp: TcpListener,
}

#[derive(Debug, Clone)]
struct Shared {
    board: Board,
    intent: Intent,
}

impl Ops {
    /// Binds the socket (root's alone) and the address.
    pub async fn bind(socket: &Path, address: SocketAddr) -> Result<Self, BindError> {
        let unix = bind_unix(socket, 0o600)
            .map_err(|source| BindError { place: socket.display().to_string(), source })?;
        let tcp = TcpListener::bind(address)
            .await
            .map_err(|source| BindError { place: address.to_string(), source })?;
        Ok(Self { unix, tcp })
    }

    /// Serves both until told to stop.
    pub fn spawn(self, board: Board, intent: Intent, tasks: &Tasks) {
        let router = Router::new()
            .route("/status", get(status))
            .route("/metrics", get(metrics))
            .route("/drain", post(drain))
            .route("/undrain", post(undrain))
            .with_state(Shared { board, intent });
        let (unix, tcp) = (self.unix, self.tcp);
        info!(address = ?tcp.local_addr().ok(), "operator endpoints");
        let (stop, app) = (tasks.stopping(), router.clone());
        tasks.spawn_essential("ops-unix", info_span!("ops"), async move {
            let served = axum::serve(unix, app).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = served.await {
                error!(%error, "operator socket");
            }
        });
        let stop = tasks.stopping();
        tasks.spawn_essential("ops-tcp", info_span!("ops"), async move {
            let served = axum::serve(tcp, router).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = served.await {
                error!(%error, "operator listener");
            }
        });
    }
}

async fn status(State(shared): State<Shared>) -> impl IntoResponse {
    axum::Json(shared.board.status())
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let text = metrics::render(&shared.board.status());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

async fn drain(State(shared): State<Shared>) -> StatusCode {
    shared.intent.drain("an operator asked");
    StatusCode::ACCEPTED
}

async fn undrain(State(shared): State<Shared>) -> StatusCode {
    shared.intent.undrain("an operator asked");
    StatusCode::ACCEPTED
}
