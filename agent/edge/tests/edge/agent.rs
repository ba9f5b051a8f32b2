//! A scripted agent: says what it is told to say, remembers what it hears.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dify_common::wire::edge::{HEARTBEAT, Orders, Report};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::bed::{spawn, wait_for};

pub(crate) struct Agent {
    path: PathBuf,
    orders: watch::Sender<Orders>,
    last: Arc<Mutex<Option<Report>>>,
    /// Ends the listener and every line when dropped.
    life: Option<watch::Sender<()>>,
}

impl Agent {
    /// Listens at `path`.
    pub(crate) fn start(path: &Path, orders: Orders) -> Self {
        let mut agent = Self::absent(path, orders);
        agent.back();
        agent
    }

    /// Does not run yet.
    pub(crate) fn absent(path: &Path, orders: Orders) -> Self {
        let (path, orders) = (path.to_owned(), watch::Sender::new(orders));
        Self { path, orders, last: Arc::default(), life: None }
    }

    /// Dies: lines are cut, the socket is gone.
    pub(crate) fn kill(&mut self) {
        self.life = None;
        *self.last.lock().expect("unpoisoned") = None;
        std::fs::remove_file(&self.path).expect("it was there");
    }

    /// Starts (again).
    pub(crate) fn back(&mut self) {
        let listener = UnixListener::bind(&self.path).expect("bound");
        let (life, mut ended) = watch::channel(());
        self.life = Some(life);
        let (orders, last) = (self.orders.clone(), Arc::clone(&self.last));
        spawn(async move {
            let mut lines = JoinSet::new();
            loop {
                tokio::select! {
                    // cancel-safe: the set is dropped, and with it every line.
                    _ = ended.changed() => return,
                    // cancel-safe: an accept that is dropped accepted nothing.
                    accepted = listener.accept() => {
                        let (stream, _) = accepted.expect("accepted");
                        lines.spawn(talk(stream, orders.subscribe(), Arc::clone(&last)));
                    }
                }
            }
        });
    }

    /// Changes the orders and waits until the edge works by them.
    pub(crate) async fn order(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.send_modify(|orders| {
            change(orders);
            orders.sequence += 1;
        });
        self.reached().await;
    }

    /// Waits until the edge works by the present orders.
    pub(crate) async fn reached(&self) {
        let wanted = self.orders.borrow().sequence;
        self.report("the edge to take orders", |report| report.sequence == wanted).await;
    }

    /// Waits for a report that satisfies.
    pub(crate) async fn report(&self, what: &str, good: impl Fn(&Report) -> bool) -> Report {
        let found = || self.last.lock().expect("unpoisoned").clone().filter(|report| good(report));
        wait_for(what, || std::future::ready(found())).await
    }
}

async fn talk(
    stream: UnixStream,
    mut orders: watch::Receiver<Orders>,
    last: Arc<Mutex<Option<Report>>>,
) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut beat = tokio::time::interval(HEARTBEAT);
    loop {
        tokio::select! {
            // cancel-safe: documented for `next_line`.
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { return };
                let report = serde_json::from_str(&line).expect("a report");
                *last.lock().expect("unpoisoned") = Some(report);
                continue;
            }
            // cancel-safe: waits on a watch, read anew below.
            changed = orders.changed() => if changed.is_err() { return },
            // cancel-safe: an interval.
            _ = beat.tick() => {}
        }
        let mut line = serde_json::to_string(&*orders.borrow_and_update()).expect("orders");
        line.push('\n');
        if write.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}
