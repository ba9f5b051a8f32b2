//! A spec in Docker's words. Pure.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HostConfig, HostConfigLogConfig,
    Ipam, IpamConfig, Mount, MountType, NetworkCreateRequest, NetworkingConfig, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};
use dify_common::secret::ExposeSecret;

use crate::engine::files::PlacedFile;
use crate::engine::site::{LogDriver, Site};
use crate::engine::spec::{Attachment, ContainerSpec, EnvValue, NetworkSpec, label};

/// Open files of a container: enough for an api that holds a socket per
/// stream. Docker's own default is its daemon's limit, often a billion, and
/// some programs then close a billion descriptors one by one.
const OPEN_FILES: i64 = 65_536;
/// Of a container's output, kept on disk: 3 x 20 MB for each of about ten.
const LOG_SIZE: &str = "20m";
const LOG_FILES: &str = "3";

/// Body of `POST /containers/create`. It names the first network only: API
/// 1.41 takes one endpoint there, the others are connected before the start.
pub(super) fn container(
    spec: &ContainerSpec,
    site: &Site,
    files: Vec<PlacedFile>,
    open_files: i64,
    more_labels: Vec<(String, String)>,
) -> ContainerCreateBody {
    let limits = spec.limits;
    let mut labels = node_labels(site);
    labels.insert(label::SERVICE.to_owned(), spec.service.clone());
    labels.insert(label::SPEC.to_owned(), site.hash(spec).to_string());
    labels.insert(label::RELEASE.to_owned(), site.release().to_string());
    labels.extend(more_labels);
    let memory = limits.memory.map(saturating);
    let host = HostConfig {
        // The agent alone restarts: after the guard, the gate and a backoff.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        network_mode: Some(spec.networks.first().map_or("none", |first| &first.network).to_owned()),
        memory,
        // No swap beyond the limit: a swapping api is worse than a restarted one.
        memory_swap: memory,
        cpu_shares: limits.cpu_shares.map(i64::from),
        pids_limit: limits.pids.map(i64::from),
        ulimits: Some(vec![ResourcesUlimits {
            name: Some("nofile".to_owned()),
            soft: Some(open_files),
            hard: Some(open_files),
        }]),
        cap_drop: Some(spec.cap_drop.clone()),
        cap_add: Some(spec.cap_add.clone()),
        security_opt: spec.no_new_privileges.then(|| vec!["no-new-privileges".to_owned()]),
        init: Some(false),
        log_config: Some(log_config(site.logs(), &spec.service)),
        mounts: Some(mounts(spec, files)),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: spec.entrypoint.clone(),
        cmd: spec.command.clone(),
        hostname: spec.hostname.clone(),
        user: spec.user.clone(),
        env: Some(spec.env.iter().map(|(key, value)| format!("{key}={}", open(value))).collect()),
        labels: Some(labels),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: Some(seconds(spec.stop_timeout)),
        host_config: Some(host),
        networking_config: spec.networks.first().map(|first| NetworkingConfig {
            endpoints_config: Some(HashMap::from([(first.network.clone(), endpoint(first))])),
        }),
        ..ContainerCreateBody::default()
    }
}

/// [`OPEN_FILES`], or less where this process may have no more: inside another
/// container nobody, runc included, can raise a limit, and a container that
/// asks for it does not start. Agent and Docker get their limit from the same
/// hand, so ours is taken for its.
pub(super) fn open_files() -> i64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    hard.map_or(OPEN_FILES, |hard| OPEN_FILES.min(hard))
}

/// A container's end of a network.
pub(super) fn endpoint(attachment: &Attachment) -> EndpointSettings {
    EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: Some(attachment.address.to_string()),
            ..EndpointIpamConfig::default()
        }),
        aliases: Some(attachment.aliases.clone()),
        ..EndpointSettings::default()
    }
}

/// Body of `POST /networks/create`.
pub(super) fn network(spec: &NetworkSpec, site: &Site) -> NetworkCreateRequest {
    let mut labels = node_labels(site);
    labels.insert(label::SPEC.to_owned(), site.hash_network(spec).to_string());
    NetworkCreateRequest {
        name: spec.name.clone(),
        driver: Some("bridge".to_owned()),
        internal: Some(spec.internal),
        attachable: Some(false),
        enable_ipv6: Some(false),
        ipam: Some(Ipam {
            driver: Some("default".to_owned()),
            config: Some(vec![IpamConfig {
                subnet: Some(format!("{}/{}", spec.subnet, spec.prefix)),
                gateway: Some(spec.gateway.to_string()),
                ..IpamConfig::default()
            }]),
            options: None,
        }),
        options: Some(spec.options.clone().into_iter().collect()),
        labels: Some(labels),
        ..NetworkCreateRequest::default()
    }
}

/// The label that makes a thing ours.
pub(super) fn node_labels(site: &Site) -> HashMap<String, String> {
    HashMap::from([(label::NODE.to_owned(), site.node().to_string())])
}

/// A value for the environment, opened: the one place that does.
fn open(value: &EnvValue) -> &str {
    match value {
        EnvValue::Plain(value) => value,
        EnvValue::Secret(value) => value.expose_secret(),
    }
}

