//! A container the edge forwards to, and the bounded queue before its slots.

pub(crate) mod connect;
pub(crate) mod pool;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dify_common::wire::edge::Upstream as Spec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::answer::Failure;
use crate::inflight::{Gauge, Held};

/// Longest wait for a slot. Short: a client told to come back in a second fares
/// better than one that waits for a stream of minutes to end.
const QUEUE_WAIT: Duration = Duration::from_secs(10);
/// Fewest that may wait at once, for upstreams with very few slots.
const QUEUE_FLOOR: usize = 16;

/// One container by the orders that describe it.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) name: String,
    pub(crate) spec: Spec,
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    gauge: Arc<Gauge>,
}

/// The right to be served by an upstream; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
    _held: Held,
}

impl Upstream {
    pub(crate) fn new(name: &str, spec: &Spec, gauge: Arc<Gauge>) -> Self {
        let slots = usize::try_from(spec.max_in_flight).unwrap_or(usize::MAX);
        Self {
            name: name.to_owned(),
            spec: spec.clone(),
            slots: Arc::new(Semaphore::new(slots.clamp(1, Semaphore::MAX_PERMITS))),
            waiting: AtomicUsize::new(0),
            gauge,
        }
    }

    /// Takes a slot, waiting in the queue when there is none.
    pub(crate) async fn slot(&self) -> Result<Slot, Failure> {
        let permit = match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait().await?,
        };
        Ok(Slot { _permit: permit, _held: Gauge::hold(&self.gauge) })
    }

    async fn wait(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let queue = usize::try_from(self.spec.max_in_flight).unwrap_or(usize::MAX);
        let place = Place::take(&self.waiting, queue.max(QUEUE_FLOOR))?;
        let permit = Arc::clone(&self.slots).acquire_owned();
        let permit = tokio::time::timeout(QUEUE_WAIT, permit).await;
        drop(place);
        permit.ok().and_then(Result::ok).ok_or(Failure::Overloaded)
    }
}

/// A place in the queue.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, most: usize) -> Result<Self, Failure> {
        let place = Self(waiting);
        if waiting.fetch_add(1, Ordering::AcqRel) >= most {
            return Err(Failure::Overloaded);
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn upstream(max_in_flight: u32) -> Upstream {
        let spec = Spec {
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            pooled: false,
            max_in_flight,
            probe: None,
            required: true,
        };
        Upstream::new("api", &spec, Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_upstream_queues_shortly_and_boundedly() {
        let upstream = upstream(1);
        let held = upstream.slot().await.expect("free");
        assert_eq!(upstream.slot().await.unwrap_err(), Failure::Overloaded);
        let waiters: Vec<_> = (0..=QUEUE_FLOOR).map(|_| upstream.slot()).collect();
        let waiters = futures_util::future::join_all(waiters);
        let release = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(held);
        };
        let (served, ()) = tokio::join!(waiters, release);
        // The one beyond the queue was turned away at once; all hold at the end
        // what they got, so only the first of the queue got the slot.
        let got = served.iter().filter(|slot| slot.is_ok()).count();
        assert_eq!(got, 1);
        drop(served);
        assert!(upstream.slot().await.is_ok());
        assert_eq!(upstream.waiting.load(Ordering::Acquire), 0);
    }
}
