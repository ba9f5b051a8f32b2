//! What was asked of a listener, so that tests can assert it. Bodies and bearers are never kept.

use std::sync::{Arc, Mutex};

use crate::{Service, locked};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Service that was addressed.
    pub service: Service,
    /// HTTP method.
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    /// Status of the answer; `None` while it is awaited, and for good when no answer was sent.
    pub status: Option<u16>,
}

/// The requests of one listener, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<Mutex<Vec<Record>>>);

impl Requests {
    /// All requests so far.
    pub fn all(&self) -> Vec<Record> {
        locked(&self.0).clone()
    }

    /// Requests of one service whose method is `method` and whose target contains `part`.
    pub fn matching(&self, service: Service, method: &str, part: &str) -> Vec<Record> {
        let wanted = |record: &&Record| {
            record.service == service && record.method == method && record.target.contains(part)
        };
        locked(&self.0).iter().filter(wanted).cloned().collect()
    }

    /// Forgets what was asked so far.
    pub fn clear(&self) {
        locked(&self.0).clear();
    }

    pub(crate) fn arrived(&self, service: Service, method: &str, target: &str) -> Arrived {
        let mut all = locked(&self.0);
        all.push(Record {
            service,
            method: method.to_owned(),
            target: target.to_owned(),
            status: None,
        });
        Arrived { all: self.clone(), index: all.len() - 1 }
    }
}

/// A request whose answer is not known yet.
#[derive(Debug)]
pub(crate) struct Arrived {
    all: Requests,
    index: usize,
}

impl Arrived {
    pub(crate) fn answered(self, status: u16) {
        // `clear` may have come between.
        if let Some(record) = locked(&self.all.0).get_mut(self.index) {
            record.status = Some(status);
        }
    }
}
