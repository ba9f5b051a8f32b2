//! What an operator should know of a node that does run.

use dify_common::wire::status::Finding;

use crate::config::settings::{PostgresTls, RedisTls, SecretName};
use crate::release::Lock;
use crate::release::manifest::Service;

use super::environment::Origins;
use super::stack::Machine;

/// The first release without the holes published in 2026 as CVE-2026-41947 to
/// -41950 (tenant isolation, plugin daemon path, file previews).
const FIRST_MENDED: [u64; 3] = [1, 14, 2];
/// What the operating system, Docker and we take.
const SYSTEM_MIB: u64 = 768;
/// All of them; none stops a node.
pub(super) fn findings(
    origins: &Origins<'_>,
    services: &[(usize, &Service)],
    lock: Option<&Lock>,
    machine: Machine,
) -> Vec<Finding> {
    let (settings, release) = (origins.settings, origins.release);
    let mut findings: Vec<Finding> =
        release.findings.iter().map(|known| finding(&known.code, known.message.clone())).collect();
    if crate::release::version(release.release.as_str()).as_slice() < FIRST_MENDED.as_slice() {
        findings.push(finding(
                "known-vulnerabilities",
                format!(
                    "Dify {} has published holes (CVE-2026-41947 to -41950) that 1.14.2 closes: upgrade",
                    release.release
                ),
            ));
    }
    if lock.is_none() {
        findings.push(finding(
                "unlocked-release",
                "images run by tag: anyone who can push the tag decides what runs here; run `dify-agent releases lock`".to_owned(),
            ));
    }
    if !origins.secrets.contains_key(&SecretName::InitPassword) {
        findings.push(finding(
                "setup-unguarded",
                "no init_password is configured: setup pages are refused until Dify has its first admin".to_owned(),
            ));
    }
    if !origins.secrets.contains_key(&SecretName::RedisPassword) {
        findings.push(finding(
            "redis-open",
            "Redis is used without AUTH: switch AUTH on and configure redis_password".to_owned(),
        ));
    }
    for (code, server, weak) in [
        (
            "database-unverified",
            "the main database",
            settings.database.tls != PostgresTls::VerifyCa,
        ),
        ("vector-unverified", "the vector database", settings.vector.tls != PostgresTls::VerifyCa),
        ("redis-unverified", "Redis", settings.redis.tls != RedisTls::Verify),
    ] {
        if weak {
            findings.push(finding(
                    code,
                    format!("the certificate of {server} is not checked: whoever answers on its address is believed; configure its CA and verification"),
                ));
        }
    }
    let floor: u64 =
        SYSTEM_MIB + services.iter().map(|(_, s)| u64::from(s.memory_floor_mib)).sum::<u64>();
    let have = machine.memory >> 20;
    if have < floor {
        findings.push(finding(
                "small-machine",
                format!("the services of this release need about {floor} MiB at rest, this machine has {have} MiB: take a larger one"),
            ));
    }
    let unconfirmed: Vec<&str> = services
        .iter()
        .filter(|(_, service)| service.unconfirmed)
        .map(|(_, service)| service.name.as_str())
        .collect();
    if !unconfirmed.is_empty() {
        findings.push(finding(
            "unconfirmed-manifest",
            format!(
                "parts of this release's manifest were not checked against Dify's own material: {}",
                unconfirmed.join(", ")
            ),
        ));
    }
    findings
}

fn finding(code: &str, message: String) -> Finding {
    Finding { code: code.to_owned(), message }
}
