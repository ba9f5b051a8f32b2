use super::*;

fn release(text: &str) -> ReleaseId {
    text.parse().expect("valid")
}

fn subject() -> Subject {
    Subject {
        node: "me".parse().expect("valid"),
        release: release("1.15.0"),
        digest: format!("sha256:{}", "a".repeat(64)).parse().expect("valid"),
        post_migration: Vec::new(),
        beside: vec![release("1.16.1")],
    }
}

/// An empty database that nobody leads: our head is `h15`.
fn empty() -> Observed {
    Observed {
        revision: Revision::Absent,
        head: None,
        record: None,
        known: Vec::new(),
        lock: Lock::Free,
    }
}

fn record(outcome: Outcome) -> Record {
    Record {
        outcome,
        node: "other".to_owned(),
        started_at: "2026-11-22T00:00:00Z".to_owned(),
        before: Some("h14".to_owned()),
        head: "h15".to_owned(),
        detail: Some("why".to_owned()),
    }
}

fn at(revision: &str) -> Revision {
    Revision::At(revision.to_owned())
}

fn head() -> String {
    "h15".to_owned()
}

fn known(releases: &[&str]) -> Vec<Known> {
    let known = |text: &&str| Known { release: release(text), node: "other".to_owned() };
    releases.iter().map(known).collect()
}

/// The step in one word.
fn word(step: Step) -> &'static str {
    match step {
        Step::Pass(Passed::Current { adopted: false, .. }) => "pass",
        Step::Pass(Passed::Current { adopted: true, .. }) => "pass adopted",
        Step::Pass(Passed::Beside { .. }) => "pass beside",
        Step::Wait(_) => "wait",
        Step::Refuse(Refusal::Newer { .. }) => "newer",
        Step::Refuse(Refusal::Unknown { .. }) => "unknown",
        Step::Refuse(Refusal::Branched { .. }) => "branched",
        Step::Refuse(Refusal::Failed { .. }) => "failed",
        Step::TakeLock => "lock",
        Step::LearnHead => "learn",
        Step::Migrate { .. } => "migrate",
        Step::Adopt { .. } => "adopt",
        Step::Finish { .. } => "finish",
    }
}

