//! What a manifest must fulfil beyond its types; every mistake at once.

use std::collections::{BTreeMap, BTreeSet};

use dify_common::settings::Problems;

use super::manifest::{Network, Probe, Release, Slots, Source};
use super::value::Value;

/// Services one network has room for (`dify::network` cuts a /27 for each).
pub(super) const MOST_SERVICES: usize = 24;

/// All mistakes of a manifest that has the right shape.
pub(super) fn check(release: &Release) -> Problems {
    let mut problems = Problems::default();
    evidence(release, &mut problems);
    services(release, &mut problems);
    environment(release, &mut problems);
    front_door(release, &mut problems);
    problems
}

fn evidence(release: &Release, problems: &mut Problems) {
    let mut blocks: Vec<(String, &Source, bool)> = vec![
        ("release".into(), &release.source, release.unconfirmed),
        ("front_door".into(), &release.front_door.source, release.front_door.unconfirmed),
        ("celery".into(), &release.celery.source, release.celery.unconfirmed),
        ("migration".into(), &release.migration.source, release.migration.unconfirmed),
        ("job".into(), &release.job.source, release.job.unconfirmed),
        (
            "post_migration".into(),
            &release.post_migration.source,
            release.post_migration.unconfirmed,
        ),
        ("schema".into(), &release.schema.source, release.schema.unconfirmed),
        ("beside".into(), &release.beside.source, release.beside.unconfirmed),
    ];
    for service in &release.services {
        blocks.push((format!("services.{}", service.name), &service.source, service.unconfirmed));
    }
    for (name, group) in &release.environment {
        blocks.push((format!("environment.{name}"), &group.source, group.unconfirmed));
    }
    for known in &release.findings {
        blocks.push((format!("findings.{}", known.code), &known.source, known.unconfirmed));
    }
    for (path, source, unconfirmed) in blocks {
        if source.as_ref().is_none_or(|text| text.trim().is_empty()) && !unconfirmed {
            problems
                .add(path, "has no `source`: say where it was read, or write `unconfirmed: true`");
        }
    }
}

fn services(release: &Release, problems: &mut Problems) {
    let mut names = BTreeSet::new();
    if release.services.len() > MOST_SERVICES {
        problems.add(
            "services",
            format!("has more than {MOST_SERVICES} entries, which is what a node's network holds"),
        );
    }
    for service in &release.services {
        let path = format!("services.{}", service.name);
        if !names.insert(service.name.as_str()) {
            problems.add(&path, "stands there twice");
        }
        if !is_service_name(&service.name) {
            problems.add(&path, "is no service name: expected a-z, 0-9 and '_', at most 24");
        }
        match service.image.rsplit_once(':') {
            Some((repository, tag)) if !repository.is_empty() && is_tag(tag) => {
                if tag == "latest" {
                    problems.add(
                        format!("{path}.image"),
                        "is tagged `latest`: name a version, a tag that moves is no release",
                    );
                }
            }
            Some(_) | None => problems.add(format!("{path}.image"), "is not `repo:tag`"),
        }
        let mut legs = BTreeSet::new();
        if !service.networks.iter().all(|leg| legs.insert(leg.on)) {
            problems.add(format!("{path}.networks"), "names a network twice");
        }
        if service.networks.is_empty() {
            problems.add(format!("{path}.networks"), "is empty: the service could not be reached");
        }
        let probed = match service.probe {
            Probe::Http { port, .. } | Probe::Tcp { port } => Some(port),
            Probe::Celery { .. } | Probe::Running { .. } => None,
        };
        if service.port == Some(0) || probed == Some(0) {
            problems.add(format!("{path}.port"), "is 0: expected 1 to 65535");
        }
        if let (Some(port), Some(probed)) = (service.port, probed)
            && port != probed
        {
            problems.add(
                format!("{path}.probe"),
                format!("asks port {probed}, the service listens on {port}"),
            );
        }
        for need in &service.needs {
            if release.service(need).is_none() {
                problems.add(
                    format!("{path}.needs"),
                    format!("names {need}, which is no service here"),
                );
            }
        }
        for (kind, absolute) in service
            .files
            .iter()
            .map(|file| ("files", &file.path))
            .chain(service.volumes.iter().map(|v| ("volumes", &v.path)))
        {
            if !absolute.starts_with('/') {
                problems
                    .add(format!("{path}.{kind}"), format!("{absolute} is not an absolute path"));
            }
        }
        let on_sandbox = service.networks.iter().any(|leg| leg.on == Network::Sandbox);
        if on_sandbox && !matches!(service.name.as_str(), "sandbox" | "ssrf_proxy") {
            problems.add(
                format!("{path}.networks"),
                "puts it on the sandbox network, where user code could reach it: only sandbox and ssrf_proxy belong there",
            );
        }
    }
    order(release, problems);
}

