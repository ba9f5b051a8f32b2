//! Compose's contender: the containers of one booted node, written down as a
//! compose file. Same images by digest, same environment, files and volumes; what
//! differs is what Dify's own compose file does differently:
//! * `MIGRATION_ENABLED=true` in the environment that api, worker and
//!   worker_beat share, so that each migrates, or finds the lock taken, before it starts;
//! * `depends_on` names no service started here (docker/docker-compose.yaml of
//!   Dify 1.14.2: api, worker, worker_beat and plugin_daemon wait for PostgreSQL
//!   and Redis, which run already; web, sandbox and ssrf_proxy wait for nothing),
//!   so that all start at once;
//! * no resource limits, `restart: always`.
//!
//! Left out in compose's favour: nginx and `init_permissions`.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use ::tests::docker::Container;
use ::tests::{Broken, Doing as _, Outcome, child};
use serde_json::{Map, Value, json};
use tokio::process::Command;

use super::watch::Target;

/// Services in Dify's shared api and worker environment.
const MIGRATING: [&str; 3] = ["api", "worker", "worker_beat"];
/// Compose's own labels and ours must not mix: the agent would take it for its own.
const PROJECT: &str = "bench";

/// A stack that compose can start.
#[derive(Debug)]
pub(crate) struct Compose {
    file: PathBuf,
    prefix: String,
    services: Vec<(String, Ipv4Addr)>,
}

impl Compose {
    /// Writes down the running containers of node `id`. What compose makes is
    /// named `dify-<prefix>...`, so that the fleet clears it away.
    pub(crate) async fn of_node(
        id: &str,
        containers: &[Container],
        prefix: &str,
        folder: &Path,
    ) -> Outcome<Self> {
        let folder = folder.join("compose");
        std::fs::create_dir_all(&folder).doing(|| format!("create {}", folder.display()))?;
        let name = |short: &str| format!("dify-{prefix}compose-{short}");
        let own = format!("dify-{id}-");
        let (mut services, mut volumes) = (Map::new(), Map::new());
        let mut networks = Map::new();
        let mut addresses = Vec::new();
        for Container { id, service, .. } in containers {
            let seen = inspect(&["inspect", id]).await?;
            let (mut mounts, mut on) = (Vec::new(), Map::new());
            for (index, mount) in list(&seen["Mounts"]).iter().enumerate() {
                let to = text(&mount["Destination"])?;
                if mount["Type"] == "bind" {
                    let copy = folder.join(format!("{service}-{index}"));
                    let from = text(&mount["Source"])?;
                    std::fs::copy(from, &copy).doing(|| format!("copy {from}"))?;
                    mounts.push(format!("{}:{to}:ro", copy.display()));
                } else if let Some(volume) = mount["Name"].as_str() {
                    let short = volume.trim_start_matches(own.as_str());
                    volumes.insert(short.to_owned(), json!({ "name": name(short) }));
                    mounts.push(format!("{short}:{to}"));
                }
            }
            for (network, end) in
                seen["NetworkSettings"]["Networks"].as_object().into_iter().flatten()
            {
                let short = network.trim_start_matches(own.as_str()).to_owned();
                let address: Ipv4Addr = text(&end["IPAddress"])?
                    .parse()
                    .doing(|| format!("read the address of {service} on {network}"))?;
                // Compose adds the service's name, the engine the container's id.
                let aliases: Vec<&Value> = list(&end["Aliases"])
                    .iter()
                    .filter(|alias| {
                        alias.as_str().is_some_and(|it| it != service && !id.starts_with(it))
                    })
                    .collect();
                on.insert(short.clone(), json!({ "ipv4_address": address, "aliases": aliases }));
                if short == "main" || addresses.last().is_none_or(|(last, _)| last != service) {
                    addresses.retain(|(known, _)| known != service);
                    addresses.push((service.clone(), address));
                }
                if !networks.contains_key(&short) {
                    let seen = inspect(&["network", "inspect", network]).await?;
                    let subnet = &seen["IPAM"]["Config"][0]["Subnet"];
                    let made = json!({
                        "name": name(&short), "internal": seen["Internal"],
                        "ipam": { "config": [{ "subnet": subnet }] },
                    });
                    networks.insert(short, made);
                }
            }
            let service_file = json!({
                "image": seen["Config"]["Image"], "container_name": name(service),
                "environment": environment(service, &seen["Config"]["Env"]),
                "volumes": mounts, "networks": on, "restart": "always",
            });
            services.insert(service.clone(), service_file);
        }
        let document = json!({
            "version": "2.4", "services": services, "networks": networks, "volumes": volumes,
        });
        let file = folder.join("docker-compose.json");
        // JSON is YAML.
        std::fs::write(&file, document.to_string())
            .doing(|| format!("write {}", file.display()))?;
        Ok(Self { file, prefix: name(""), services: addresses })
    }

