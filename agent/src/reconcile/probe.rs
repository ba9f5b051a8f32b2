//! Asks a container whether it answers. Never by TCP where it speaks HTTP: the
//! api's port accepts within a second and then answers nothing for half a
//! minute of Python imports (measured on Dify 1.14.2).

use std::net::Ipv4Addr;
use std::time::Duration;

use reqwest::Client;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::part::Answer;
use crate::engine::Engine;
use crate::engine::spec::{ContainerSpec, Probe};
use dify_common::chain::Chain;

/// One TCP connect on this machine.
const CONNECT: Duration = Duration::from_secs(2);

/// Runs a command in a container: exit code and the end of its output.
pub trait Exec {
    /// Why it could not be run, in words.
    fn exec(
        &self,
        container: &str,
        command: &[String],
        deadline: Duration,
    ) -> impl Future<Output = Result<(i64, String), String>> + Send;
}

impl Exec for Engine {
    async fn exec(
        &self,
        container: &str,
        command: &[String],
        deadline: Duration,
    ) -> Result<(i64, String), String> {
        let executed = Self::exec(self, container, command, deadline).await;
        executed.map(|done| (done.exit, done.output)).map_err(|error| Chain(&error).to_string())
    }
}

/// The asker. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Prober {
    client: Client,
}

impl Default for Prober {
    fn default() -> Self {
        dify_common::gcp::install_tls_provider();
        let client = Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT)
            // An idle connection would hold one of gunicorn's slots.
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("no option here can fail");
        Self { client }
    }
}

impl Prober {
    /// Asks once; bounded by the probe's own deadline.
    pub async fn ask(&self, spec: &ContainerSpec, exec: &impl Exec, since: Instant) -> Answer {
        let address = spec.networks.first().map_or(Ipv4Addr::LOCALHOST, |net| net.address);
        match &spec.probe {
            Probe::Http { port, path, deadline } => {
                let url = format!("http://{address}:{port}{path}");
                self.http(&url, path, *deadline).await
            }
            Probe::Tcp { port } => tcp(address, *port).await,
            Probe::Exec { command, deadline } => {
                match exec.exec(&spec.name, command, *deadline).await {
                    Ok((0, _)) => Answer::Ready,
                    Ok((code, output)) => {
                        let last = output.lines().last().unwrap_or_default();
                        Answer::Wrong(format!("probe command exited {code}: {last}"))
                    }
                    Err(error) => Answer::Wrong(error),
                }
            }
            Probe::Running { stable_for } => {
                sleep_until(since + *stable_for).await;
                Answer::Ready
            }
        }
    }

    async fn http(&self, url: &str, path: &str, deadline: Duration) -> Answer {
        match self.client.get(url).timeout(deadline).send().await {
            Ok(answer) if answer.status() == 200 => Answer::Ready,
            Ok(answer) => Answer::Wrong(format!("{path} answered {}", answer.status().as_u16())),
            Err(error) if error.is_connect() => Answer::Wrong("connection refused".to_owned()),
            Err(error) if error.is_timeout() => {
                Answer::Nothing(format!("{path} answered nothing in {} s", deadline.as_secs()))
            }
            Err(_) => Answer::Wrong(format!("connection closed without an answer to {path}")),
        }
    }
}

async fn tcp(address: Ipv4Addr, port: u16) -> Answer {
    match timeout(CONNECT, TcpStream::connect((address, port))).await {
        Ok(Ok(_)) => Answer::Ready,
        Ok(Err(_)) => Answer::Wrong(format!("connection to port {port} refused")),
        Err(_) => Answer::Nothing(format!("no connection to port {port}")),
    }
}
