//! One project: its listeners and its control handle.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    Clock, Faults, Iam, Instance, InstanceHandle, Requests, Secrets, Storage,
    googleapis::GoogleApis,
    iam, locked,
    metadata::{Common, Metadata},
    server::{self, Server},
    signing::Signer,
    token,
};

/// A project's two names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// Id, such as `dify-sim`.
    pub id: String,
    /// Number; resource names in answers carry it instead of the id.
    pub number: u64,
}

/// How a project is set up.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Address every listener binds unless an instance says otherwise. Containers reach loopback never: give a bridge's
    /// gateway address for them.
    pub bind: IpAddr,
    /// Port of the shared listener; 0 takes a free one.
    pub port: u16,
    /// The project.
    pub project: Project,
    /// The time.
    pub clock: Clock,
    /// Life of access tokens. Google: one hour less a second.
    pub token_lifetime: Duration,
    /// Whether Cloud Storage takes requests without a bearer, as Google's clients send them when
    /// `STORAGE_EMULATOR_HOST` is set. A bearer that is sent must still be good.
    pub anonymous_storage: bool,
}

/// Where the shared listener's services are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Urls {
    /// `http://ip:port`: base of Secret Manager (`/v1/..`) and Cloud Storage (`/storage/v1/..`), and the value of
    /// `STORAGE_EMULATOR_HOST`.
    pub googleapis: String,
    /// Token endpoint: the `token_uri` of service-account keys.
    pub token: String,
    /// Key set that verifies identity tokens.
    pub certs: String,
}

/// One simulated project. Dropping it closes its listeners; each [`InstanceHandle`] lives on its own.
#[derive(Debug)]
pub struct Sim {
    bind: IpAddr,
    server: Server,
    apis: Arc<GoogleApis>,
    common: Arc<Common>,
}

impl Default for Project {
    fn default() -> Self {
        Self { id: "dify-sim".into(), number: 415_104_041_262 }
    }
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            bind: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            project: Project::default(),
            clock: Clock::default(),
            token_lifetime: Duration::from_secs(3_599),
            anonymous_storage: false,
        }
    }
}

impl Sim {
    /// Binds the shared listener and serves. Needs a tokio runtime. The only error is that of binding.
    #[expect(
        clippy::unused_async,
        reason = "must run inside a runtime, which an async signature says"
    )]
    pub async fn start(options: SimOptions) -> io::Result<Self> {
        let SimOptions { bind, port, project, clock, token_lifetime, anonymous_storage } = options;
        let listener = server::bind(SocketAddr::new(bind, port))?;
        let signer = Arc::new(Signer::new());
        let iam = Iam::new(clock.clone(), token_lifetime);
        let apis = Arc::new(GoogleApis {
            clock: clock.clone(),
            iam: iam.clone(),
            signer: Arc::clone(&signer),
            secrets: Secrets::new(project.clone(), clock.clone()),
            storage: Storage::new(project.clone(), clock.clone(), anonymous_storage),
        });
        let attributes = Mutex::new(BTreeMap::new());
        let common = Arc::new(Common {
            project,
            attributes,
            changes: watch::Sender::new(0),
            iam,
            signer,
            clock,
        });
        Ok(Self { bind, server: Server::start(listener, Arc::clone(&apis) as _)?, apis, common })
    }

    /// Where the shared services are.
    pub fn urls(&self) -> Urls {
        let googleapis = format!("http://{}", self.server.address());
        Urls {
            token: format!("{googleapis}/token"),
            certs: format!("{googleapis}/oauth2/v3/certs"),
            googleapis,
        }
    }

    /// Starts a VM's metadata server, on `instance.listen` or on a free port of our address.
    pub async fn add_instance(&self, instance: Instance) -> io::Result<InstanceHandle> {
        let listener = server::bind(instance.listen.unwrap_or(SocketAddr::new(self.bind, 0)))?;
        self.add_instance_on(instance, listener).await
    }

    /// As [`add_instance`](Self::add_instance), on a listener the caller has bound: in a VM's network namespace, say,
    /// on 169.254.169.254:80.
    #[expect(
        clippy::unused_async,
        reason = "must run inside a runtime, which an async signature says"
    )]
    pub async fn add_instance_on(
        &self,
        instance: Instance,
        listener: TcpListener,
    ) -> io::Result<InstanceHandle> {
        InstanceHandle::start(listener, Arc::new(Metadata::new(Arc::clone(&self.common), instance)))
    }

    /// The project.
    pub fn project(&self) -> &Project {
        &self.common.project
    }

    /// Sets a metadata item of the project, seen by every VM.
    pub fn set_project_attribute(&self, key: &str, value: impl Into<String>) {
        locked(&self.common.attributes).insert(key.to_owned(), value.into());
        self.common.changes.send_modify(|count| *count += 1);
    }

    /// Removes a metadata item of the project.
    pub fn delete_project_attribute(&self, key: &str) {
        locked(&self.common.attributes).remove(key);
        self.common.changes.send_modify(|count| *count += 1);
    }

    /// Secret Manager's content.
    pub fn secrets(&self) -> &Secrets {
        &self.apis.secrets
    }

    /// Cloud Storage's content.
    pub fn storage(&self) -> &Storage {
        &self.apis.storage
    }

    /// Tokens and permissions.
    pub fn iam(&self) -> &Iam {
        &self.common.iam
    }

    /// The time all services go by.
    pub fn clock(&self) -> &Clock {
        &self.common.clock
    }

    /// What goes wrong with the shared services.
    pub fn faults(&self) -> &Faults {
        self.server.faults()
    }

    /// What the shared services were asked.
    pub fn requests(&self) -> &Requests {
        self.server.requests()
    }

    /// The key file of a service account, its `token_uri` at our token endpoint.
    pub fn service_account_key(&self, email: &str) -> Value {
        Signer::service_account_key(
            &self.common.project.id,
            email,
            &iam::account_id(email),
            &self.urls().token,
        )
    }

    /// A Google-signed identity token (with `email`) for `audience`, issued now and good for `lifetime`.
    pub fn identity_token(&self, email: &str, audience: &str, lifetime: Duration) -> String {
        let now = self.common.clock.now().as_secs();
        self.common.signer.jwt(&token::identity_claims(email, audience, now, lifetime.as_secs()))
    }

    /// Makes the shared services unreachable: the listener is closed, connections are cut. What they hold stays.
    pub async fn close(&self) {
        self.server.close().await;
    }

    /// Makes them reachable again, on the same address.
    pub async fn reopen(&self) -> io::Result<()> {
        self.server.reopen().await
    }

    /// Ends the shared services and waits until their tasks have ended.
    pub async fn stop(self) {
        self.server.close().await;
    }
}
