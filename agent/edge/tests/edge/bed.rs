//! The test bed: edge, containers and clients.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use dify_common::wire::edge::{Drain, Orders, Refusal, Route, Upstream as Spec};
use dify_common::wire::status::Phase;
use dify_edge::{Ask, Edge, Exit, Handle, Settings};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::agent::Agent;

/// Patience of every single wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Starts a task of the bed.
#[expect(clippy::disallowed_methods, reason = "the test bed's tasks end with their runtime")]
pub(crate) fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(task)
}

/// Polls until `check` gives something.
pub(crate) async fn wait_for<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < until, "waited {PATIENCE:?} for {what}");
        // sleeps: this is the one wait of these tests, with its deadline above.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An edge with its agent.
pub(crate) struct Bed {
    pub(crate) address: SocketAddr,
    pub(crate) agent: Agent,
    pub(crate) handle: Handle,
    run: JoinHandle<Exit>,
    pub(crate) directory: TempDir,
}

/// Settings as flags would give them.
pub(crate) fn settings(directory: &Path, more: &[&str]) -> Settings {
    let path = |name: &str| directory.join(name).display().to_string();
    let (state, socket) = (path("state"), path("edge.sock"));
    let fixed = [
        "dify-edge",
        "--listen",
        "127.0.0.1:0",
        "--threads",
        "2",
        "--drain-notice",
        "0s",
        "--state-dir",
        &state,
        "--agent-socket",
        &socket,
    ];
    Settings::try_parse_from(fixed.iter().chain(more)).expect("valid settings")
}

impl Bed {
    /// An edge that has taken `orders`.
    pub(crate) async fn new(orders: Orders) -> Self {
        Self::with(orders, &[]).await
    }

    pub(crate) async fn with(orders: Orders, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let agent = Agent::start(&directory.path().join("edge.sock"), orders);
        let bed = Self::around(directory, agent, flags);
        bed.agent.reached().await;
        bed
    }

    /// An edge in a directory that may hold state of an earlier one.
    pub(crate) fn around(directory: TempDir, agent: Agent, flags: &[&str]) -> Self {
        let edge = Edge::build(settings(directory.path(), flags)).expect("built");
        let (address, handle) = (edge.address(), edge.handle());
        let run = spawn(async move { edge.run().await.expect("started") });
        Self { address, agent, handle, run, directory }
    }

    pub(crate) async fn client(&self) -> Wire {
        Wire::new(TcpStream::connect(self.address).await.expect("connected"))
    }

    /// Sends a GET on a connection of its own; the whole answer.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        let mut client = self.client().await;
        client.get(path).await;
        client.answer().await
    }

    /// Ends the instance: everything must be over by then.
    pub(crate) async fn stop(self) -> TempDir {
        self.handle.ask(Ask::Terminate("test"));
        self.stopped().await
    }

    /// Waits until an instance that was asked to end has.
    pub(crate) async fn stopped(self) -> TempDir {
        let exit = timeout(PATIENCE, self.run).await.expect("ends").expect("no panic");
        assert_eq!(exit, Exit::Drained);
        self.directory
    }
}

/// Orders for one container that takes every path.
pub(crate) fn orders(upstream: &Upstream) -> Orders {
    let mut orders = nothing();
    orders.upstreams.insert("api".to_owned(), upstream.spec());
    orders.routes.push(route("/", "api"));
    orders
}

/// Orders without containers, of a node that is ready.
pub(crate) fn nothing() -> Orders {
    Orders {
        node: "node-1".to_owned(),
        sequence: 1,
        release: Some("1.14.2".to_owned()),
        phase: Phase::Serving,
        adopting: false,
        ready: true,
        missing: Vec::new(),
        live: true,
        faults: Vec::new(),
        drain: None,
        upstreams: std::collections::BTreeMap::new(),
        routes: Vec::new(),
        refusals: Vec::new(),
        stale_after_ms: 60_000,
        silent_fault_after_ms: 120_000,
    }
}

pub(crate) fn route(prefix: &str, upstream: &str) -> Route {
    let (prefix, upstream) = (prefix.to_owned(), upstream.to_owned());
    Route { prefix, upstream, hook_url: false }
}

pub(crate) fn refusal(prefix: &str, status: u16) -> Refusal {
    Refusal { prefix: prefix.to_owned(), status, message: "closed here".to_owned() }
}

pub(crate) fn drain(notice_ms: u64, bound_ms: u64) -> Drain {
    Drain { notice_ms, bound_ms }
}

