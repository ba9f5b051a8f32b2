//! A TCP line that can go dead without a word, as a network partition does.

use dify_common::tasks::Tasks;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tracing::Span;

/// The line; cut for good when dropped.
pub(crate) struct Link {
    pub(crate) port: u16,
    frozen: watch::Sender<bool>,
    tasks: Tasks,
}

impl Link {
    /// Leads to a port on loopback.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let here = listener.local_addr().expect("bound").port();
        let (frozen, tasks) = (watch::Sender::new(false), Tasks::default());
        let (freezes, stopping, lines) = (frozen.subscribe(), tasks.stopping(), tasks.clone());
        tasks.spawn("link", Span::none(), async move {
            while let Some(Ok((near, _))) = stopping.run_until_cancelled(listener.accept()).await {
                let far =
                    TcpStream::connect(("127.0.0.1", port)).await.expect("the server is there");
                let (freezes, stopping) = (freezes.clone(), lines.stopping());
                lines.spawn("line", Span::none(), async move {
                    stopping.run_until_cancelled(carry(near, far, freezes)).await;
                });
            }
        });
        Self { port: here, frozen, tasks }
    }

    /// From now on nothing arrives, and nobody is told.
    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

async fn carry(mut near: TcpStream, mut far: TcpStream, mut freezes: watch::Receiver<bool>) {
    tokio::select! {
        // cancel-safe: bytes in flight are lost with the line.
        _ = copy_bidirectional(&mut near, &mut far) => return,
        // cancel-safe: nothing is consumed.
        _ = freezes.wait_for(|frozen| *frozen) => {}
    }
    // Both ends stay open, for neither to notice.
    std::future::pending::<()>().await;
}
