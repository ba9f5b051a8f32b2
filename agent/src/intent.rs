//! What is wanted of the node from outside: serve, leave service, or stop.

use tokio::sync::watch;
use tracing::info;

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Want {
    /// In service.
    #[default]
    Serve,
    /// Out of service; containers keep running.
    Drain,
    /// Out of service, then every container of ours stopped.
    Stop,
}

/// The wish, shared. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Intent(watch::Sender<Want>);

impl Intent {
    /// Leave service. A stop under way stays one.
    pub fn drain(&self, why: &'static str) {
        self.set(Want::Drain, why);
    }

    /// Back into service. A stop under way stays one.
    pub fn undrain(&self, why: &'static str) {
        self.set(Want::Serve, why);
    }

    /// Leave service and stop; there is no way back.
    pub fn stop(&self, why: &'static str) {
        self.set(Want::Stop, why);
    }

    /// The wish now.
    pub fn now(&self) -> Want {
        *self.0.borrow()
    }

    /// Wakes when it changes.
    pub fn watch(&self) -> watch::Receiver<Want> {
        self.0.subscribe()
    }

    fn set(&self, want: Want, why: &'static str) {
        self.0.send_if_modified(|present| {
            if *present == want || *present == Want::Stop {
                return false;
            }
            info!(from = ?*present, to = ?want, why, "intent");
            *present = want;
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_final() {
        let intent = Intent::default();
        intent.drain("test");
        assert_eq!(intent.now(), Want::Drain);
        intent.undrain("test");
        assert_eq!(intent.now(), Want::Serve);
        intent.stop("test");
        intent.undrain("test");
        assert_eq!(intent.now(), Want::Stop);
    }
}