/// List order is start order, so a need that stands later is a cycle or a mistake.
fn order(release: &Release, problems: &mut Problems) {
    let place: BTreeMap<&str, usize> = release
        .services
        .iter()
        .enumerate()
        .map(|(index, service)| (service.name.as_str(), index))
        .collect();
    for (index, service) in release.services.iter().enumerate() {
        for need in &service.needs {
            if place.get(need.as_str()).is_some_and(|at| *at >= index) {
                problems.add(
                    format!("services.{}.needs", service.name),
                    format!("{need} stands later in the list: a cycle, or the wrong start order"),
                );
            }
        }
    }
}

fn environment(release: &Release, problems: &mut Problems) {
    let mut used = BTreeSet::new();
    let mut takers: Vec<(String, &Vec<String>, &std::collections::BTreeMap<String, Value>)> =
        release
            .services
            .iter()
            .map(|s| (format!("services.{}", s.name), &s.environment, &s.set))
            .collect();
    for (name, one) in [("migration", &release.migration), ("job", &release.job)] {
        takers.push((name.to_owned(), &one.environment, &one.set));
        if release.service(&one.like).is_none() {
            problems.add(
                format!("{name}.like"),
                format!("names {}, which is no service here", one.like),
            );
        }
    }
    for (path, groups, own) in takers {
        let mut from: BTreeMap<&str, &str> = BTreeMap::new();
        for name in groups {
            used.insert(name.as_str());
            let Some(group) = release.environment.get(name) else {
                problems.add(
                    format!("{path}.environment"),
                    format!("names {name}, which is no group here"),
                );
                continue;
            };
            for key in group.keys.keys() {
                if let Some(other) = from.insert(key, name) {
                    problems.add(
                        format!("{path}.environment"),
                        format!("gets {key} from {other} and from {name}"),
                    );
                }
            }
        }
        for (key, value) in own {
            if let Some(group) = from.get(key.as_str()) {
                problems.add(format!("{path}.set.{key}"), format!("is in the group {group} too"));
            }
            one_value(release, &format!("{path}.set"), key, value, problems);
        }
    }
    for (name, group) in &release.environment {
        if !used.contains(name.as_str()) {
            problems.add(format!("environment.{name}"), "is used by no service");
        }
        for (key, value) in &group.keys {
            one_value(release, &format!("environment.{name}"), key, value, problems);
        }
    }
}

fn one_value(release: &Release, path: &str, key: &str, value: &Value, problems: &mut Problems) {
    let named = !key.is_empty()
        && key.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    if !named {
        problems.add(format!("{path}.{key}"), "is no environment key");
    }
    match value {
        Value::Unknown(text) => problems.add(
            format!("{path}.{key}"),
            format!(
                "{text:?} is no source: expected literal:, default:, settable, secret:, derived: or url:"
            ),
        ),
        Value::Url { service, .. } => {
            match release.service(service) {
                None => problems.add(
                    format!("{path}.{key}"),
                    format!("names {service}, which is no service here"),
                ),
                Some(found) if found.port.is_none() => problems.add(
                    format!("{path}.{key}"),
                    format!("wants the address of {service}, which has no port"),
                ),
                Some(_) => {}
            }
        }
        Value::Literal(_)
        | Value::Default(_)
        | Value::Settable
        | Value::Secret(_)
        | Value::Derived(_) => {}
    }
}

