//! Puts the parts together: one container per service of the manifest that
//! the features ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use dify_common::secret::Secret;
use dify_common::settings::Problems;
use dify_common::wire::edge;

use crate::config::settings::{Features, PostgresTls, RedisTls, SecretName, Settings};
use crate::engine::spec::{Attachment, ContainerSpec, Limits, Probe, VolumeMount};
use crate::release::manifest::{self, Feature, Network, OneShot, Service, SlotName, Slots};
use crate::release::{Lock, Release};

use super::WireError;
use super::credentials;
use super::environment::Origins;
use super::files::{Allowed, Files};
use super::findings;
use super::network::{self, Plan};
use super::size::{self, Sizes};
use super::stack::{Machine, Stack};

/// Host names in a container end here (Linux: 64, DNS label: 63).
const LONGEST_HOSTNAME: usize = 63;

pub(super) struct Wiring<'a> {
    origins: Origins<'a>,
    plan: Plan<'a>,
    lock: Option<&'a Lock>,
    machine: Machine,
    problems: Problems,
    allowed: Allowed,
}

impl<'a> Wiring<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        secrets: &'a BTreeMap<SecretName, Secret>,
        release: &'a Release,
        lock: Option<&'a Lock>,
        machine: Machine,
    ) -> Self {
        Self {
            origins: Origins {
                settings,
                secrets,
                release,
                sizes: Sizes::choose(&settings.capacity, machine),
            },
            plan: Plan { node: &settings.node, range: settings.network },
            lock,
            machine,
            problems: Problems::default(),
            allowed: Allowed::default(),
        }
    }

    pub(super) fn stack(mut self) -> Result<Stack, WireError> {
        let (settings, release) = (self.origins.settings, self.origins.release);
        self.judge();
        let services: Vec<(usize, &Service)> = release
            .services
            .iter()
            .enumerate()
            .filter(|(_, service)| wanted(service.feature, settings.features))
            .collect();
        let containers: Vec<ContainerSpec> =
            services.iter().map(|(index, service)| self.container(*index, service)).collect();
        let migration = self.one_shot("migration", &release.migration, network::MIGRATION);
        let job = self.one_shot("job", &release.job, network::JOB);
        if !self.problems.is_empty() {
            return Err(WireError {
                release: release.release.to_string(),
                problems: self.problems,
            });
        }

        let used: BTreeSet<Network> = services
            .iter()
            .flat_map(|(_, service)| service.networks.iter().map(|leg| leg.on))
            .collect();
        let budget = size::budget(
            containers.iter().map(|c| (c.service.as_str(), &c.env)),
            settings.capacity.max_vms.get(),
        );
        let door = &release.front_door;
        let on = |feature| wanted(feature, settings.features);
        Ok(Stack {
            release: release.release.clone(),
            networks: used.iter().map(|n| self.plan.spec(*n)).collect(),
            firewall: used.iter().filter_map(|n| self.plan.rule(*n)).collect(),
            migration,
            job,
            post_migration: release.post_migration.commands.clone(),
            upstreams: services
                .iter()
                .filter_map(|(index, service)| {
                    let upstream = door.upstreams.get(&service.name)?;
                    Some((service.name.clone(), self.upstream(*index, service, upstream)))
                })
                .collect(),
            routes: door
                .routes
                .iter()
                .filter(|route| on(route.feature))
                .map(|route| edge::Route {
                    prefix: route.prefix.clone(),
                    upstream: route.upstream.clone(),
                    hook_url: route.hook_url,
                })
                .collect(),
            refusals: door
                .refusals
                .iter()
                .filter(|refusal| refusal.without.is_none() || !on(refusal.without))
                .map(|refusal| edge::Refusal {
                    prefix: refusal.prefix.clone(),
                    status: refusal.status,
                    message: refusal.message.clone(),
                })
                .collect(),
            setup_refusals: self.setup_refusals(),
            findings: findings::findings(&self.origins, &services, self.lock, self.machine),
            budget,
            containers,
        })
    }

    /// Everything that makes these inputs no node.
    fn judge(&mut self) {
        let settings = self.origins.settings;
        let problems = &mut self.problems;
        credentials::judge(settings, self.origins.secrets, problems);
        self.origins.judge(problems);
        self.allowed = Allowed::read(settings.environment.get("ssrf_proxy"), problems);
        if settings.network.base.octets()[3] != 0 {
            problems.add("network.base", "is not the first address of a /24");
        }
        if self.origins.sizes.api_connections <= size::TOO_FEW_CONNECTIONS {
            problems.add(
                "capacity.api_connections",
                format!(
                    "is {}: an open stream holds one for its whole life, so so few stall the api; expected more than {}",
                    self.origins.sizes.api_connections,
                    size::TOO_FEW_CONNECTIONS
                ),
            );
        }
        let verified = [
            ("database.tls", settings.database.tls == PostgresTls::VerifyCa),
            ("vector.tls", settings.vector.tls == PostgresTls::VerifyCa),
            ("redis.tls", settings.redis.tls == RedisTls::Verify),
        ];
        for (path, _) in verified.into_iter().filter(|(_, verified)| *verified) {
            if settings.certificates.is_none() {
                problems.add(
                    path,
                    "wants the server's certificate checked, but `certificates` holds no CA",
                );
            }
        }
        if settings.features.agent && self.origins.release.service("agent_backend").is_none() {
            problems.add(
                "features.agent",
                format!(
                    "is on, but release {} has no agent services (1.16 and later do)",
                    self.origins.release.release
                ),
            );
        }
        if self.lock.is_none() && !settings.images.allow_unlocked {
            problems.add(
                "images.lock",
                format!(
                    "release {} has no lock: run `dify-agent releases lock`, or set images.allow_unlocked",
                    self.origins.release.release
                ),
            );
        }
    }

    fn container(&mut self, index: usize, service: &Service) -> ContainerSpec {
        let settings = self.origins.settings;
        let on = |feature| wanted(feature, settings.features);
        let hostname = matches!(service.probe, manifest::Probe::Celery { .. })
            .then(|| hostname(&service.name, settings.node.as_str()));
        let files = Files {
            plan: &self.plan,
            release: self.origins.release,
            certificates: settings.certificates.as_deref(),
            allowed: &self.allowed,
        };
        ContainerSpec {
            service: service.name.clone(),
            name: format!("dify-{}-{}", settings.node, service.name),
            probe: probe(&service.probe, hostname.as_deref()),
            hostname,
            entrypoint: service.entrypoint.clone(),
            command: service.command.clone(),
            user: service.user.clone(),
            env: self.origins.environment(&service.name, &self.origins.release.keys(service, on)),
            files: service.files.iter().filter_map(|f| files.mount(f)).collect(),
            volumes: service
                .volumes
                .iter()
                .map(|volume| VolumeMount {
                    volume: format!("dify-{}-{}", settings.node, volume.name),
                    path: volume.path.clone(),
                })
                .collect(),
            networks: service
                .networks
                .iter()
                .map(|leg| Attachment {
                    network: self.plan.name(leg.on),
                    address: self.plan.address(leg.on, index),
                    aliases: std::iter::once(&service.name).chain(&leg.aliases).cloned().collect(),
                })
                .collect(),
            limits: Limits {
                memory: service.limits.memory_mib.map(|mib| u64::from(mib) << 20),
                cpu_shares: service.limits.cpu_shares,
                pids: service.limits.pids,
            },
            // Raw sockets could forge frames on a bridge; nothing here needs them.
            cap_drop: vec!["NET_RAW".to_owned()],
            cap_add: Vec::new(),
            no_new_privileges: true,
            stop_signal: service.stop.signal.clone(),
            stop_timeout: seconds(service.stop.timeout_s),
            after: service
                .needs
                .iter()
                .filter(|need| {
                    self.origins
                        .release
                        .service(need)
                        .is_some_and(|need| wanted(need.feature, settings.features))
                })
                .cloned()
                .collect(),
            serving: service.serving,
            stop_order: service.stop.order,
            image: self.image(&service.image),
        }
    }

    /// Like a service, but alone, once, and with its own environment.
    fn one_shot(&mut self, role: &str, one_shot: &OneShot, index: usize) -> ContainerSpec {
        let release = self.origins.release;
        let features = self.origins.settings.features;
        let on = |feature| wanted(feature, features);
        let like = release.service(&one_shot.like).expect("the manifest's check knows the service");
        ContainerSpec {
            service: role.to_owned(),
            name: format!("dify-{}-{role}", self.origins.settings.node),
            env: self.origins.environment(&like.name, &release.one_shot_keys(one_shot, on)),
            networks: like
                .networks
                .iter()
                .map(|leg| Attachment {
                    network: self.plan.name(leg.on),
                    address: self.plan.address(leg.on, index),
                    aliases: Vec::new(),
                })
                .collect(),
            volumes: Vec::new(),
            probe: Probe::Running { stable_for: Duration::ZERO },
            after: Vec::new(),
            serving: false,
            stop_order: 0,
            ..self.container(index, like)
        }
    }

    /// `[mirror/]repo@digest`, or the tag where running unlocked is allowed.
    fn image(&mut self, image: &str) -> String {
        let images = &self.origins.settings.images;
        let reference = match self.lock.map(|lock| lock.reference(image)) {
            Some(Some(locked)) => locked,
            None => image.to_owned(),
            Some(None) if images.allow_unlocked => image.to_owned(),
            Some(None) => {
                let path = format!("images.lock.{image}");
                if self.problems.iter().all(|p| p.path != path) {
                    self.problems
                        .add(path, "is not in the lock: run `dify-agent releases lock` again");
                }
                image.to_owned()
            }
        };
        match &images.mirror {
            Some(mirror) => format!("{}/{reference}", mirror.trim_end_matches('/')),
            None => reference,
        }
    }

    fn upstream(
        &self,
        index: usize,
        service: &Service,
        upstream: &manifest::Upstream,
    ) -> edge::Upstream {
        edge::Upstream {
            address: SocketAddr::from((
                self.plan.address(Network::Main, index),
                service.port.expect("the manifest's check wants a port"),
            )),
            pooled: upstream.pooled,
            max_in_flight: match upstream.slots {
                Slots::Number(number) => number,
                Slots::Named(SlotName::Api) => self.origins.sizes.api_slots(),
            },
            probe: upstream.probe.clone(),
            required: upstream.required,
        }
    }

    fn setup_refusals(&self) -> Vec<edge::Refusal> {
        if self.origins.secrets.contains_key(&SecretName::InitPassword) {
            return Vec::new();
        }
        let prefixes = &self.origins.release.front_door.setup;
        prefixes
            .iter()
            .map(|prefix| edge::Refusal {
                prefix: prefix.clone(),
                status: 403,
                message:
                    "Setup is locked: the operator must configure the secret init_password first."
                        .to_owned(),
            })
            .collect()
    }
}

