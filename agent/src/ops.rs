//! Operator endpoints: on a unix socket of root's and, to be read only, on
//! port 1081, which asks for no identity and so is loopback's by default.
//!
//! | request | answer | where |
//! | --- | --- | --- |
//! | `GET /status` | the whole [`AgentStatus`](dify_common::wire::status::AgentStatus) | both |
//! | `GET /metrics` | the same as Prometheus text | both |
//! | `POST /drain` | 202: leaves service, containers keep running | socket |
//! | `POST /undrain` | 202: back into service | socket |

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
    tcp: Option<TcpListener>,
}

#[derive(Debug, Clone)]
struct Shared {
    board: Board,
    intent: Intent,
}

impl Ops {
    /// Binds the socket (root's alone) and the address, where there is one.
    pub async fn bind(socket: &Path, address: Option<SocketAddr>) -> Result<Self, BindError> {
        let unix = bind_unix(socket, 0o600)
            .map_err(|source| BindError { place: socket.display().to_string(), source })?;
        let tcp = match address {
            None => None,
            Some(address) => {
                let failed = |source| BindError { place: address.to_string(), source };
                Some(TcpListener::bind(address).await.map_err(failed)?)
            }
        };
        Ok(Self { unix, tcp })
    }

    /// Serves both until told to stop.
    pub fn spawn(self, board: Board, intent: Intent, tasks: &Tasks) {
        let reading = Router::new().route("/status", get(status)).route("/metrics", get(metrics));
        let writing = Router::new().route("/drain", post(drain)).route("/undrain", post(undrain));
        let shared = Shared { board, intent };
        let app = reading.clone().merge(writing).with_state(shared.clone());
        let (unix, stop) = (self.unix, tasks.stopping());
        tasks.spawn_essential("ops-unix", info_span!("ops"), async move {
            let served = axum::serve(unix, app).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = served.await {
                error!(%error, "operator socket");
            }
        });
        let Some(tcp) = self.tcp else { return };
        info!(address = ?tcp.local_addr().ok(), "operator endpoints");
        let (stop, router) = (tasks.stopping(), reading.with_state(shared));
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
