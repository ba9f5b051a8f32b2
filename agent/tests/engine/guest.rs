//! What the containers of these tests do.

#![expect(clippy::print_stdout, reason = "a container's output is what the tests read")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// What a container is told to do.
pub(crate) const TASK: &str = "GUEST_TASK";
/// Where a guest that serves listens.
pub(crate) const PORT: u16 = 8080;

/// The container's command: this test, and no other, with its output shown.
pub(crate) const COMMAND: [&str; 4] = ["/guest", "--exact", "guest::guest", "--nocapture"];

/// Does nothing here; in a container it does what [`TASK`] says.
#[test]
#[expect(
    clippy::disallowed_methods,
    clippy::exit,
    reason = "the container's only input, and its exit code"
)]
fn guest() {
    if let Ok(task) = std::env::var(TASK) {
        let code = run(&task);
        let _ = std::io::stdout().flush();
        std::process::exit(code);
    }
}

fn run(task: &str) -> i32 {
    let (verb, rest) = task.split_once(' ').unwrap_or((task, ""));
    match verb {
        // Process 1 has no default for SIGTERM: this one is deaf to it.
        "serve" => serve(),
        "stop-on-term" => stop_on_term(),
        "exit" => {
            println!("one\ntwo");
            eprint!("three");
            rest.parse().expect("a code")
        }
        "eat" => eat(),
        "show" => {
            print!("{}", std::fs::read_to_string(rest).expect("readable"));
            let written = std::fs::write(rest, "changed").is_err();
            i32::from(!written)
        }
        "reach" => i32::from(!reaches(rest)),
        other => panic!("no task {other}"),
    }
}

fn serve() -> i32 {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).expect("port is free");
    println!("serving");
    for connection in listener.incoming() {
        let _ = connection.and_then(|mut connection| connection.write_all(b"hello"));
    }
    1
}

fn stop_on_term() -> i32 {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let signal = runtime.block_on(dify_common::shutdown::requested()).expect("handler");
    println!("got {signal}");
    0
}

fn eat() -> i32 {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    loop {
        eaten.push(vec![1; 8 << 20]);
    }
}

fn reaches(address: &str) -> bool {
    let address: SocketAddr = address.parse().expect("an address");
    let Ok(mut connection) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) else {
        return false;
    };
    let mut said = [0; 5];
    let _ = connection.set_read_timeout(Some(Duration::from_secs(2)));
    connection.read_exact(&mut said).is_ok() && said == *b"hello"
}
