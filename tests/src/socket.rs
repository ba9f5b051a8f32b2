//! A path to a unix socket that a test can cut: the only way an agent under
//! test reaches the Docker engine it shares with everybody else.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::{Doing as _, Outcome};

/// A path to one socket. Dropping it ends every connection on it.
#[derive(Debug)]
pub struct SocketLink {
    path: PathBuf,
    target: PathBuf,
    /// The listening task, which owns its connections.
    tasks: JoinSet<()>,
}

impl SocketLink {
    /// Listens at `path` and leads to `target`.
    pub fn open(path: &Path, target: &Path) -> Outcome<Self> {
        let mut link =
            Self { path: path.to_owned(), target: target.to_owned(), tasks: JoinSet::new() };
        link.restore()?;
        Ok(link)
    }

    /// Ends every connection; the socket is gone, as a stopped daemon's is.
    pub async fn cut(&mut self) -> Outcome {
        self.tasks.shutdown().await;
        std::fs::remove_file(&self.path).doing(|| format!("remove {}", self.path.display()))
    }

    /// Listens again after a cut.
    pub fn restore(&mut self) -> Outcome {
        let listener = UnixListener::bind(&self.path)
            .doing(|| format!("listen at {}", self.path.display()))?;
        self.tasks.spawn(run(listener, self.target.clone()));
        Ok(())
    }
}

async fn run(listener: UnixListener, target: PathBuf) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let target = target.clone();
        connections.spawn(async move {
            let mut engine = UnixStream::connect(target).await?;
            copy_bidirectional(&mut client, &mut engine).await?;
            io::Result::Ok(())
        });
        while connections.try_join_next().is_some() {}
    }
}
