//! The gate and the preflight probes against real servers: a throw-away
//! PostgreSQL 15 and a throw-away Redis with what Memorystore blocks renamed
//! away, both on loopback.

mod certificates;
mod gate;
mod google;
mod link;
mod postgres;
mod postgres_probe;
mod readiness;
mod redis_probe;

use std::future::Future;
use std::net::TcpListener;
use std::time::Duration;

/// Asks `found` every 20 ms until it answers, at most 30 s.
async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, mut found: impl FnMut() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(value) = found().await {
                return value;
            }
            // sleeps: this is the one wait of these tests, with its deadline around it.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let at_most = Duration::from_secs(30);
    tokio::time::timeout(at_most, waiting)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {at_most:?}"))
}

/// Only compiles for what can run in a task of its own.
fn is_send<T: Send>(value: T) -> T {
    value
}

/// A port that was free a moment ago; both servers want a number up front.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    listener.local_addr().expect("bound").port()
}
