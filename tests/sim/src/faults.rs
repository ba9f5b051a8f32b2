//! Faults: what goes wrong with the next calls that match.
//!
//! Each listener (the shared Google APIs, each metadata server) has its own set: what one VM suffers does not reach
//! another. The first fault that matches a call and is not used up decides; a used-up fault stays in the count.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Method;
use tokio_util::sync::CancellationToken;

use crate::{Service, locked};

/// What happens to a call that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answered with this status in the service's own error shape; nothing else happens.
    Status(u16),
    /// No answer until the fault is cleared; then the call goes on as if nothing had been.
    Hang,
    /// The call is carried out this much later.
    Delay(Duration),
    /// The connection closes before anything is done.
    LoseRequest,
    /// Everything is done, then the connection closes without an answer.
    LoseAnswer,
    /// The answer's body breaks off after this many bytes; its head promised more.
    CutAnswer(usize),
    /// Data arrives with a checksum that does not fit it (`dataCrc32c`, `x-goog-hash`).
    WrongChecksum,
}

/// Which calls fail, how, and how many of them.
#[derive(Clone, Debug)]
pub struct Fault {
    effect: Effect,
    service: Option<Service>,
    method: Option<Method>,
    path: Option<String>,
    left: Option<u32>,
}

impl Fault {
    /// Every call, until cleared.
    pub fn new(effect: Effect) -> Self {
        Self { effect, service: None, method: None, path: None, left: None }
    }

    /// Only calls of this service.
    #[must_use]
    pub fn on(mut self, service: Service) -> Self {
        self.service = Some(service);
        self
    }

    /// Only calls with this method.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// Only calls whose path and query, as sent, contain this.
    #[must_use]
    pub fn path(mut self, part: impl Into<String>) -> Self {
        self.path = Some(part.into());
        self
    }

    /// Only the next `count` matching calls.
    #[must_use]
    pub fn times(mut self, count: u32) -> Self {
        self.left = Some(count);
        self
    }

    fn matches(&self, service: Service, method: &Method, target: &str) -> bool {
        self.left != Some(0)
            && self.service.is_none_or(|wanted| wanted == service)
            && self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.path.as_ref().is_none_or(|part| target.contains(part.as_str()))
    }
}

/// The faults of one listener.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Vec<Placed>>>);

/// A fault in place; it stays when this is dropped.
#[derive(Clone, Debug)]
pub struct FaultHandle {
    all: Faults,
    cleared: CancellationToken,
    hits: Arc<Mutex<u32>>,
}

#[derive(Debug)]
struct Placed {
    fault: Fault,
    cleared: CancellationToken,
    hits: Arc<Mutex<u32>>,
}

/// A fault that struck a call.
#[derive(Debug)]
pub(crate) struct Struck {
    pub(crate) effect: Effect,
    pub(crate) cleared: CancellationToken,
}

impl Faults {
    /// Puts a fault in place; it acts from the next request on.
    pub fn inject(&self, fault: Fault) -> FaultHandle {
        let (cleared, hits) = (CancellationToken::new(), Arc::default());
        locked(&self.0).push(Placed { fault, cleared: cleared.clone(), hits: Arc::clone(&hits) });
        FaultHandle { all: self.clone(), cleared, hits }
    }

    /// Ends every fault; hanging calls go on.
    pub fn clear(&self) {
        for placed in locked(&self.0).drain(..) {
            placed.cleared.cancel();
        }
    }

    pub(crate) fn strike(&self, service: Service, method: &Method, target: &str) -> Option<Struck> {
        let mut all = locked(&self.0);
        let placed = all.iter_mut().find(|placed| placed.fault.matches(service, method, target))?;
        if let Some(left) = &mut placed.fault.left {
            *left -= 1;
        }
        *locked(&placed.hits) += 1;
        Some(Struck { effect: placed.fault.effect, cleared: placed.cleared.clone() })
    }
}

impl FaultHandle {
    /// How many calls it has struck.
    pub fn hits(&self) -> u32 {
        *locked(&self.hits)
    }

    /// Ends this fault; calls it holds go on.
    pub fn clear(&self) {
        self.cleared.cancel();
        locked(&self.all.0).retain(|placed| !placed.cleared.is_cancelled());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_matching_fault_that_is_not_used_up_decides() {
        let faults = Faults::default();
        let twice = faults
            .inject(Fault::new(Effect::Status(503)).on(Service::Storage).path("/o/a").times(2));
        faults.inject(Fault::new(Effect::Hang).method(Method::DELETE));
        let strike = |service, method: Method, target| {
            faults.strike(service, &method, target).map(|struck| struck.effect)
        };
        assert_eq!(
            strike(Service::Storage, Method::GET, "/storage/v1/b/x/o/a"),
            Some(Effect::Status(503))
        );
        assert_eq!(strike(Service::Token, Method::GET, "/storage/v1/b/x/o/a"), None);
        assert_eq!(
            strike(Service::Storage, Method::DELETE, "/storage/v1/b/x/o/a"),
            Some(Effect::Status(503))
        );
        assert_eq!(
            strike(Service::Storage, Method::DELETE, "/storage/v1/b/x/o/a"),
            Some(Effect::Hang)
        );
        assert_eq!(twice.hits(), 2);
        faults.clear();
        assert_eq!(strike(Service::Storage, Method::DELETE, "/storage/v1/b/x/o/a"), None);
    }
}
