//! Preflight of Redis, on a server that refuses what Memorystore refuses.

use std::fs;
use std::process::{Child, Command, Stdio};

use dify_agent::backends::redis::{judge, look};
use dify_agent::backends::{CheckLine, Verdict};
use dify_agent::config::settings::{Redis, RedisTls};
use dify_common::secret::Secret;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::certificates::Authority;
use crate::{free_port, wait_for};

pub(crate) const AUTH: &str = "an AUTH/string+of a test";

/// A throw-away Redis; killed and removed when dropped.
pub(crate) struct Server {
    child: Child,
    _folder: TempDir,
    pub(crate) settings: Redis,
}

impl Server {
    pub(crate) async fn start(tls: Option<&Authority>, policy: &str) -> Self {
        Self::start_at(free_port(), tls, policy).await
    }

    /// At a port: to come back where it was.
    pub(crate) async fn start_at(port: u16, tls: Option<&Authority>, policy: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            "save \"\"".to_owned(),
            "databases 16".to_owned(),
            format!("dir {}", folder.path().display()),
            format!("requirepass \"{AUTH}\""),
            "maxmemory 100mb".to_owned(),
            format!("maxmemory-policy {policy}"),
        ];
        for command in ["CONFIG", "SAVE", "SHUTDOWN", "DEBUG"] {
            lines.push(format!("rename-command {command} \"\""));
        }
        match tls {
            None => lines.push(format!("port {port}")),
            Some(authority) => {
                let file = |name: &str, content: &str| {
                    let path = folder.path().join(name);
                    fs::write(&path, content).expect("writes");
                    path.display().to_string()
                };
                lines.push("port 0".to_owned());
                lines.push(format!("tls-port {port}"));
                lines.push("tls-auth-clients no".to_owned());
                lines.push(format!("tls-cert-file {}", file("crt", &authority.certificate)));
                lines.push(format!("tls-key-file {}", file("key", &authority.key)));
                lines.push(format!("tls-ca-cert-file {}", file("ca", &authority.ca)));
            }
        }
        let configuration = folder.path().join("redis.conf");
        fs::write(&configuration, lines.join("\n")).expect("writes");
        let child = Command::new("redis-server")
            .arg(configuration)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("package redis is installed");
        wait_for("Redis", async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
        let tls = if tls.is_some() { RedisTls::Verify } else { RedisTls::Disable };
        let settings = Redis { host: "127.0.0.1".to_owned(), port, tls };
        Self { child, _folder: folder, settings }
    }

    async fn lines(
        &self,
        tls: RedisTls,
        password: Option<&str>,
        bundle: Option<&str>,
    ) -> Vec<CheckLine> {
        dify_common::gcp::install_tls_provider();
        let settings = Redis { tls, ..self.settings.clone() };
        let password = password.map(Secret::from);
        let facts = look(&settings, password.as_ref(), bundle, true).await;
        let lines = judge(&settings, &facts);
        assert!(!format!("{lines:?} {facts:?}").contains(AUTH), "a password in {lines:?}");
        lines
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unwell(lines: &[CheckLine]) -> Vec<(&str, Verdict)> {
    lines
        .iter()
        .filter(|line| line.verdict != Verdict::Ok)
        .map(|line| (line.name, line.verdict))
        .collect()
}

fn text(lines: &[CheckLine], name: &str) -> String {
    let line =
        lines.iter().find(|line| line.name == name).unwrap_or_else(|| panic!("{name}: {lines:?}"));
    format!("{} | {}", line.found, line.advice.as_deref().unwrap_or("-"))
}

#[tokio::test]
async fn a_server_like_memorystore_is_well() {
    let authority = Authority::new(&["127.0.0.1"]);
    let server = Server::start(Some(&authority), "noeviction").await;
    let lines = server.lines(RedisTls::Verify, Some(AUTH), Some(&authority.ca)).await;
    assert_eq!(unwell(&lines), [], "{lines:?}");
    assert!(text(&lines, "memory").contains("of 100 MiB"), "{lines:?}");
    assert_eq!(text(&lines, "policy"), "noeviction | -");
    // Not checked although it could be: said, not refused.
    let lines = server.lines(RedisTls::NoVerify, Some(AUTH), Some(&authority.ca)).await;
    assert_eq!(unwell(&lines), [("tls", Verdict::Warn)], "{lines:?}");
}

#[tokio::test]
async fn a_certificate_without_the_address_is_refused_with_the_way_out() {
    let authority = Authority::new(&["redis.internal"]);
    let server = Server::start(Some(&authority), "noeviction").await;
    let lines = server.lines(RedisTls::Verify, Some(AUTH), Some(&authority.ca)).await;
    assert_eq!(unwell(&lines), [("tls", Verdict::Fail)]);
    assert_eq!(lines.len(), 2, "nothing is asked after it: {lines:?}");
    let said = text(&lines, "tls");
    assert!(said.contains("does not carry 127.0.0.1") && said.contains("redis.internal"), "{said}");
    assert!(said.contains("tls: no-verify"), "{said}");
    let lines = server.lines(RedisTls::NoVerify, Some(AUTH), None).await;
    assert_eq!(unwell(&lines), [], "{lines:?}");
}

#[tokio::test]
async fn a_wrong_ca_and_a_wrong_auth_string_are_told_apart() {
    let (authority, wrong) = (Authority::new(&["127.0.0.1"]), Authority::new(&["127.0.0.1"]));
    let server = Server::start(Some(&authority), "noeviction").await;
    let lines = server.lines(RedisTls::Verify, Some(AUTH), Some(&wrong.ca)).await;
    assert!(text(&lines, "tls").contains("unknown authority"), "{lines:?}");
    for password in [Some("wrong"), None] {
        let lines = server.lines(RedisTls::Verify, password, Some(&authority.ca)).await;
        assert_eq!(unwell(&lines), [("login", Verdict::Fail)], "{lines:?}");
        assert!(text(&lines, "login").contains("AUTH string"), "{lines:?}");
    }
    // Plain text to a TLS port.
    let lines = server.lines(RedisTls::Disable, Some(AUTH), None).await;
    assert!(unwell(&lines).contains(&("login", Verdict::Fail)), "{lines:?}");
}

#[tokio::test]
async fn policies_that_lose_tasks_are_refused() {
    for (policy, verdict) in [("allkeys-lru", Verdict::Fail), ("volatile-lru", Verdict::Warn)] {
        let server = Server::start(None, policy).await;
        let lines = server.lines(RedisTls::Disable, Some(AUTH), None).await;
        assert_eq!(unwell(&lines), [("tls", Verdict::Warn), ("policy", verdict)], "{lines:?}");
    }
    // TLS to a plain port.
    let authority = Authority::new(&["127.0.0.1"]);
    let server = Server::start(None, "noeviction").await;
    let lines = server.lines(RedisTls::Verify, Some(AUTH), Some(&authority.ca)).await;
    assert_eq!(unwell(&lines), [("tls", Verdict::Fail)]);
    assert!(text(&lines, "tls").contains("6378"), "{lines:?}");
}
