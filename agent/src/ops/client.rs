//! The operator's commands as a client of the running agent, over its socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dify_common::gcp::install_tls_provider;
use dify_common::wire::status::AgentStatus;
use reqwest::{Client, Method};

/// The agent is on the same machine: it answers at once or not at all.
const DEADLINE: Duration = Duration::from_secs(5);

/// The agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    /// No agent behind the socket.
    #[error("ask the agent on {socket}; is `dify-agent run` running, and are you root?")]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the HTTP client says.
        #[source]
        source: reqwest::Error,
    },
    /// It answered something else.
    #[error("the agent answered {status} to {path}")]
    Refused {
        /// What was asked.
        path: &'static str,
        /// The answer.
        status: reqwest::StatusCode,
    },
}

/// Client of one agent.
#[derive(Debug)]
pub struct OpsClient {
    socket: PathBuf,
    client: Client,
}

impl OpsClient {
    /// The agent behind `socket`.
    pub fn new(socket: &Path) -> Self {
        install_tls_provider();
        let client = Client::builder()
            .unix_socket(socket)
            .no_proxy()
            .timeout(DEADLINE)
            .build()
            .expect("no option here can fail");
        Self { socket: socket.to_owned(), client }
    }

    /// The status document.
    pub async fn status(&self) -> Result<AgentStatus, OpsError> {
        let answer = self.ask(Method::GET, "/status").await?;
        answer.json().await.map_err(|source| self.unreachable(source))
    }

    /// Leave service.
    pub async fn drain(&self) -> Result<(), OpsError> {
        self.ask(Method::POST, "/drain").await.map(drop)
    }

    /// Back into service.
    pub async fn undrain(&self) -> Result<(), OpsError> {
        self.ask(Method::POST, "/undrain").await.map(drop)
    }

    fn unreachable(&self, source: reqwest::Error) -> OpsError {
        OpsError::Unreachable { socket: self.socket.clone(), source: source.without_url() }
    }

    async fn ask(&self, method: Method, path: &'static str) -> Result<reqwest::Response, OpsError> {
        let url = format!("http://agent{path}");
        let answer = self.client.request(method, url).send().await;
        let answer = answer.map_err(|source| self.unreachable(source))?;
        let status = answer.status();
        if status.is_success() { Ok(answer) } else { Err(OpsError::Refused { path, status }) }
    }
}

#[cfg(test)]
mod tests {
    use dify_common::tasks::Tasks;
    use dify_common::wire::status::Phase;

    use super::*;
    use crate::board::Board;
    use crate::intent::{Intent, Want};
    use crate::ops::Ops;

    #[tokio::test]
    async fn an_operator_asks_and_drains_over_the_socket() {
        let dir = tempfile::tempdir().expect("temp dir");
        let socket = dir.path().join("ops.sock");
        let client = OpsClient::new(&socket);
        assert!(matches!(client.status().await, Err(OpsError::Unreachable { .. })));

        let (tasks, intent) = (Tasks::default(), Intent::default());
        let board = Board::new("n1".parse().expect("valid"), false);
        let ops = Ops::bind(&socket, None).await.expect("bind");
        ops.spawn(board, intent.clone(), &tasks);
        assert_eq!(client.status().await.expect("status").phase, Phase::Booting);
        client.drain().await.expect("drain");
        assert_eq!(intent.now(), Want::Drain);
        assert!(tasks.stop(DEADLINE).await);
    }
}
