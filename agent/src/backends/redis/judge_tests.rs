use std::time::Duration;

use super::*;
use crate::backends::Verdict;

fn told() -> Server {
    Server {
        version: "7.0.15".to_owned(),
        mode: "standalone".to_owned(),
        role: "master".to_owned(),
        policy: Some("noeviction".to_owned()),
        used: 10 << 20,
        max: 1 << 30,
        write: Ok(()),
        closed: Vec::new(),
        latency: Duration::from_millis(1),
    }
}

#[test]
fn one_wrong_thing_is_one_line() {
    let readonly = || Err("READONLY You can't write against a read only replica.".to_owned());
    let policy = |name: &str| Server { policy: Some(name.to_owned()), ..told() };
    let cases = [
        ("all well", told(), None),
        ("no limit", Server { max: 0, ..told() }, None),
        (
            "too old",
            Server { version: "5.0.14".to_owned(), ..told() },
            Some(("version", Verdict::Fail)),
        ),
        (
            "no version",
            Server { version: String::new(), ..told() },
            Some(("version", Verdict::Fail)),
        ),
        (
            "a cluster",
            Server { mode: "cluster".to_owned(), ..told() },
            Some(("mode", Verdict::Fail)),
        ),
        (
            "a replica",
            Server { role: "slave".to_owned(), write: readonly(), ..told() },
            Some(("write", Verdict::Fail)),
        ),
        (
            "one database",
            Server { closed: vec![(1, "out of range".to_owned())], ..told() },
            Some(("databases", Verdict::Fail)),
        ),
        ("Memorystore's default", policy("volatile-lru"), Some(("policy", Verdict::Warn))),
        ("evicts queues", policy("allkeys-lfu"), Some(("policy", Verdict::Fail))),
        ("no policy told", Server { policy: None, ..told() }, Some(("policy", Verdict::Warn))),
        ("filling", Server { used: 850 << 20, ..told() }, Some(("memory", Verdict::Warn))),
        ("full", Server { used: 1000 << 20, ..told() }, Some(("memory", Verdict::Fail))),
    ];
    let server = Redis { host: "10.0.0.4".to_owned(), port: 6378, tls: RedisTls::Verify };
    for (case, told, expected) in cases {
        let facts = Facts {
            reach: Ok(Duration::from_millis(1)),
            tls: Some(Ok(Certificate::Good)),
            server: Some(Ok(told)),
        };
        let lines = judge(&server, &facts);
        let unwell: Vec<_> = lines
            .iter()
            .filter(|line| line.verdict != Verdict::Ok)
            .map(|line| (line.name, line.verdict))
            .collect();
        assert_eq!(unwell, expected.into_iter().collect::<Vec<_>>(), "{case}: {lines:?}");
    }
}

#[test]
fn certificates_count_only_where_they_are_checked() {
    let bad = || Certificate::OtherName { presented: vec!["IpAddress(10.0.0.9)".to_owned()] };
    for (tls, certificate, verdict) in [
        (RedisTls::Verify, Certificate::Good, Verdict::Ok),
        (RedisTls::Verify, bad(), Verdict::Fail),
        (RedisTls::Verify, Certificate::UnknownAuthority, Verdict::Fail),
        (RedisTls::Verify, Certificate::NoBundle, Verdict::Fail),
        (RedisTls::Verify, Certificate::OutOfDate("expired".to_owned()), Verdict::Fail),
        (RedisTls::NoVerify, bad(), Verdict::Ok),
        (RedisTls::NoVerify, Certificate::Good, Verdict::Warn),
    ] {
        let server = Redis { host: "10.0.0.4".to_owned(), port: 6378, tls };
        let facts = Facts {
            reach: Ok(Duration::from_millis(1)),
            tls: Some(Ok(certificate.clone())),
            server: None,
        };
        assert_eq!(judge(&server, &facts)[1].verdict, verdict, "{tls:?} {certificate:?}");
    }
}