/// A container: hands each connection to the test.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
}

impl Upstream {
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        Self { address, listener }
    }

    pub(crate) fn spec(&self) -> Spec {
        Spec {
            address: self.address,
            pooled: false,
            max_in_flight: 100,
            probe: Some("/probe".to_owned()),
            required: true,
        }
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Wire {
        let accepted = timeout(PATIENCE, self.listener.accept()).await.expect("a connection");
        Wire::new(accepted.expect("accepted").0)
    }

    /// The next request, its head read.
    pub(crate) async fn call(&self) -> (Wire, Head) {
        let mut wire = self.accept().await;
        let head = wire.head().await;
        (wire, head)
    }

    /// Nobody has connected.
    pub(crate) async fn assert_untouched(&self) {
        let accepted = timeout(Duration::from_millis(50), self.listener.accept()).await;
        assert!(accepted.is_err(), "something reached the upstream");
    }

    /// Answers every request with its own head, for ever.
    pub(crate) fn echo(self) -> SocketAddr {
        let address = self.address;
        spawn(async move {
            loop {
                let mut wire = self.accept_for_ever().await;
                spawn(async move {
                    while let Some(head) = wire.try_head().await {
                        let length = head.0.len();
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{}",
                            head.0
                        );
                        wire.send(&answer).await;
                    }
                });
            }
        });
        address
    }

    async fn accept_for_ever(&self) -> Wire {
        Wire::new(self.listener.accept().await.expect("accepted").0)
    }
}

/// A message head, as text.
#[derive(Debug, Clone)]
pub(crate) struct Head(pub(crate) String);

impl Head {
    pub(crate) fn first(&self) -> &str {
        self.0.lines().next().unwrap_or_default()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn status(&self) -> u16 {
        let code = self.first().split(' ').nth(1).and_then(|code| code.parse().ok());
        code.unwrap_or_else(|| panic!("no status line: {:?}", self.0))
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.status()
    }

    /// What `x-dify-edge-error` says.
    pub(crate) fn kind(&self) -> &str {
        self.head.field("x-dify-edge-error").unwrap_or_default()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).expect("a JSON body")
    }
}

/// A raw connection.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket");
        Self { stream, read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes()).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("taken").expect("sent");
    }

    pub(crate) async fn get(&mut self, path: &str) {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: dify.example\r\n\r\n")).await;
    }

    /// Reads up to and including `mark`.
    pub(crate) async fn until(&mut self, mark: &str) -> String {
        self.try_until(mark).await.unwrap_or_else(|| {
            panic!("ended before {mark:?}: {:?}", String::from_utf8_lossy(&self.read))
        })
    }

    async fn try_until(&mut self, mark: &str) -> Option<String> {
        loop {
            let found = self.read.windows(mark.len()).position(|part| part == mark.as_bytes());
            if let Some(at) = found {
                let taken: Vec<u8> = self.read.drain(..at + mark.len()).collect();
                return Some(String::from_utf8(taken).expect("text"));
            }
            if self.more().await == 0 {
                return None;
            }
        }
    }

    /// Reads something; 0 at the end, however it came.
    async fn more(&mut self) -> usize {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await;
        read.expect("something within the patience").unwrap_or(0)
    }

    pub(crate) async fn head(&mut self) -> Head {
        Head(self.until("\r\n\r\n").await)
    }

    pub(crate) async fn try_head(&mut self) -> Option<Head> {
        self.try_until("\r\n\r\n").await.map(Head)
    }

    pub(crate) async fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert_ne!(self.more().await, 0, "ended after {} of {count}", self.read.len());
        }
        self.read.drain(..count).collect()
    }

    /// Everything up to the end.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more().await > 0 {}
        std::mem::take(&mut self.read)
    }

    /// An answer with a length.
    pub(crate) async fn answer(&mut self) -> Answer {
        let head = self.head().await;
        let length = head.field("content-length").and_then(|text| text.parse().ok());
        let body = self.exactly(length.unwrap_or_else(|| panic!("no length: {head:?}"))).await;
        Answer { head, body: String::from_utf8(body).expect("text") }
    }

    /// The peer closes (or resets) without another word, soon.
    pub(crate) async fn ends_within(&mut self, bound: Duration) {
        let read = timeout(bound, self.stream.read_buf(&mut self.read)).await;
        let count = read.unwrap_or_else(|_| panic!("still open after {bound:?}")).unwrap_or(0);
        assert_eq!(count, 0, "unexpected: {:?}", String::from_utf8_lossy(&self.read));
    }
}
