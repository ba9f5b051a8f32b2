//! The one judge of both contenders: when each service's container started and
//! when the service first answered, seen from outside. It asks neither the
//! agent nor compose.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ::tests::docker::Engine;
use ::tests::wait::wait_for;
use ::tests::{Broken, Doing as _, Outcome};
use futures_util::future::try_join_all;
use reqwest::Client;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Longest boot worth waiting for.
pub(crate) const AT_MOST: Duration = Duration::from_mins(5);
/// How often a service that runs is asked.
pub(crate) const OFTEN: Duration = Duration::from_millis(25);
/// How often the engine is asked for a container that does not run yet.
const LOOK: Duration = Duration::from_millis(150);
/// One question. The api's port takes connections long before it answers.
const QUESTION: Duration = Duration::from_secs(2);

/// How a service shows that it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    /// 200 on this port and path.
    Http(u16, &'static str),
    /// Takes connections.
    Tcp(u16),
    /// Its log holds what it prints once it has started.
    Log(&'static str),
}

/// A service to be watched for.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Dify's name.
    pub(crate) service: String,
    /// Container, as the engine will know it.
    pub(crate) container: String,
    /// Its address.
    pub(crate) address: Ipv4Addr,
}

/// Seconds since the contender was started.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Moment {
    /// Its container was seen running; at most [`LOOK`] late.
    pub(crate) runs: f64,
    /// It answered; at most [`OFTEN`] late.
    pub(crate) answers: f64,
}

/// What each service is asked: Dify's own health endpoints, and for the two
/// Celery processes, which have none, the banner of a finished start.
fn sign(service: &str) -> Outcome<Sign> {
    Ok(match service {
        "api" => Sign::Http(5001, "/health"),
        "web" => Sign::Http(3000, "/install"),
        "plugin_daemon" => Sign::Http(5002, "/health/check"),
        "sandbox" => Sign::Http(8194, "/health"),
        "ssrf_proxy" => Sign::Tcp(3128),
        "worker" => Sign::Log(".> transport:"),
        "worker_beat" => Sign::Log("celery beat v"),
        other => return Err(Broken::new(format!("no sign is known for the service {other}"))),
    })
}

/// A client that keeps no connection: an idle one takes a slot of the api.
pub(crate) fn client() -> Outcome<Client> {
    Client::builder()
        .no_proxy()
        .connect_timeout(Duration::from_millis(200))
        .timeout(QUESTION)
        .pool_max_idle_per_host(0)
        .build()
        .doing(|| "make a client".into())
}

/// Watches until every target answers.
pub(crate) async fn watch(
    engine: &Engine,
    targets: &[Target],
    began: Instant,
) -> Outcome<BTreeMap<String, Moment>> {
    let client = client()?;
    let seen = targets.iter().map(async |target| {
        let sign = sign(&target.service)?;
        wait_for(&format!("{} to run", target.container), LOOK, AT_MOST, async || {
            let seen = engine.inspect(&target.container).await.map_err(|e| format!("{e:?}"))?;
            let runs = seen.state.and_then(|state| state.running).unwrap_or(false);
            if runs { Ok(()) } else { Err("does not run".to_owned()) }
        })
        .await?;
        let runs = began.elapsed().as_secs_f64();
        wait_for(&format!("{} to answer", target.container), OFTEN, AT_MOST, async || {
            ask(engine, &client, target, sign).await
        })
        .await?;
        let moment = Moment { runs, answers: began.elapsed().as_secs_f64() };
        Ok((target.service.clone(), moment))
    });
    Ok(try_join_all(seen).await?.into_iter().collect())
}

async fn ask(engine: &Engine, client: &Client, target: &Target, sign: Sign) -> Result<(), String> {
    let address = target.address;
    match sign {
        Sign::Http(port, path) => ok(client, &format!("http://{address}:{port}{path}")).await,
        Sign::Tcp(port) => {
            TcpStream::connect((address, port)).await.map(drop).map_err(|e| e.to_string())
        }
        Sign::Log(banner) => {
            let log = engine.logs(&target.container).await.map_err(|e| format!("{e:?}"))?;
            if log.contains(banner) { Ok(()) } else { Err(format!("has not printed {banner:?}")) }
        }
    }
}

/// 200, and nothing else.
pub(crate) async fn ok(client: &Client, url: &str) -> Result<(), String> {
    let answer = client.get(url).send().await.map_err(|error| error.to_string())?;
    let status = answer.status();
    if status == 200 { Ok(()) } else { Err(format!("{url} answers {status}")) }
}
