//! The bed itself: what tests rely on when they say that something was cut.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use tests::bed::{Endpoints, claim_subnet};
use tests::catalog::Role;
use tests::fleet::{Fleet, Options};
use tests::link::{Link, Weather};
use tests::stores::{CertificateNames, Postgres, Redis, RedisOptions, Rights};
use tests::wait::wait_for;
use tests::{Outcome, child, secrets};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SOON: Duration = Duration::from_millis(300);

/// A server that answers every byte with the same byte, while the set lives.
async fn echo() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    (address, tasks)
}

async fn ask(stream: &mut TcpStream) -> std::io::Result<u8> {
    stream.write_all(b"x").await?;
    timeout(SOON, stream.read_u8()).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

#[tokio::test]
async fn a_cut_link_resets_and_refuses_and_comes_back_on_its_port() -> Outcome {
    let (server, _tasks) = echo().await;
    let link = Link::open(&[LOOPBACK], server).await?;
    let mut stream = TcpStream::connect((LOOPBACK, link.port())).await.unwrap();
    assert_eq!(ask(&mut stream).await.unwrap(), b'x');
    assert_eq!((link.accepted(), link.connected()), (1, 1));

    link.set(Weather::Cut).await;
    let reset = timeout(SOON, stream.read_u8()).await.expect("at once").unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    let refused = TcpStream::connect((LOOPBACK, link.port())).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    link.set(Weather::Clear).await;
    let mut stream = TcpStream::connect((LOOPBACK, link.port())).await.unwrap();
    assert_eq!(ask(&mut stream).await.unwrap(), b'x');
    assert_eq!((link.accepted(), link.connected()), (2, 1));
    Ok(())
}

#[tokio::test]
async fn a_black_hole_takes_connections_and_passes_nothing_until_it_ends() -> Outcome {
    let (server, _tasks) = echo().await;
    let link = Link::open(&[LOOPBACK], server).await?;
    let mut old = TcpStream::connect((LOOPBACK, link.port())).await.unwrap();
    assert_eq!(ask(&mut old).await.unwrap(), b'x');
    link.set(Weather::BlackHole).await;
    let mut new = TcpStream::connect((LOOPBACK, link.port())).await.unwrap();
    assert!(ask(&mut old).await.is_err());
    assert!(ask(&mut new).await.is_err());
    link.set(Weather::Clear).await;
    // What was swallowed comes out: nothing was lost.
    for stream in [&mut old, &mut new] {
        assert_eq!(timeout(SOON, stream.read_u8()).await.expect("soon").unwrap(), b'x');
    }
    Ok(())
}

#[tokio::test]
async fn a_slow_link_is_slow_and_whole() -> Outcome {
    let (server, _tasks) = echo().await;
    let link = Link::open(&[LOOPBACK], server).await?;
    link.set(Weather::Slow { delay: Duration::from_millis(40), bytes_per_second: 1e6 }).await;
    let mut stream = TcpStream::connect((LOOPBACK, link.port())).await.unwrap();
    let began = Instant::now();
    assert_eq!(ask(&mut stream).await.unwrap(), b'x');
    assert!(began.elapsed() >= Duration::from_millis(80), "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_server_that_hangs_up_is_passed_on() -> Outcome {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let link = Link::open(&[LOOPBACK], listener.local_addr().unwrap()).await?;
    let mut client = TcpStream::connect((LOOPBACK, link.port())).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    server.write_all(b"bye").await.unwrap();
    drop(server);
    client.shutdown().await.unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "bye");
    Ok(())
}

async fn connect(
    server: &Postgres,
    ca: &str,
    mode: PgSslMode,
    user: &str,
    password: &str,
) -> Result<PgConnection, sqlx::Error> {
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(server.port)
        .username(user)
        .password(password)
        .database(user)
        .ssl_mode(mode)
        .ssl_root_cert_from_pem(ca.as_bytes().to_vec());
    PgConnection::connect_with(&options).await
}

#[tokio::test]
async fn each_postgresql_takes_its_own_ca_and_no_plain_connection() -> Outcome {
    let bed = Endpoints::attach()?;
    let role = format!("bed_{}", secrets::random(6).to_lowercase());
    for (server, others) in [
        (&bed.main, [&bed.vector.ca, &bed.foreign.ca]),
        (&bed.vector, [&bed.main.ca, &bed.foreign.ca]),
        (&bed.foreign, [&bed.main.ca, &bed.vector.ca]),
    ] {
        server.create(&role, "pass", Rights::Creator, &[&role]).await?;
        let ours = connect(server, &server.ca, PgSslMode::VerifyCa, &role, "pass").await;
        ours.expect("its own CA, the right password").close().await.expect("closes");
        for ca in others {
            assert!(connect(server, ca, PgSslMode::VerifyCa, &role, "pass").await.is_err());
        }
        assert!(connect(server, &server.ca, PgSslMode::Disable, &role, "pass").await.is_err());
        assert!(connect(server, &server.ca, PgSslMode::VerifyCa, &role, "wrong").await.is_err());
        server.remove(&role).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_main_server_has_uuid_ossp_and_the_vector_server_has_vector() -> Outcome {
    let bed = Endpoints::attach()?;
    let role = format!("bed_{}", secrets::random(6).to_lowercase());
    bed.main.create(&role, "pass", Rights::Creator, &[&role]).await?;
    bed.main.execute(&role, "CREATE EXTENSION \"uuid-ossp\"").await?;
    bed.vector.create(&role, "pass", Rights::Extensions, &[&role]).await?;
    bed.vector.execute(&role, "CREATE EXTENSION vector").await?;
    let distance =
        bed.vector.number(&role, "SELECT ('[3,4]'::vector <-> '[0,0]'::vector)::bigint").await?;
    assert_eq!(distance, 5);
    bed.main.remove(&role).await?;
    bed.vector.remove(&role).await
}

#[tokio::test]
async fn redis_refuses_what_memorystore_refuses() -> Outcome {
    let folder = tempfile::tempdir().expect("a folder");
    let options = RedisOptions {
        policy: "volatile-lru",
        names: CertificateNames::OtherHost,
        ..RedisOptions::default()
    };
    let redis = Redis::start(folder.path(), "pw/@: x", &options, &[LOOPBACK]).await?;
    let mut connection = redis.connect(2).await?;
    for command in ["CONFIG", "SAVE", "SHUTDOWN", "DEBUG"] {
        let answer = redis::cmd(command).query_async::<()>(&mut connection).await;
        let error = answer.expect_err(command).to_string();
        assert!(error.contains("unknown command"), "{error}");
    }
    let memory: String =
        redis::cmd("INFO").arg("memory").query_async(&mut connection).await.expect("INFO");
    assert!(memory.contains("maxmemory_policy:volatile-lru"));
    redis.stop().await
}

#[test]
fn no_two_fleets_get_one_subnet() -> Outcome {
    let (first, held) = claim_subnet()?;
    let (second, _held) = claim_subnet()?;
    assert_ne!(first, second);
    drop(held);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_pushed_pulled_and_run() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let image = fleet
        .images
        .iter()
        .find(|image| image.entry.role == Role::Web)
        .expect("the release has a web");
    let reference = format!("{}/{}@{}", fleet.mirror(), image.entry.repository, image.digest);
    child::run(Command::new("docker").args(["pull", "--quiet", &reference])).await?;
    let name = format!("dify-{}1-probe", fleet.node_prefix());
    let script = ["run", "--detach", "--name", &name, &reference];
    child::run(Command::new("docker").args(script)).await?;
    wait_for(
        "the stand-in to run",
        Duration::from_millis(100),
        Duration::from_secs(10),
        async || {
            let left = fleet
                .engine
                .holdings(&fleet.node_prefix())
                .await
                .map_err(|broken| broken.to_string())?;
            match left.containers.as_slice() {
                [container] if container.state == "running" => Ok(()),
                others => Err(format!("{others:?}")),
            }
        },
    )
    .await?;
    // A container that an agent would leave running is what `close` complains of.
    let complaint = fleet.close(Vec::new(), &[]).await.unwrap_err().to_string();
    assert!(complaint.contains(&format!("{name} still runs")), "{complaint}");
    Ok(())
}