fn front_door(release: &Release, problems: &mut Problems) {
    let door = &release.front_door;
    for (name, upstream) in &door.upstreams {
        let path = format!("front_door.upstreams.{name}");
        match release.service(name) {
            None => problems.add(&path, "is no service here"),
            Some(service) => {
                if service.port.is_none() {
                    problems.add(&path, "has no port");
                }
                if service.networks.first().is_none_or(|leg| leg.on != Network::Main) {
                    problems.add(
                        &path,
                        "is not on the main network first, where the front door reaches it",
                    );
                }
                if upstream.required && service.feature.is_some() {
                    problems.add(&path, "is required but belongs to an optional feature");
                }
            }
        }
        if upstream.slots == Slots::Number(0) {
            problems.add(&path, "has no slots");
        }
    }
    let mut prefixes = BTreeSet::new();
    for route in &door.routes {
        let path = format!("front_door.routes.{}", route.prefix);
        if !route.prefix.starts_with('/') {
            problems.add(&path, "does not start with '/'");
        }
        if !prefixes.insert(&route.prefix) {
            problems.add(&path, "stands there twice");
        }
        if !door.upstreams.contains_key(&route.upstream) {
            problems.add(&path, format!("goes to {}, which is no upstream here", route.upstream));
        }
    }
    let mut refused = BTreeSet::new();
    for refusal in &door.refusals {
        if !refused.insert(&refusal.prefix) {
            problems.add(format!("front_door.refusals.{}", refusal.prefix), "stands there twice");
        }
        if !(400..600).contains(&refusal.status) {
            problems.add(
                format!("front_door.refusals.{}", refusal.prefix),
                "has a status that is no refusal: expected 400 to 599",
            );
        }
    }
}

fn is_service_name(name: &str) -> bool {
    (1..=24).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_named_at_once() {
        let text = crate::release::library::built_in("1.14.2")
            .expect("is built in")
            .replace("image: langgenius/dify-web:1.14.2", "image: dify-web")
            .replace("derived:broker_url", "derived:brokerurl")
            .replace("url:plugin_daemon", "url:plugin_demon")
            .replace("needs: [sandbox]", "needs: [box]")
            .replace("prefix: /v1", "prefix: /api")
            .replace("upstream: plugin_daemon", "upstream: demon");
        let release: Release = serde_yaml::from_str(&text).expect("has the shape");
        let said = check(&release).to_string();
        for part in [
            "services.web.image: is not `repo:tag`",
            "CELERY_BROKER_URL: \"derived:brokerurl\" is no source",
            "PLUGIN_DAEMON_URL: names plugin_demon",
            "services.ssrf_proxy.needs: names box",
            "front_door.routes./api: stands there twice",
            "front_door.routes./e/: goes to demon",
        ] {
            assert!(said.contains(part), "{part} is missing in {said}");
        }
    }

    #[test]
    fn a_cycle_is_seen() {
        let text = crate::release::library::built_in("1.14.2").expect("is built in").replacen(
            "needs: []",
            "needs: [worker]",
            1,
        );
        let release: Release = serde_yaml::from_str(&text).expect("has the shape");
        assert!(check(&release).to_string().contains("services.api.needs: worker stands later"));
    }

    #[test]
    fn nothing_but_the_proxy_joins_user_code() {
        let text = crate::release::library::built_in("1.14.2").expect("is built in").replacen(
            "- {on: code}",
            "- {on: sandbox}",
            1,
        );
        let release: Release = serde_yaml::from_str(&text).expect("has the shape");
        assert!(check(&release).to_string().contains("puts it on the sandbox network"));
    }
}