    /// Its services as they will be.
    pub(crate) fn targets(&self) -> Vec<Target> {
        self.targets_of(&self.prefix, None)
    }

    /// The same services as node `id` on subnet `10.213.<third>.0/24` will have them.
    pub(crate) fn targets_on(&self, id: &str, third: u8) -> Vec<Target> {
        self.targets_of(&format!("dify-{id}-"), Some(third))
    }

    fn targets_of(&self, prefix: &str, third: Option<u8>) -> Vec<Target> {
        let targets = self.services.iter().map(|(service, address)| {
            let [a, b, c, d] = address.octets();
            Target {
                service: service.clone(),
                container: format!("{prefix}{service}"),
                address: [a, b, third.unwrap_or(c), d].into(),
            }
        });
        targets.collect()
    }

    /// `docker-compose up -d`, to its end.
    pub(crate) async fn up(&self) -> Outcome {
        self.run(&["up", "--detach", "--no-color"]).await
    }

    /// Removes everything it made.
    pub(crate) async fn down(&self) -> Outcome {
        self.run(&["down", "--volumes", "--timeout", "1"]).await
    }

    async fn run(&self, verb: &[&str]) -> Outcome {
        let mut command = Command::new("docker-compose");
        command.arg("--file").arg(&self.file).args(["--project-name", PROJECT]).args(verb);
        command.kill_on_drop(true).stdin(Stdio::null());
        child::run(&mut command).await.map(drop)
    }
}

fn environment(service: &str, pairs: &Value) -> Map<String, Value> {
    let pairs = list(pairs).iter().filter_map(|pair| pair.as_str()?.split_once('='));
    // A dollar sign would be compose's.
    let mut all: Map<String, Value> =
        pairs.map(|(key, value)| (key.to_owned(), value.replace('$', "$$").into())).collect();
    if MIGRATING.contains(&service) {
        all.insert("MIGRATION_ENABLED".into(), "true".into());
    }
    all
}

async fn inspect(arguments: &[&str]) -> Outcome<Value> {
    let shown = child::run(Command::new("docker").args(arguments)).await?;
    let mut shown: Vec<Value> =
        serde_json::from_str(&shown).doing(|| format!("read docker {}", arguments.join(" ")))?;
    shown.pop().ok_or_else(|| Broken::new("docker inspect shows nothing"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> Outcome<&str> {
    value.as_str().ok_or_else(|| Broken::new(format!("expected a text, found {value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dify_s_shared_environment_migrates_and_dollars_are_kept() {
        let pairs = json!(["MIGRATION_ENABLED=false", "DB_PASSWORD=a$b=c"]);
        let api = environment("api", &pairs);
        assert_eq!(
            (&api["MIGRATION_ENABLED"], &api["DB_PASSWORD"]),
            (&json!("true"), &json!("a$$b=c"))
        );
        assert_eq!(environment("plugin_daemon", &pairs)["MIGRATION_ENABLED"], "false");
    }
}
