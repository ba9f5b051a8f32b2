//! A simulated VM: what it is told by its metadata server, and the handle that changes it.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{faults::Faults, metadata::Metadata, requests::Requests, server::Server};

/// What a VM is. Defaults make a plain standard VM in `europe-west4-a`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Instance {
    /// Name, unique in its zone.
    pub name: String,
    /// Numeric id, never reused by Google.
    pub id: u64,
    /// Zone, such as `europe-west4-a`.
    pub zone: String,
    /// Machine type's short name.
    pub machine_type: String,
    /// Metadata items. A group's VMs also have `created-by` and `instance-template`; a plain VM has neither.
    pub attributes: BTreeMap<String, String>,
    /// Service account's address; an empty one means a VM without a service account.
    pub service_account: String,
    /// OAuth scopes of that account on this VM.
    pub scopes: Vec<String>,
    /// Network tags.
    pub tags: Vec<String>,
    /// Address of the first network interface.
    pub ip: Ipv4Addr,
    /// Alias ranges of the first network interface, such as `10.8.4.0/24`.
    pub ip_aliases: Vec<String>,
    /// A Spot VM.
    pub preemptible: bool,
    /// Google has announced that it takes the VM away.
    pub preempted: bool,
    /// Announced maintenance.
    pub maintenance_event: MaintenanceEvent,
    /// Where its metadata server listens; by default a free port of the simulator's address.
    pub listen: Option<SocketAddr>,
}

/// `instance/maintenance-event`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MaintenanceEvent {
    /// Nothing announced.
    #[default]
    None,
    /// A live migration starts within 60 s.
    MigrateOnHostMaintenance,
    /// The VM is stopped within 60 s.
    TerminateOnHostMaintenance,
}

/// A VM's metadata server and what a test may do to it. Dropping it takes the server down.
#[derive(Debug)]
pub struct InstanceHandle {
    server: Server,
    metadata: Arc<Metadata>,
}

impl Default for Instance {
    fn default() -> Self {
        Self {
            name: "vm-1".into(),
            id: 4_212_345_678_901_234_501,
            zone: "europe-west4-a".into(),
            machine_type: "e2-standard-4".into(),
            attributes: BTreeMap::new(),
            service_account: String::new(),
            scopes: vec!["https://www.googleapis.com/auth/cloud-platform".into()],
            tags: Vec::new(),
            ip: Ipv4Addr::new(10, 8, 0, 2),
            ip_aliases: Vec::new(),
            preemptible: false,
            preempted: false,
            maintenance_event: MaintenanceEvent::None,
            listen: None,
        }
    }
}

impl fmt::Display for MaintenanceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "NONE",
            Self::MigrateOnHostMaintenance => "MIGRATE_ON_HOST_MAINTENANCE",
            Self::TerminateOnHostMaintenance => "TERMINATE_ON_HOST_MAINTENANCE",
        })
    }
}

impl InstanceHandle {
    pub(crate) fn start(listener: TcpListener, metadata: Arc<Metadata>) -> io::Result<Self> {
        Ok(Self { server: Server::start(listener, Arc::clone(&metadata) as _)?, metadata })
    }

    /// `ip:port`, the value of `GCE_METADATA_HOST`.
    pub fn metadata_host(&self) -> String {
        self.server.address().to_string()
    }

    /// Changes the VM in one step and wakes every waiter.
    pub fn update(&self, change: impl FnOnce(&mut Instance)) {
        self.metadata.update(change);
    }

    /// Sets a metadata item of this VM.
    pub fn set_attribute(&self, key: &str, value: impl Into<String>) {
        self.update(|instance| {
            instance.attributes.insert(key.to_owned(), value.into());
        });
    }

    /// Removes a metadata item of this VM.
    pub fn delete_attribute(&self, key: &str) {
        self.update(|instance| {
            instance.attributes.remove(key);
        });
    }

    /// Flips `instance/preempted`.
    pub fn set_preempted(&self, preempted: bool) {
        self.update(|instance| instance.preempted = preempted);
    }

    /// Sets `instance/maintenance-event`.
    pub fn set_maintenance_event(&self, event: MaintenanceEvent) {
        self.update(|instance| instance.maintenance_event = event);
    }

    /// Guest attributes the VM has written, by `NAMESPACE/KEY`.
    pub fn guest_attributes(&self) -> BTreeMap<String, String> {
        self.metadata.guest_attributes()
    }

    /// Requests that wait for a change right now.
    pub fn waiting(&self) -> usize {
        self.metadata.waiting()
    }

    /// What goes wrong with this metadata server.
    pub fn faults(&self) -> &Faults {
        self.server.faults()
    }

    /// What this metadata server was asked.
    pub fn requests(&self) -> &Requests {
        self.server.requests()
    }

    /// Makes the metadata server unreachable: its listener is closed, its connections are cut.
    pub async fn close(&self) {
        self.server.close().await;
    }

    /// Makes it reachable again, on the same address.
    pub async fn reopen(&self) -> io::Result<()> {
        self.server.reopen().await
    }

    /// As [`reopen`](Self::reopen), on a listener bound elsewhere (in a network namespace, say).
    pub async fn reopen_on(&self, listener: TcpListener) -> io::Result<()> {
        self.server.close().await;
        self.server.open_on(listener)
    }
}
