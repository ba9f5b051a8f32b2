//! The parts of systemd a service sees: the socket of `sd_notify(3)`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UnixDatagram;
use tokio::task::JoinSet;

use crate::{Doing as _, Outcome};

/// Hears what a service says of itself.
#[derive(Debug)]
pub struct Notifications {
    path: PathBuf,
    heard: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Notifications {
    /// Listens at `path`, the service's `NOTIFY_SOCKET`.
    pub fn listen(path: &Path) -> Outcome<Self> {
        if path.exists() {
            std::fs::remove_file(path).doing(|| format!("remove {}", path.display()))?;
        }
        let socket = UnixDatagram::bind(path).doing(|| format!("bind {}", path.display()))?;
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let mut tasks = JoinSet::new();
        let hearing = Arc::clone(&heard);
        tasks.spawn(async move {
            let mut datagram = vec![0; 4096];
            while let Ok(count) = socket.recv(&mut datagram).await {
                let text = String::from_utf8_lossy(&datagram[..count]).into_owned();
                let lines = text.lines().map(str::to_owned);
                hearing.lock().unwrap_or_else(PoisonError::into_inner).extend(lines);
            }
        });
        Ok(Self { path: path.to_owned(), heard, _tasks: tasks })
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How often `assignment`, such as `READY=1`, was said.
    pub fn count(&self, assignment: &str) -> usize {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().filter(|line| *line == assignment).count()
    }

    /// The last value said of `key`, such as `STATUS`.
    pub fn last(&self, key: &str) -> Option<String> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard
            .iter()
            .rev()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
    }
}
