//! The program as systemd runs it: exit codes, readiness, inherited sockets.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tokio::net::{TcpStream, UnixDatagram};

use crate::agent::Agent;
use crate::bed::{PATIENCE, Upstream, Wire, orders, wait_for};

const EDGE: &str = env!("CARGO_BIN_EXE_dify-edge");

fn edge(directory: &Path) -> Vec<String> {
    let path = |name: &str| directory.join(name).display().to_string();
    [
        "--state-dir",
        &path("state"),
        "--agent-socket",
        &path("edge.sock"),
        "--listen",
        "127.0.0.1:0",
        "--drain-notice",
        "0s",
        "--log-mode",
        "json",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// A process that does not outlive its test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).spawn().expect("runs"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn exit_code(mut process: Process) -> Option<i32> {
    let ended = wait_for("the process to end", || {
        std::future::ready(process.0.try_wait().expect("waited"))
    });
    ended.await.code()
}

fn signal(process: &Process, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &process.0.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

async fn get(address: SocketAddr, path: &str) -> u16 {
    let mut wire = Wire::new(TcpStream::connect(address).await.expect("connected"));
    wire.get(path).await;
    wire.answer().await.status()
}

#[tokio::test]
async fn exit_codes_tell_usage_from_failure() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |more: &[&str]| {
        let mut command = Command::new(EDGE);
        command.args(edge(directory.path())).args(more).stderr(Stdio::null());
        Process::start(&mut command)
    };
    assert_eq!(exit_code(run(&["--threads", "none"])).await, Some(64));
    assert_eq!(exit_code(run(&["--version"])).await, Some(0));
    let taken = Upstream::new().await;
    assert_eq!(exit_code(run(&["--listen", &taken.address.to_string()])).await, Some(1));
}

#[tokio::test]
async fn it_is_ready_with_orders_and_ends_with_zero_when_drained() {
    let directory = tempfile::tempdir().expect("a directory");
    let agent = Agent::start(&directory.path().join("edge.sock"), orders(&Upstream::new().await));
    let notify = UnixDatagram::bind(directory.path().join("notify")).expect("bound");
    let mut command = Command::new(EDGE);
    let notify_path = directory.path().join("notify");
    command.args(edge(directory.path())).env("NOTIFY_SOCKET", notify_path);
    let child = Process::start(&mut command);
    let mut message = [0; 64];
    let read = tokio::time::timeout(PATIENCE, notify.recv(&mut message));
    let count = read.await.expect("a message").expect("received");
    assert_eq!(&message[..count], b"READY=1\n");
    agent.reached().await;
    let listen = std::fs::read_to_string(directory.path().join("state/listen")).expect("written");
    let address = listen.parse().expect("an address");
    assert_eq!(get(address, "/health").await, 200);
    signal(&child, "TERM");
    assert_eq!(exit_code(child).await, Some(0));
}

/// Starts an instance on `socket`, as a service manager would.
fn activated(directory: &Path, instance: &str, socket: OwnedFd) -> Process {
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", EDGE]).args(edge(directory));
    // Long enough for who connected just before the hand-over to ask.
    command.args(["--instance", instance, "--drain-notice", "1s"]);
    Process::start(command.stdin(Stdio::from(socket)))
}

#[tokio::test]
async fn two_instances_on_one_socket_change_over_without_a_refusal() {
    let directory = tempfile::tempdir().expect("a directory");
    let agent = Agent::start(&directory.path().join("edge.sock"), orders(&Upstream::new().await));
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = socket.local_addr().expect("bound");
    let fd = || OwnedFd::from(socket.try_clone().expect("a descriptor"));
    let first = activated(directory.path(), "a", fd());
    agent.report("instance a", |report| report.instance == "a" && report.sequence == 1).await;
    assert_eq!(get(address, "/health").await, 200);
    let second = activated(directory.path(), "b", fd());
    agent.report("instance b", |report| report.instance == "b" && report.sequence == 1).await;
    signal(&first, "USR1");
    let mut ended = Box::pin(exit_code(first));
    let code = loop {
        tokio::select! {
            biased;
            // cancel-safe: pinned outside the loop.
            code = &mut ended => break code,
            // cancel-safe: what is dropped is a finished request at worst.
            status = get(address, "/health") => assert_eq!(status, 200),
        }
    };
    assert_eq!(code, Some(0));
    assert_eq!(get(address, "/health").await, 200, "the second serves on");
    signal(&second, "TERM");
    assert_eq!(exit_code(second).await, Some(0));
}
