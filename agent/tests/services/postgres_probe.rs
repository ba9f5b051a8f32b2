//! Preflight of PostgreSQL.

use dify_agent::backends::postgres::{Need, Question, judge, look};
use dify_agent::backends::{CheckLine, Group, Verdict};
use dify_agent::config::settings::PostgresTls;
use dify_common::secret::Secret;
use sqlx::ConnectOptions as _;

use crate::certificates::Authority;
use crate::postgres::{PASSWORD, Server, run};

fn need(connections: u32) -> Need {
    Need { connections, arithmetic: "(api 2 x 5) x 2 VMs".to_owned() }
}

/// Lines by name, without those that are well.
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

/// One preflight of `server`.
struct Ask<'a> {
    server: &'a Server,
    tls: PostgresTls,
    password: &'a str,
    bundle: Option<&'a str>,
    extension: &'static str,
    database: &'a str,
    need: u32,
}

impl<'a> Ask<'a> {
    fn of(server: &'a Server) -> Self {
        Self {
            server,
            tls: PostgresTls::Disable,
            password: PASSWORD,
            bundle: None,
            extension: "uuid-ossp",
            database: "dify",
            need: 20,
        }
    }

    async fn lines(self) -> Vec<CheckLine> {
        dify_common::gcp::install_tls_provider();
        let mut settings = self.server.settings(self.tls);
        self.database.clone_into(&mut settings.database);
        let password = Secret::from(self.password);
        let question = Question {
            group: Group::Database,
            server: &settings,
            password: Some(&password),
            certificates: self.bundle,
            extension: self.extension,
            plugin_database: Some("dify_plugin"),
        };
        let facts = look(&question).await;
        let lines = judge(&question, &facts, &need(self.need));
        assert!(!format!("{lines:?} {facts:?}").contains(PASSWORD), "a password in {lines:?}");
        lines
    }
}

#[tokio::test]
async fn a_good_server_is_well_and_what_is_allowed_is_created() {
    let authority = Authority::new(&["localhost"]);
    let server = Server::start_with(Some(&authority), &[]).await;
    let mut administrator = server.administrator().connect().await.expect("connects");
    run(&mut administrator, "alter role dify createdb").await;
    let other = Authority::new(&["x"]);
    // A bundle holds the CAs of several servers.
    let bundle = format!("{}{}", other.ca, authority.ca);
    let ask = || Ask { tls: PostgresTls::VerifyCa, bundle: Some(&bundle), ..Ask::of(&server) };
    let lines = ask().lines().await;
    assert_eq!(unwell(&lines), [], "{lines:?}");
    assert!(text(&lines, "extension").contains("uuid-ossp created"));
    assert!(text(&lines, "plugin database").contains("dify_plugin created"));
    let again = ask().lines().await;
    assert_eq!(unwell(&again), [], "{again:?}");
    assert!(text(&again, "extension").starts_with("uuid-ossp 1"));
    assert!(text(&again, "plugin database").starts_with("dify_plugin |"));
}

#[tokio::test]
async fn a_wrong_ca_is_named_and_gets_no_password() {
    let authority = Authority::new(&[]);
    let server = Server::start_with(Some(&authority), &[]).await;
    let wrong = Authority::new(&[]);
    let lines = Ask { tls: PostgresTls::VerifyCa, bundle: Some(&wrong.ca), ..Ask::of(&server) }
        .lines()
        .await;
    assert_eq!(unwell(&lines), [("tls", Verdict::Fail)]);
    assert_eq!(lines.len(), 2, "nothing is asked after it: {lines:?}");
    let said = text(&lines, "tls");
    assert!(said.contains("unknown authority") && said.contains("`certificates`?"), "{said}");

    // A certificate without any name, as Cloud SQL issues them, is fine for verify-ca.
    let lines = Ask { tls: PostgresTls::VerifyCa, bundle: Some(&authority.ca), ..Ask::of(&server) }
        .lines()
        .await;
    assert!(text(&lines, "tls").contains("name not checked"), "{lines:?}");
    assert!(text(&lines, "login").starts_with("dify on dify"), "{lines:?}");

    let lines = Ask { tls: PostgresTls::Require, ..Ask::of(&server) }.lines().await;
    assert!(unwell(&lines).contains(&("tls", Verdict::Warn)), "{lines:?}");
}

#[tokio::test]
async fn what_the_role_may_not_do_is_said_with_the_statement_that_helps() {
    let server = Server::start_with(None, &["max_connections=25"]).await;
    let mut administrator = server.administrator().connect().await.expect("connects");
    run(&mut administrator, "create database other").await;
    let lines = Ask { database: "other", need: 23, ..Ask::of(&server) }.lines().await;
    assert_eq!(
        unwell(&lines),
        [
            ("tls", Verdict::Warn),
            ("rights", Verdict::Fail),
            ("extension", Verdict::Fail),
            ("plugin database", Verdict::Fail),
            ("connections", Verdict::Fail),
        ],
        "{lines:?}"
    );
    assert!(text(&lines, "rights").contains("GRANT CREATE ON DATABASE other TO dify"));
    assert!(text(&lines, "extension").contains("CREATE EXTENSION \"uuid-ossp\""));
    assert!(text(&lines, "plugin database").contains("CREATE DATABASE dify_plugin OWNER dify"));
    let said = text(&lines, "connections");
    assert!(
        said.contains("at most 23 = (api 2 x 5) x 2 VMs; server 25 - 3 reserved = 22"),
        "{said}"
    );

    let lines = Ask { extension: "vector", need: 22, ..Ask::of(&server) }.lines().await;
    assert!(text(&lines, "extension").contains("vector is not installed on the server"));
    // The administrator's own connection is one of the others.
    assert!(unwell(&lines).contains(&("connections", Verdict::Warn)), "{lines:?}");
}

#[tokio::test]
async fn login_failures_are_told_apart() {
    let server = Server::start().await;
    let lines = Ask { password: "wrong", ..Ask::of(&server) }.lines().await;
    assert!(text(&lines, "login").contains("wrong password for role dify"), "{lines:?}");
    let lines = Ask { database: "absent", ..Ask::of(&server) }.lines().await;
    assert!(text(&lines, "login").contains("create database absent"), "{lines:?}");
    let lines = Ask { tls: PostgresTls::Require, ..Ask::of(&server) }.lines().await;
    assert!(text(&lines, "tls").contains("offers no TLS"), "{lines:?}");
    drop(server);
}

#[tokio::test]
async fn a_server_that_is_away_is_one_line() {
    let server = Server::start().await;
    let settings = server.settings(PostgresTls::Disable);
    drop(server);
    let question = Question {
        group: Group::Vector,
        server: &settings,
        password: None,
        certificates: None,
        extension: "vector",
        plugin_database: None,
    };
    let lines = judge(&question, &look(&question).await, &need(1));
    assert_eq!(unwell(&lines), [("reach", Verdict::Fail)]);
    assert_eq!(lines.len(), 1);
}
