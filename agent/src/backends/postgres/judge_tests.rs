use std::time::Duration;

use super::*;
use crate::backends::Verdict;
use crate::backends::reach::ReachError;
use crate::config::settings::Postgres;

fn server(tls: PostgresTls) -> Postgres {
    Postgres {
        host: "10.0.0.3".to_owned(),
        port: 5432,
        database: "dify".to_owned(),
        user: "app".to_owned(),
        tls,
    }
}

fn told() -> Server {
    Server {
        version: 150_018,
        encrypted: true,
        read_only: false,
        may_create_schema: true,
        may_create_table: true,
        extension: Extension::Present("1.1".to_owned()),
        plugin: Some(PluginDatabase::Present),
        connections: Connections { max: 100, reserved: 3, ours: 10, others: 7 },
        skew: 0.01,
        latency: Duration::from_millis(1),
    }
}

fn judged(group: Group, extension: &'static str, told: Server, need: u32) -> Vec<CheckLine> {
    let server = server(PostgresTls::VerifyCa);
    let question = Question {
        group,
        server: &server,
        password: None,
        certificates: None,
        extension,
        plugin_database: Some("dify_plugin"),
    };
    let facts = Facts {
        reach: Ok(Duration::from_millis(1)),
        tls: Some(Ok(Certificate::Good)),
        server: Some(Ok(told)),
    };
    judge(&question, &facts, &Need { connections: need, arithmetic: "(30) x 3 VMs".to_owned() })
}

#[test]
fn one_wrong_thing_is_one_line() {
    let main = |told, need| judged(Group::Database, "uuid-ossp", told, need);
    let cases = [
        ("all well", main(told(), 90), None),
        (
            "too old",
            main(Server { version: 120_020, ..told() }, 90),
            Some(("version", Verdict::Fail)),
        ),
        (
            "a replica",
            main(Server { read_only: true, ..told() }, 90),
            Some(("writable", Verdict::Fail)),
        ),
        (
            "no schema",
            main(Server { may_create_schema: false, ..told() }, 90),
            Some(("rights", Verdict::Fail)),
        ),
        (
            "no tables",
            main(Server { may_create_table: false, ..told() }, 90),
            Some(("rights", Verdict::Fail)),
        ),
        (
            "no daemon database",
            main(Server { plugin: Some(PluginDatabase::NotOurs), ..told() }, 90),
            Some(("plugin database", Verdict::Fail)),
        ),
        ("97 fit, 7 are taken", main(told(), 91), Some(("connections", Verdict::Warn))),
        ("98 never fit", main(told(), 98), Some(("connections", Verdict::Fail))),
        ("a slow clock", main(Server { skew: -3.0, ..told() }, 90), Some(("clock", Verdict::Warn))),
        (
            "a wrong clock",
            main(Server { skew: 3600.0, ..told() }, 90),
            Some(("clock", Verdict::Fail)),
        ),
        (
            "pgvector without HNSW",
            judged(
                Group::Vector,
                "vector",
                Server { extension: Extension::Present("0.4.4".to_owned()), ..told() },
                90,
            ),
            Some(("extension", Verdict::Fail)),
        ),
        (
            "schema dify_fleet is of no concern on the vector server",
            judged(
                Group::Vector,
                "vector",
                Server {
                    may_create_schema: false,
                    extension: Extension::Present("0.8.6".to_owned()),
                    ..told()
                },
                90,
            ),
            None,
        ),
    ];
    for (case, lines, expected) in cases {
        let unwell: Vec<_> = lines
            .iter()
            .filter(|line| line.verdict != Verdict::Ok)
            .map(|line| (line.name, line.verdict))
            .collect();
        assert_eq!(unwell, expected.into_iter().collect::<Vec<_>>(), "{case}: {lines:?}");
        assert!(lines.iter().all(|line| (line.verdict == Verdict::Ok) == line.advice.is_none()));
    }
}

#[test]
fn the_arithmetic_stands_in_the_line() {
    let lines = judged(Group::Database, "uuid-ossp", told(), 120);
    let line = lines.iter().find(|line| line.name == "connections").expect("is there");
    assert_eq!(
        line.found,
        "fleet at most 120 = (30) x 3 VMs; server 100 - 3 reserved = 97, in use: 10 by this role, 7 by others"
    );
    assert!(
        line.advice.as_deref().is_some_and(|text| text.contains("to 130 at least")),
        "{line:?}"
    );
}

#[test]
fn a_silent_server_is_told_from_a_wrong_name() {
    let server = server(PostgresTls::Disable);
    let question = Question {
        group: Group::Database,
        server: &server,
        password: None,
        certificates: None,
        extension: "uuid-ossp",
        plugin_database: None,
    };
    for (error, word) in [
        (ReachError::Silent(Duration::from_secs(5)), "firewall"),
        (ReachError::Name(std::io::Error::other("no such host")), "DNS"),
    ] {
        let facts = Facts { reach: Err(error), tls: None, server: None };
        let lines = judge(&question, &facts, &Need { connections: 1, arithmetic: String::new() });
        assert!(lines[0].advice.as_deref().is_some_and(|text| text.contains(word)), "{lines:?}");
    }
}