/// The secret values of a spec, to be struck out of whatever Docker says.
pub(super) fn secrets(spec: &ContainerSpec) -> impl Iterator<Item = &str> {
    spec.env.values().filter_map(|value| match value {
        EnvValue::Plain(_) => None,
        EnvValue::Secret(value) => Some(value.expose_secret()),
    })
}

/// Whole seconds, rounded up: a grace is never shortened.
pub(super) fn seconds(duration: std::time::Duration) -> i64 {
    saturating(duration.as_secs() + u64::from(duration.subsec_nanos() > 0))
}

fn saturating(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn log_config(driver: LogDriver, service: &str) -> HostConfigLogConfig {
    let (typ, options) = match driver {
        LogDriver::JsonFile => ("json-file", vec![("max-size", LOG_SIZE), ("max-file", LOG_FILES)]),
        LogDriver::Journald => ("journald", vec![("tag", service)]),
    };
    let config =
        options.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    HostConfigLogConfig { typ: Some(typ.to_owned()), config: Some(config) }
}

fn mounts(spec: &ContainerSpec, files: Vec<PlacedFile>) -> Vec<Mount> {
    let files = files.into_iter().map(|file| Mount {
        typ: Some(MountType::BIND),
        source: Some(file.source.display().to_string()),
        target: Some(file.target),
        read_only: Some(true),
        ..Mount::default()
    });
    let volumes = spec.volumes.iter().map(|volume| Mount {
        typ: Some(MountType::VOLUME),
        source: Some(volume.volume.clone()),
        target: Some(volume.path.clone()),
        ..Mount::default()
    });
    files.chain(volumes).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dify_common::secret::Secret;

    use super::*;
    use crate::engine::sample;
    use crate::engine::spec::VolumeMount;

    fn site(logs: LogDriver) -> (tempfile::TempDir, Site) {
        let state = tempfile::tempdir().expect("temporary directory");
        let site = Site::open(
            state.path(),
            "n1".parse().expect("id"),
            "1.14.2".parse().expect("id"),
            logs,
        )
        .expect("opens");
        (state, site)
    }

    #[test]
    fn a_container_is_created_the_way_the_agent_keeps_it() {
        let (_state, site) = site(LogDriver::JsonFile);
        let mut spec = sample::container("api", 2);
        spec.env.insert("KEY".into(), EnvValue::Secret(Secret::from("hunter2")));
        spec.limits.memory = Some(1 << 30);
        spec.stop_timeout = Duration::from_millis(1500);
        spec.volumes = vec![VolumeMount { volume: "dify-n1-v".into(), path: "/v".into() }];
        let files = vec![PlacedFile { source: "/state/f".into(), target: "/f".into() }];
        let mut body = serde_json::to_value(container(&spec, &site, files, 65_536, vec![]))
            .expect("serialises");
        let hash = body["Labels"][label::SPEC].take();
        assert_eq!(hash, site.hash(&spec).as_str());
        let expected = serde_json::json!({
            "Image": "127.0.0.1:5000/standin:1",
            "Env": ["KEY=hunter2"],
            "Labels": {
                "io.dify-fleet.node": "n1", "io.dify-fleet.service": "api",
                "io.dify-fleet.release": "1.14.2", "io.dify-fleet.spec": null,
            },
            "StopTimeout": 2,
            "HostConfig": {
                "RestartPolicy": {"Name": "no"},
                "NetworkMode": "dify-n1-main",
                "Memory": 1_073_741_824_u64, "MemorySwap": 1_073_741_824_u64,
                "Ulimits": [{"Name": "nofile", "Soft": 65536, "Hard": 65536}],
                "CapAdd": [], "CapDrop": [], "SecurityOpt": ["no-new-privileges"], "Init": false,
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "20m", "max-file": "3"}},
                "Mounts": [
                    {"Type": "bind", "Source": "/state/f", "Target": "/f", "ReadOnly": true},
                    {"Type": "volume", "Source": "dify-n1-v", "Target": "/v"},
                ],
            },
            "NetworkingConfig": {"EndpointsConfig": {"dify-n1-main": {
                "IPAMConfig": {"IPv4Address": "10.77.0.2"}, "Aliases": ["api"],
            }}},
        });
        assert_eq!(body, expected, "{body:#}");
        assert_eq!(secrets(&spec).collect::<Vec<_>>(), ["hunter2"]);
    }

    #[test]
    fn the_journal_gets_the_service_as_tag_and_networks_their_subnet() {
        let (_state, site) = site(LogDriver::Journald);
        let body = serde_json::to_value(container(
            &sample::container("api", 2),
            &site,
            vec![],
            1024,
            vec![],
        ))
        .expect("serialises");
        assert_eq!(
            body["HostConfig"]["LogConfig"],
            serde_json::json!({"Type": "journald", "Config": {"tag": "api"}})
        );
        let body =
            serde_json::to_value(network(&sample::network("main"), &site)).expect("serialises");
        assert_eq!(
            body["IPAM"]["Config"],
            serde_json::json!([{"Subnet": "10.77.0.0/24", "Gateway": "10.77.0.1"}])
        );
        assert_eq!(body["Labels"]["io.dify-fleet.node"], "n1");
    }
}
