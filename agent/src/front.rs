//! The agent's side of the edge link: a unix socket on which every connected
//! edge gets the present orders at once, on every change and every heartbeat,
//! and says back what it carries.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use dify_common::tasks::Tasks;
use dify_common::wire::edge::{HEARTBEAT, Report};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, info_span, warn};

use crate::board::Board;

/// A report is a few hundred bytes; more than this is not a report.
const REPORT_LIMIT: u64 = 64 * 1024;

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("listen for edges on {path}; is another agent of this node running?")]
pub struct FrontError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// The bound socket.
#[derive(Debug)]
pub struct EdgeLink {
    listener: UnixListener,
}

/// Binds a unix socket for others of its group, replacing a dead one.
pub fn bind_unix(path: &Path, mode: u32) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

impl EdgeLink {
    /// Binds `path`. The edge runs as another user; the socket's folder is
    /// what keeps strangers out (systemd: `RuntimeDirectoryMode`).
    pub fn bind(path: &Path) -> Result<Self, FrontError> {
        bind_unix(path, 0o666)
            .map(|listener| Self { listener })
            .map_err(|source| FrontError { path: path.to_owned(), source })
    }

    /// Serves edges until told to stop.
    pub async fn run(self, board: Board, tasks: Tasks) {
        static CONNECTION: AtomicU64 = AtomicU64::new(0);
        let stopping = tasks.stopping();
        loop {
            let accepted = tokio::select! {
                // cancel-safe: an unaccepted connection stays in the backlog.
                accepted = self.listener.accept() => accepted,
                // cancel-safe: a token can be awaited again.
                () = stopping.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let id = CONNECTION.fetch_add(1, Ordering::Relaxed);
                    let (board, stopping) = (board.clone(), stopping.clone());
                    tasks.spawn("edge-link", info_span!("edge", connection = id), async move {
                        tokio::select! {
                            // cancel-safe: the connection ends with this process anyway.
                            () = converse(stream, id, &board) => {}
                            // cancel-safe: as above.
                            () = stopping.cancelled() => {}
                        }
                        board.edge(id, None);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: give others time to close.
                    warn!(%error, "accept an edge");
                    tokio::time::sleep(HEARTBEAT).await;
                }
            }
        }
    }
}

async fn converse(stream: UnixStream, id: u64, board: &Board) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(u64::MAX));
    let mut views = board.watch();
    let mut beat = interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut line = Vec::new();
    let mut sequence = 0;
    let mut known = false;
    loop {
        lines.get_mut().set_limit(REPORT_LIMIT);
        tokio::select! {
            // cancel-safe: `read_until` appends to `line`, which outlives the loop.
            read = lines.read_until(b'\n', &mut line) => {
                match read {
                    Ok(_) if line.ends_with(b"\n") => {}
                    Ok(_) | Err(_) => {
                        info!("edge disconnected");
                        return;
                    }
                }
                match serde_json::from_slice::<Report>(&line) {
                    Ok(report) => {
                        if !known {
                            info!(instance = report.instance, version = report.version, "edge connected");
                            known = true;
                        }
                        board.edge(id, Some(report));
                    }
                    Err(error) => warn!(%error, "an edge said what is not a report"),
                }
                line.clear();
                continue;
            }
            // cancel-safe: `changed` marks nothing as seen until it resolves.
            changed = views.changed() => if changed.is_err() { return },
            // cancel-safe: a tick is not lost.
            _ = beat.tick() => {}
        }
        sequence += 1;
        let orders = views.borrow_and_update().orders(sequence);
        let mut text = serde_json::to_string(&orders).expect("orders are plain data");
        text.push('\n');
        // An edge that reads nothing for this long is as good as gone.
        let written = timeout(HEARTBEAT * 5, write.write_all(text.as_bytes())).await;
        if !matches!(written, Ok(Ok(()))) {
            info!("edge does not take orders");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use dify_common::wire::edge::{EdgeState, Orders};
    use dify_common::wire::status::Phase;

    use tracing::Span;

    use super::*;

    async fn next(lines: &mut BufReader<UnixStream>) -> Orders {
        let mut line = String::new();
        let read = timeout(HEARTBEAT * 5, lines.read_line(&mut line)).await;
        assert!(read.expect("in time").expect("read") > 0);
        serde_json::from_str(&line).expect("orders")
    }

    #[tokio::test]
    async fn an_edge_gets_orders_at_once_and_on_change_and_its_report_is_seen() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("edge.sock");
        let board = Board::new("n1".parse().expect("valid"), false);
        let tasks = Tasks::default();
        let link = EdgeLink::bind(&path).expect("bind");
        tasks.spawn_essential("link", Span::none(), link.run(board.clone(), tasks.clone()));

        let mut edge = BufReader::new(UnixStream::connect(&path).await.expect("connect"));
        assert_eq!(next(&mut edge).await.phase, Phase::Booting);
        board.enter(Phase::Serving);
        while next(&mut edge).await.phase != Phase::Serving {}

        let report = Report {
            instance: "a".into(),
            pid: 1,
            version: "0".into(),
            sequence: 1,
            state: EdgeState::Serving,
            listen: None,
            in_flight: 3,
            upgraded: 0,
            by_upstream: std::collections::BTreeMap::new(),
            requests: 9,
            own_answers: 0,
        };
        let mut text = serde_json::to_string(&report).expect("JSON");
        text.push('\n');
        let mut edges = board.watch_edges();
        edge.get_mut().write_all(text.as_bytes()).await.expect("write");
        let seen = timeout(HEARTBEAT * 5, edges.wait_for(|edges| !edges.is_empty())).await;
        assert_eq!(seen.expect("in time").expect("board lives").values().next(), Some(&report));

        drop(edge);
        let gone =
            timeout(HEARTBEAT * 5, edges.wait_for(std::collections::BTreeMap::is_empty)).await;
        assert!(gone.expect("in time").is_ok());
        assert!(tasks.stop(HEARTBEAT * 5).await);
    }
}
