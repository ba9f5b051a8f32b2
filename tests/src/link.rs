//! A TCP path that a test can cut, hold or slow: the only way agents and
//! containers reach a server of the bed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::{Doing as _, Outcome};

/// What the path does with traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weather {
    /// Passes everything.
    Clear,
    /// Connections are reset, new ones refused.
    Cut,
    /// Connections are taken and nothing is passed on, either way.
    BlackHole,
    /// Every piece is late, and no more than so much goes through.
    Slow {
        /// Added to each piece of up to 16 KiB.
        delay: Duration,
        /// Of each connection and direction.
        bytes_per_second: f64,
    },
}

/// A path to one server. Dropping it ends every connection on it.
#[derive(Debug)]
pub struct Link {
    port: u16,
    weather: watch::Sender<Weather>,
    listening: watch::Receiver<usize>,
    counts: Arc<Counts>,
    addresses: usize,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Counts {
    opened: AtomicU64,
    open: AtomicUsize,
}

impl Link {
    /// Listens on one free port of all `addresses` and leads to `target`.
    pub async fn open(addresses: &[IpAddr], target: SocketAddr) -> Outcome<Self> {
        let sockets = bind_all(addresses).doing(|| format!("bind a link to {target}"))?;
        let port = match sockets.first().map(Socket::local_addr) {
            Some(Ok(address)) => address.as_socket().map_or(0, |address| address.port()),
            Some(Err(_)) | None => 0,
        };
        let (weather, changes) = watch::channel(Weather::Clear);
        let (listening, listening_seen) = watch::channel(0);
        let counts = Arc::<Counts>::default();
        let mut tasks = JoinSet::new();
        for (socket, ip) in sockets.into_iter().zip(addresses) {
            let listen = Listen {
                address: SocketAddr::new(*ip, port),
                target,
                weather: changes.clone(),
                listening: listening.clone(),
                counts: Arc::clone(&counts),
            };
            tasks.spawn(listen.run(socket));
        }
        let link = Self {
            port,
            weather,
            listening: listening_seen,
            counts,
            addresses: addresses.len(),
            _tasks: tasks,
        };
        link.settled(addresses.len()).await;
        Ok(link)
    }

    /// The port, on each of its addresses.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the weather. When this returns a cut link refuses connections
    /// and has reset those it had; a restored one accepts.
    pub async fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
        let listening = if weather == Weather::Cut { 0 } else { self.addresses };
        self.settled(listening).await;
    }

    /// Connections accepted since it was opened.
    pub fn accepted(&self) -> u64 {
        self.counts.opened.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn connected(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }

    async fn settled(&self, listening: usize) {
        let mut seen = self.listening.clone();
        // An error means the tasks have ended; there is nothing to wait for then.
        let _ = seen.wait_for(|count| *count == listening).await;
    }
}

/// One address of a link.
struct Listen {
    address: SocketAddr,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
    listening: watch::Sender<usize>,
    counts: Arc<Counts>,
}

impl Listen {
    async fn run(mut self, mut socket: Socket) {
        loop {
            let Ok(listener) = listen(socket) else { return };
            self.listening.send_modify(|count| *count += 1);
            let mut connections = JoinSet::new();
            loop {
                let mut weather = self.weather.clone();
                tokio::select! {
                    // cancel-safe: a connection not accepted goes with the listener, which is what a cut means.
                    accepted = listener.accept() => if let Ok((client, _)) = accepted {
                        connections.spawn(self.connection(client));
                    },
                    // cancel-safe: nothing is held.
                    _ = connections.join_next(), if !connections.is_empty() => {}
                    // cancel-safe: a watch.
                    changed = weather.wait_for(|weather| *weather == Weather::Cut) => {
                        if changed.is_err() { return }
                        break;
                    }
                }
            }
            drop(listener);
            // Bound but not listening: the port stays ours, and is refused.
            let Ok(bound) = bind(self.address) else { return };
            socket = bound;
            while connections.join_next().await.is_some() {}
            self.listening.send_modify(|count| *count -= 1);
            if self.weather.wait_for(|weather| *weather != Weather::Cut).await.is_err() {
                return;
            }
        }
    }

    fn connection(&self, client: TcpStream) -> impl Future<Output = ()> + Send + use<> {
        let (target, weather) = (self.target, self.weather.clone());
        let counts = Arc::clone(&self.counts);
        async move {
            counts.opened.fetch_add(1, Ordering::Relaxed);
            counts.open.fetch_add(1, Ordering::Relaxed);
            let mut cut = weather.clone();
            tokio::select! {
                // cancel-safe: what is in flight is lost, which is what a cut means.
                _ = carry(client, target, weather) => {}
                // cancel-safe: a watch.
                _ = cut.wait_for(|weather| *weather == Weather::Cut) => {}
            }
            counts.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Carries a connection to its end. Until that end both sides are set to be
/// reset when they are dropped, which only a cut (or the link's end) does.
async fn carry(
    mut client: TcpStream,
    target: SocketAddr,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    reset_on_drop(&client, true)?;
    passable(&mut weather).await;
    let mut server = TcpStream::connect(target).await?;
    reset_on_drop(&server, true)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(
        pass(from_client, to_server, weather.clone()),
        pass(from_server, to_client, weather),
    )?;
    // Both sides have said they are done: an ordinary end, not a reset.
    reset_on_drop(&client, false)?;
    reset_on_drop(&server, false)
}

async fn pass(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut piece).await?;
        passable(&mut weather).await;
        if count == 0 {
            return to.shutdown().await;
        }
        let now = *weather.borrow();
        if let Weather::Slow { delay, bytes_per_second } = now {
            let bytes = u32::try_from(count).map_or(f64::MAX, f64::from);
            let takes = Duration::try_from_secs_f64(bytes / bytes_per_second)
                .unwrap_or(Duration::from_hours(1));
            // sleeps: a slow link is slow.
            sleep_until(Instant::now() + delay + takes).await;
        }
        to.write_all(&piece[..count]).await?;
    }
}

/// Waits out a black hole.
async fn passable(weather: &mut watch::Receiver<Weather>) {
    // An error means the link is gone, and this task with it.
    let _ = weather.wait_for(|weather| *weather != Weather::BlackHole).await;
}

fn reset_on_drop(stream: &TcpStream, reset: bool) -> io::Result<()> {
    SockRef::from(stream).set_linger(reset.then_some(Duration::ZERO))
}

fn bind_all(addresses: &[IpAddr]) -> io::Result<Vec<Socket>> {
    // The port the first address got may be taken on another one.
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut sockets: Vec<Socket> = Vec::new();
        let all = addresses.iter().try_for_each(|ip| {
            let port = match sockets.first() {
                Some(first) => first.local_addr()?.as_socket().map_or(0, |address| address.port()),
                None => 0,
            };
            sockets.push(bind(SocketAddr::new(*ip, port))?);
            Ok(())
        });
        match all {
            Ok(()) => return Ok(sockets),
            Err(error) if attempts == 20 => return Err(error),
            Err(_) => {}
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listen(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}
