//! What the threads of one instance share.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::drain::{Life, Stage};
use crate::inflight::Counts;
use crate::probe::Probe;
use crate::route::Table;
use crate::settings::Settings;

/// Shared by all threads of an instance.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) counts: Counts,
    /// What is known of the world; written by the control thread.
    pub(crate) view: watch::Sender<View>,
    /// Whether we stay; written by the drain.
    pub(crate) life: watch::Sender<Life>,
    pub(crate) started: Instant,
}

/// What is known of the world. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// Orders in force.
    pub(crate) table: Option<Arc<Table>>,
    /// When the agent last said anything. `None`: not in this life; the orders,
    /// if any, are from disk.
    pub(crate) heard: Option<Instant>,
    /// What the edge found out itself while the agent was silent.
    pub(crate) probes: Arc<BTreeMap<String, Probe>>,
}

impl Shared {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            counts: Counts::default(),
            view: watch::Sender::new(View::default()),
            life: watch::Sender::new(Life::default()),
            started: Instant::now(),
        }
    }

    /// Orders in force.
    pub(crate) fn table(&self) -> Option<Arc<Table>> {
        self.view.borrow().table.clone()
    }

    pub(crate) fn stage(&self) -> Stage {
        self.life.borrow().stage
    }
}
