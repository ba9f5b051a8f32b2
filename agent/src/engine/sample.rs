//! Small specs for the tests of this module.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::spec::{Attachment, ContainerSpec, Limits, NetworkSpec, Probe};

pub(crate) fn container(service: &str, last_octet: u8) -> ContainerSpec {
    ContainerSpec {
        service: service.to_owned(),
        name: format!("dify-n1-{service}"),
        image: "127.0.0.1:5000/standin:1".to_owned(),
        entrypoint: None,
        command: None,
        hostname: None,
        user: None,
        env: BTreeMap::new(),
        files: Vec::new(),
        volumes: Vec::new(),
        networks: vec![Attachment {
            network: "dify-n1-main".to_owned(),
            address: Ipv4Addr::new(10, 77, 0, last_octet),
            aliases: vec![service.to_owned()],
        }],
        limits: Limits::default(),
        cap_drop: Vec::new(),
        cap_add: Vec::new(),
        no_new_privileges: true,
        stop_signal: None,
        stop_timeout: Duration::from_secs(10),
        probe: Probe::Tcp { port: 5001 },
        after: Vec::new(),
        serving: true,
        stop_order: 1,
    }
}

pub(crate) fn network(name: &str) -> NetworkSpec {
    NetworkSpec {
        name: format!("dify-n1-{name}"),
        subnet: Ipv4Addr::new(10, 77, 0, 0),
        prefix: 24,
        gateway: Ipv4Addr::new(10, 77, 0, 1),
        internal: false,
        options: BTreeMap::new(),
    }
}
