//! Name and TCP connection, apart: "no such name" and "nobody answers" need
//! different hands.

use std::io;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};

/// A name and a connection each: milliseconds inside a VPC.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The name has no address.
    #[error("the name has no address")]
    Name(#[source] io::Error),
    /// The port refuses, or the network has no way there.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// Nobody answers: a firewall drops it, or the address is unused.
    #[error("no answer within {0:?}")]
    Silent(Duration),
}

impl ReachError {
    /// What to do.
    pub(super) fn advice(&self) -> &'static str {
        match self {
            Self::Name(_) => "correct the host name, or the DNS zone this VM asks",
            Self::Connect(_) => "is the service running, and is this its host and port?",
            Self::Silent(_) => {
                "check the address, the firewall rules and the VPC peering (private services access)"
            }
        }
    }
}

/// A connection and how long it took.
pub(super) async fn tcp(host: &str, port: u16) -> Result<(TcpStream, Duration), ReachError> {
    let began = Instant::now();
    let silent = |_| ReachError::Silent(DEADLINE);
    let mut addresses = timeout(DEADLINE, lookup_host((host, port)))
        .await
        .map_err(silent)?
        .map_err(ReachError::Name)?;
    let mut failed = None;
    // Every address of the name, as the clients of Dify do.
    for address in &mut addresses {
        match timeout(DEADLINE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, began.elapsed())),
            Ok(Err(error)) => failed = Some(ReachError::Connect(error)),
            Err(_) => failed = Some(ReachError::Silent(DEADLINE)),
        }
    }
    Err(failed.unwrap_or_else(|| ReachError::Name(io::Error::other("an empty answer"))))
}
