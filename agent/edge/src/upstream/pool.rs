//! Idle connections of one thread, for upstreams whose orders allow them. Never
//! for gunicorn: each idle connection there takes one of few slots.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::connect::Link;

/// How long a connection may lie idle: below the 5 s after which Node's server
/// (which serves Dify's web) closes it, so that few are found dead.
const IDLE: Duration = Duration::from_secs(4);
/// Most idle connections per upstream and thread.
const MOST: usize = 32;

/// The idle connections, newest last.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<HashMap<SocketAddr, Vec<(Instant, Link)>>>);

impl Pool {
    /// The youngest idle connection that still lives.
    pub(crate) fn take(&self, address: SocketAddr) -> Option<Link> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = pool.get_mut(&address)?;
        while let Some((since, link)) = idle.pop() {
            if since.elapsed() < IDLE && link.sender.is_ready() {
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection whose response has been read to its end.
    pub(crate) fn put(&self, address: SocketAddr, mut link: Link) {
        if link.sender.is_closed() {
            return;
        }
        link.reused = true;
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = pool.entry(address).or_default();
        if idle.len() >= MOST {
            idle.remove(0);
        }
        idle.push((Instant::now(), link));
    }

    /// Closes what has been idle too long. Called now and then by the worker.
    pub(crate) fn sweep(&self) {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.retain(|_, idle| {
            idle.retain(|(since, link)| since.elapsed() < IDLE && !link.sender.is_closed());
            !idle.is_empty()
        });
    }
}
