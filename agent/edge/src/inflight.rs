//! What is in flight, counted by guards: a request counts from the moment it is
//! taken until its last byte is out, its connection is gone, or its tunnel ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The numbers of one edge instance, shared by its threads.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    in_flight: Arc<Gauge>,
    upgraded: Arc<Gauge>,
    connections: Arc<Gauge>,
    /// Kept for names that left the orders: what runs there still counts.
    upstreams: Mutex<BTreeMap<String, Arc<Gauge>>>,
    requests: AtomicU64,
    own_answers: AtomicU64,
}

/// A number of things that exist right now.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    value: AtomicU32,
    /// Told when the number falls to zero.
    empty: Notify,
}

/// One unit of a [`Gauge`].
#[derive(Debug)]
pub(crate) struct Held(Arc<Gauge>);

/// The counts at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) in_flight: u32,
    pub(crate) upgraded: u32,
    pub(crate) by_upstream: BTreeMap<String, u32>,
    pub(crate) requests: u64,
    pub(crate) own_answers: u64,
}

impl Counts {
    /// Counts a request in until the guard falls.
    pub(crate) fn request(&self) -> Held {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Gauge::hold(&self.in_flight)
    }

    /// Counts a tunnel in until the guard falls.
    pub(crate) fn tunnel(&self) -> Held {
        Gauge::hold(&self.upgraded)
    }

    /// Counts a client connection in until the guard falls.
    pub(crate) fn connection(&self) -> Held {
        Gauge::hold(&self.connections)
    }

    /// Client connections that are open.
    pub(crate) fn connections(&self) -> u32 {
        self.connections.get()
    }

    /// Notes an answer the edge gave itself.
    pub(crate) fn own_answer(&self) {
        self.own_answers.fetch_add(1, Ordering::Relaxed);
    }

    /// The gauge of an upstream, by name: it outlives any one set of orders.
    pub(crate) fn upstream(&self, name: &str) -> Arc<Gauge> {
        let mut gauges = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(gauges.entry(name.to_owned()).or_default())
    }

    /// Requests in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Resolves when the number in flight falls to zero; may wake once too often.
    pub(crate) async fn idle(&self) {
        self.in_flight.empty.notified().await;
    }

    /// All of it.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let gauges = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        Snapshot {
            in_flight: self.in_flight.get(),
            upgraded: self.upgraded.get(),
            by_upstream: gauges.iter().map(|(name, g)| (name.clone(), g.get())).collect(),
            requests: self.requests.load(Ordering::Relaxed),
            own_answers: self.own_answers.load(Ordering::Relaxed),
        }
    }
}

impl Gauge {
    /// Counts one in.
    pub(crate) fn hold(gauge: &Arc<Self>) -> Held {
        gauge.value.fetch_add(1, Ordering::AcqRel);
        Held(Arc::clone(gauge))
    }

    fn get(&self) -> u32 {
        self.value.load(Ordering::Acquire)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.0.value.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.empty.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn guards_count_and_the_last_one_tells() {
        let counts = Counts::default();
        let (first, second) = (counts.request(), counts.request());
        let api = Gauge::hold(&counts.upstream("api"));
        assert_eq!(counts.snapshot().in_flight, 2);
        assert_eq!(counts.snapshot().by_upstream["api"], 1);
        drop((first, api));
        assert_eq!((counts.in_flight(), counts.snapshot().by_upstream["api"]), (1, 0));
        drop(second);
        counts.idle().await;
        assert_eq!((counts.in_flight(), counts.snapshot().requests), (0, 2));
    }
}