#[test]
fn every_case_has_one_step() {
    let held = || Lock::Held(Holder { node: Some("other".to_owned()), since: None });
    let (mine, e) = (Lock::Mine, empty);
    let cases = [
        // Nothing on record: the lock decides who looks closer.
        ("an empty database", e(), "lock"),
        ("another node leads", Observed { lock: held(), ..e() }, "wait"),
        ("we lead and know nothing", Observed { lock: mine.clone(), ..e() }, "learn"),
        (
            "we lead an empty database",
            Observed { lock: mine.clone(), head: Some(head()), ..e() },
            "migrate",
        ),
        (
            "an existing Dify is taken over",
            Observed { lock: mine.clone(), head: Some(head()), revision: at("x"), ..e() },
            "migrate",
        ),
        (
            "a schema that is right already",
            Observed { lock: mine.clone(), head: Some(head()), revision: at("h15"), ..e() },
            "adopt",
        ),
        (
            "the same, made by another build of our release",
            Observed {
                lock: mine.clone(),
                head: Some(head()),
                revision: at("h15"),
                known: known(&["1.15.0"]),
                ..e()
            },
            "finish",
        ),
        (
            "branches",
            Observed { revision: Revision::Several(vec!["a".into(), "b".into()]), ..e() },
            "branched",
        ),
        // An upgrade: the revision is an older release's.
        (
            "behind, and we lead",
            Observed {
                lock: mine.clone(),
                head: Some(head()),
                revision: at("h14"),
                known: known(&["1.14.2"]),
                ..e()
            },
            "migrate",
        ),
        (
            "a release we cannot compare: Alembic decides",
            Observed {
                lock: mine.clone(),
                head: Some(head()),
                revision: at("x"),
                known: known(&["nightly"]),
                ..e()
            },
            "migrate",
        ),
        // Ahead.
        (
            "newer, and our head is known: no lock needed",
            Observed { head: Some(head()), revision: at("h17"), known: known(&["1.17.1"]), ..e() },
            "newer",
        ),
        (
            "newer, but the manifest lets us run beside it",
            Observed { head: Some(head()), revision: at("h16"), known: known(&["1.16.1"]), ..e() },
            "pass beside",
        ),
        (
            "a revision of newer and of older releases is no newer schema",
            Observed {
                head: Some(head()),
                revision: at("h"),
                known: known(&["1.17.1", "1.14.2"]),
                ..e()
            },
            "lock",
        ),
        (
            "perhaps newer, our head is not known: it might be the same",
            Observed { revision: at("h17"), known: known(&["1.17.1"]), ..e() },
            "lock",
        ),
        // On record.
        (
            "done",
            Observed { record: Some(record(Outcome::Succeeded)), revision: at("h15"), ..e() },
            "pass",
        ),
        (
            "done while another leads",
            Observed {
                record: Some(record(Outcome::Succeeded)),
                revision: at("h15"),
                lock: held(),
                ..e()
            },
            "pass",
        ),
        (
            "adopted",
            Observed { record: Some(record(Outcome::Adopted)), revision: at("h15"), ..e() },
            "pass adopted",
        ),
        (
            "done, then lost",
            Observed { record: Some(record(Outcome::Succeeded)), ..e() },
            "unknown",
        ),
        (
            "done, then moved by nobody we know",
            Observed { record: Some(record(Outcome::Succeeded)), revision: at("x"), ..e() },
            "unknown",
        ),
        (
            "done, then a newer release came",
            Observed {
                record: Some(record(Outcome::Succeeded)),
                revision: at("h17"),
                known: known(&["1.17.1"]),
                ..e()
            },
            "newer",
        ),
        (
            "done, then taken back by hand",
            Observed {
                record: Some(record(Outcome::Succeeded)),
                revision: at("h14"),
                known: known(&["1.14.2"]),
                ..e()
            },
            "lock",
        ),
        (
            "failed",
            Observed { record: Some(record(Outcome::Failed)), revision: at("h14"), ..e() },
            "failed",
        ),
        (
            "failed, and the lock is ours",
            Observed {
                record: Some(record(Outcome::Failed)),
                revision: at("h14"),
                lock: mine.clone(),
                ..e()
            },
            "failed",
        ),
        (
            "refused, nothing changed since",
            Observed { record: Some(record(Outcome::Refused)), revision: at("h14"), ..e() },
            "unknown",
        ),
        (
            "refused, the schema has changed since",
            Observed { record: Some(record(Outcome::Refused)), revision: at("y"), ..e() },
            "lock",
        ),
        (
            "cleared",
            Observed { record: Some(record(Outcome::Cleared)), revision: at("h14"), ..e() },
            "lock",
        ),
        // Begun and not ended.
        (
            "running elsewhere",
            Observed {
                record: Some(record(Outcome::Running)),
                revision: at("h14"),
                lock: held(),
                ..e()
            },
            "wait",
        ),
        (
            "abandoned: the lock is free",
            Observed { record: Some(record(Outcome::Running)), revision: at("h14"), ..e() },
            "lock",
        ),
        (
            "abandoned before the end, and we lead",
            Observed {
                record: Some(record(Outcome::Running)),
                revision: at("h14"),
                head: Some(head()),
                lock: mine.clone(),
                ..e()
            },
            "migrate",
        ),
        (
            "abandoned after the migration: its commands are left",
            Observed {
                record: Some(record(Outcome::Running)),
                revision: at("h15"),
                head: Some(head()),
                lock: mine,
                ..e()
            },
            "finish",
        ),
    ];
    for (case, observed, expected) in cases {
        assert_eq!(word(plan(&subject(), &observed)), expected, "{case}");
    }
}

#[test]
fn a_migration_is_judged_by_what_it_left() {
    let finished = |exit_code, line: &str| Finished { exit_code, lines: vec![line.to_owned()] };
    let head = "h15";
    let judge = |exit_code, line, after| judge(&finished(exit_code, line), &after, head);
    assert_eq!(judge(0, "", at("h15")), Verdict::Done);
    // Another process finished it meanwhile.
    assert_eq!(judge(0, "Database migration skipped", at("h15")), Verdict::Done);
    assert_eq!(judge(0, "Database migration skipped", at("h14")), Verdict::Skipped);
    assert_eq!(judge(1, "Can't locate revision identified by 'x'", at("x")), Verdict::Unlocatable);
    for (exit_code, after) in
        [(0, at("h14")), (0, Revision::Absent), (1, at("h14")), (137, at("h15"))]
    {
        assert!(matches!(judge(exit_code, "", after), Verdict::Failed(_)), "{exit_code}");
    }
}

#[test]
fn releases_are_ordered_by_their_numbers() {
    for (a, b, order) in [
        ("1.9.2", "1.14.2", Some(Ordering::Less)),
        ("1.15.0", "1.14.2", Some(Ordering::Greater)),
        ("1.15.0-fix1", "1.15.0", Some(Ordering::Equal)),
        ("1.15", "1.15.0", Some(Ordering::Less)),
        ("nightly", "1.15.0", None),
    ] {
        assert_eq!(compare(&release(a), &release(b)), order, "{a} {b}");
    }
}

#[test]
fn outcomes_survive_the_ledger_and_one_of_tomorrow_is_not_success() {
    for outcome in [
        Outcome::Running,
        Outcome::Succeeded,
        Outcome::Adopted,
        Outcome::Failed,
        Outcome::Refused,
        Outcome::Cleared,
    ] {
        assert_eq!(Outcome::parse(outcome.as_str()), outcome);
    }
    assert_eq!(Outcome::parse("postponed"), Outcome::Running);
}
