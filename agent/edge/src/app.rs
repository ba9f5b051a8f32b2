//! An edge instance put together: `build` binds and loads and may fail, `run`
//! serves until drained.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use dify_common::chain::Chain;
use dify_common::tasks::Tasks;
use tokio::sync::mpsc;
use tracing::{Span, error, info, warn};

use crate::drain::{self, Ask};
use crate::listen::{ListenError, Listeners};
use crate::orders::{self, link, store};
use crate::settings::Settings;
use crate::state::Shared;
use crate::worker::Worker;
use crate::{notify, probe};

/// Stack of a serving thread. The deepest poll (engine, handler, upstream) needs
/// a few tens of KiB; pages never touched cost nothing.
const STACK: usize = 1024 * 1024;
/// Longest wait for threads and tasks once everything is drained.
const LAST_ORDERS: Duration = Duration::from_secs(5);

/// Why an instance did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing to listen on.
    #[error("open port")]
    Listen(#[source] ListenError),
    /// The state directory does not take files.
    #[error("use state directory")]
    State(#[source] io::Error),
    /// A thread could not be started.
    #[error("start a serving thread")]
    Thread(#[source] io::Error),
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Asked to leave, and nothing was left in flight.
    Drained,
    /// Something that must run for ever ended on its own.
    Died(&'static str),
}

/// A built instance: listens, does not accept yet.
#[derive(Debug)]
pub struct Edge {
    shared: Arc<Shared>,
    listeners: Listeners,
    asks: mpsc::UnboundedSender<Ask>,
    inbox: mpsc::UnboundedReceiver<Ask>,
}

/// Asks a running instance to leave.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::UnboundedSender<Ask>);

impl Handle {
    /// Has no effect on an instance that has ended.
    pub fn ask(&self, ask: Ask) {
        let _ = self.0.send(ask);
    }
}

impl Edge {
    /// Binds, and loads the last orders.
    pub fn build(settings: Settings) -> Result<Self, StartError> {
        let threads = settings
            .threads
            .map(std::num::NonZero::get)
            .or_else(|| std::thread::available_parallelism().ok().map(std::num::NonZero::get))
            .unwrap_or(1);
        std::fs::create_dir_all(&settings.state_dir).map_err(StartError::State)?;
        let listeners = Listeners::open(settings.listen, threads).map_err(StartError::Listen)?;
        let listen = listeners.address.to_string();
        let instance = settings.instance.to_string();
        if let Err(error) =
            store::replace(&settings.state_dir, "listen", &instance, listen.as_bytes())
        {
            warn!(error = %Chain(&error), "listen address not written");
        }
        let shared = Arc::new(Shared::new(settings));
        match store::load(&shared.settings.state_dir) {
            Ok(None) => {}
            Ok(Some(orders)) => {
                orders::apply(&shared, orders, false);
            }
            Err(error) => warn!(error = %Chain(&error), "no orders from disk"),
        }
        let (asks, inbox) = mpsc::unbounded_channel();
        Ok(Self { shared, listeners, asks, inbox })
    }

    /// Where it listens; known even when port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.listeners.address
    }

    /// The way to ask it to leave.
    pub fn handle(&self) -> Handle {
        Handle(self.asks.clone())
    }

    /// Serves until drained.
    pub async fn run(self) -> Result<Exit, StartError> {
        let Self { shared, listeners, asks, inbox } = self;
        let Listeners { sockets, address, inherited } = listeners;
        info!(
            instance = %shared.settings.instance,
            %address,
            inherited,
            threads = sockets.len(),
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        let (ended, mut ends) = mpsc::unbounded_channel();
        let mut beats = Vec::with_capacity(sockets.len());
        let mut threads = sockets.len();
        for socket in sockets {
            let beat = Arc::new(AtomicU64::new(0));
            beats.push(Arc::clone(&beat));
            let worker = Worker::new(Arc::clone(&shared), beat);
            let end = End { tell: ended.clone(), as_told: false };
            thread(worker, socket, inherited, end).map_err(StartError::Thread)?;
        }
        let tasks = Tasks::default();
        let span = Span::current;
        tasks.spawn_essential("orders", span(), link::run(Arc::clone(&shared), address));
        tasks.spawn_essential("probe", span(), probe::run(Arc::clone(&shared)));
        tasks.spawn_essential("notify", span(), notify::run(Arc::clone(&shared), beats));
        let mut drained = std::pin::pin!(drain::run(Arc::clone(&shared), inbox));
        let exit = loop {
            tokio::select! {
                // cancel-safe: pinned outside the loop.
                () = drained.as_mut() => break Exit::Drained,
                // cancel-safe: `recv` loses no message when dropped.
                Some(as_told) = ends.recv() => {
                    // Told to stop accepting, a thread without connections is done.
                    if !as_told || shared.life.borrow().accept {
                        break Exit::Died("worker");
                    }
                    threads -= 1;
                }
                // cancel-safe: waits on a watch.
                name = tasks.died() => break Exit::Died(name),
            }
        };
        drop(asks);
        if exit == Exit::Drained {
            let all = async {
                while threads > 0 && ends.recv().await.is_some() {
                    threads -= 1;
                }
            };
            if tokio::time::timeout(LAST_ORDERS, all).await.is_err() {
                warn!(threads, "threads did not end in time");
            }
        }
        let counts = shared.counts.snapshot();
        info!(requests = counts.requests, own_answers = counts.own_answers, ?exit, "ended");
        Ok(exit)
    }
}

/// Tells that its thread ended, in whatever way.
struct End {
    tell: mpsc::UnboundedSender<bool>,
    /// False until the end: a panic must not look like obedience.
    as_told: bool,
}

impl End {
    fn obeyed(mut self) {
        self.as_told = true;
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.tell.send(self.as_told);
    }
}

fn thread(
    worker: Arc<Worker>,
    socket: std::net::TcpListener,
    inherited: bool,
    end: End,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let body = move || match runtime.block_on(worker.run(socket, inherited)) {
        Ok(()) => end.obeyed(),
        Err(error) => error!(%error, "a serving thread ended"),
    };
    std::thread::Builder::new().name("edge".to_owned()).stack_size(STACK).spawn(body)?;
    Ok(())
}