fn wanted(feature: Option<Feature>, features: Features) -> bool {
    match feature {
        None => true,
        Some(Feature::Collaboration) => features.collaboration,
        Some(Feature::Agent) => features.agent,
    }
}

fn probe(probe: &manifest::Probe, hostname: Option<&str>) -> Probe {
    match probe {
        manifest::Probe::Http { port, path, deadline_s } => {
            Probe::Http { port: *port, path: path.clone(), deadline: seconds(*deadline_s) }
        }
        manifest::Probe::Tcp { port } => Probe::Tcp { port: *port },
        // Without a destination any worker of the fleet would answer for this one.
        manifest::Probe::Celery { deadline_s } => Probe::Exec {
            command: [
                "celery",
                "-A",
                "celery_healthcheck.celery",
                "inspect",
                "ping",
                "-d",
                &format!("celery@{}", hostname.unwrap_or_default()),
                "-t",
                "10",
            ]
            .map(str::to_owned)
            .to_vec(),
            deadline: seconds(*deadline_s),
        },
        manifest::Probe::Running { stable_for_s } => {
            Probe::Running { stable_for: seconds(*stable_for_s) }
        }
    }
}

/// Unique in the fleet: celery's node name is made of it. A long node name
/// loses its front, since instance names differ at their end.
fn hostname(service: &str, node: &str) -> String {
    let room = LONGEST_HOSTNAME.saturating_sub(service.len() + 1);
    let tail = &node[node.len().saturating_sub(room)..];
    format!("{service}-{}", tail.trim_start_matches('-')).replace('_', "-")
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(u64::from(count))
}
