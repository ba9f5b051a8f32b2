//! The simulator's wire behaviour, asked over real sockets with a client that knows none of its types.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod faults;
mod golden;
mod metadata;
mod program;
mod secrets;
mod storage;
mod tokens;

use std::{sync::Once, time::Duration};

use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use sim::{Clock, Instance, InstanceHandle, Sim, SimOptions};

/// 2026-01-02T03:04:05Z: tests that look at time stamps stop the clock here.
pub(crate) const NOW: u64 = 1_767_323_045;
pub(crate) const ACCOUNT: &str = "agent@dify-sim.iam.gserviceaccount.com";

/// A project with a stopped clock, one VM and a client.
pub(crate) struct Bed {
    pub(crate) sim: Sim,
    pub(crate) vm: InstanceHandle,
    pub(crate) client: Client,
}

impl Bed {
    pub(crate) async fn start() -> Self {
        Self::with(SimOptions::default()).await
    }

    pub(crate) async fn with(options: SimOptions) -> Self {
        let sim =
            Sim::start(SimOptions { clock: Clock::stopped_at(NOW), ..options }).await.unwrap();
        let vm = sim
            .add_instance(Instance { service_account: ACCOUNT.into(), ..Instance::default() })
            .await
            .unwrap();
        Self { sim, vm, client: client() }
    }

    /// A metadata request as Google's rules want it; `path` begins after `/computeMetadata/v1/`.
    pub(crate) fn metadata(&self, path: &str) -> RequestBuilder {
        let url = format!("http://{}/computeMetadata/v1/{path}", self.vm.metadata_host());
        self.client.get(url).header("Metadata-Flavor", "Google")
    }

    /// A request to a shared service with a good bearer.
    pub(crate) fn api(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.sim.urls().googleapis);
        self.client.request(method, url).bearer_auth(self.sim.iam().access_token(ACCOUNT))
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.api(reqwest::Method::GET, path)
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.api(reqwest::Method::POST, path)
    }
}

pub(crate) fn client() -> Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        rustls::crypto::ring::default_provider().install_default().unwrap();
    });
    let builder = Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy();
    builder.timeout(Duration::from_secs(20)).build().unwrap()
}

pub(crate) async fn send(request: RequestBuilder) -> Response {
    request.send().await.unwrap()
}

pub(crate) async fn text(request: RequestBuilder) -> (u16, String) {
    let response = send(request).await;
    (response.status().as_u16(), response.text().await.unwrap())
}

pub(crate) async fn json(request: RequestBuilder) -> (u16, Value) {
    let (status, text) = text(request).await;
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}")))
}

pub(crate) fn header(response: &Response, name: &str) -> String {
    response
        .headers()
        .get(name)
        .unwrap_or_else(|| panic!("no header {name}"))
        .to_str()
        .unwrap()
        .to_owned()
}

/// Waits until `condition` holds.
pub(crate) async fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            // sleeps: this is the one wait of these tests, with its deadline around it.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), poll)
        .await
        .unwrap_or_else(|_| panic!("never happened: {what}"));
}
