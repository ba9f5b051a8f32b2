//! The daemon's entry in the cluster map: its own interface addresses with SERVER_PORT.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use redis::cmd;
use serde_json::json;

use super::Daemon;
use crate::failure::Failure;
use crate::{celery, log};

const MAP: &str = "plugin_daemon:cluster-nodes-status-hash-map";

/// Renews the entry every 5 s. Nothing removes it at the end: others drop it by its age.
pub(super) async fn keep_registered(daemon: Arc<Daemon>) {
    let id = celery::uuid();
    loop {
        if let Err(failure) = register(&daemon, &id).await {
            log::error("cluster.go", &format!("failed to update node status: {failure}"));
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn register(daemon: &Daemon, id: &str) -> Result<(), Failure> {
    let table = tokio::fs::read_to_string("/proc/net/fib_trie").await.unwrap_or_default();
    let addresses: Vec<_> = local_addresses(&table)
        .iter()
        .map(|ip| json!({"ip": ip, "port": daemon.settings.port, "votes": []}))
        .collect();
    let entry = json!({"addresses": addresses, "last_ping_at": crate::log::unix_now().round()});
    let mut redis = daemon.settings.redis.connect().await?;
    let key = format!("{}{MAP}", daemon.settings.prefix);
    cmd("HSET").arg(key).arg(id).arg(entry.to_string()).query_async::<()>(&mut redis).await?;
    Ok(())
}

/// Addresses of this network namespace that are not loopback, from the kernel's routing trie:
/// a `/32 host LOCAL` line belongs to the address above it.
fn local_addresses(table: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in table.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) =
                last.filter(|address| !address.is_loopback() && !found.contains(address))
        {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_without_loopback_or_repeats() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 172.18.0.0\n        /16 link UNICAST\n     |-- 172.18.0.5\n        /32 host LOCAL\nLocal:\n     |-- 172.18.0.5\n        /32 host LOCAL\n";
        assert_eq!(local_addresses(table), [Ipv4Addr::new(172, 18, 0, 5)]);
    }
}
