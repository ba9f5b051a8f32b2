use std::os::unix::fs::PermissionsExt;

use super::*;

fn spec() -> ContainerSpec {
    ContainerSpec {
        service: "api".into(),
        name: "dify-n-api".into(),
        image: "a/b:c".into(),
        entrypoint: None,
        command: None,
        hostname: None,
        user: None,
        env: BTreeMap::from([
            ("PLAIN".into(), EnvValue::Plain("x".into())),
            ("SECRET".into(), EnvValue::Secret(Secret::from("hunter2"))),
        ]),
        files: vec![FileMount { path: "/f".into(), content: "c".into(), mode: 0o444 }],
        volumes: vec![VolumeMount { volume: "v".into(), path: "/v".into() }],
        networks: vec![Attachment {
            network: "n".into(),
            address: Ipv4Addr::new(10, 0, 0, 2),
            aliases: vec!["api".into()],
        }],
        limits: Limits { memory: Some(1), cpu_shares: None, pids: None },
        cap_drop: vec!["ALL".into()],
        cap_add: vec![],
        no_new_privileges: true,
        stop_signal: None,
        stop_timeout: Duration::from_secs(10),
        probe: Probe::Tcp { port: 5001 },
        after: vec![],
        serving: true,
        stop_order: 1,
    }
}

#[test]
fn every_change_of_a_field_changes_the_hash() {
    let hasher = SpecHasher { key: [7; KEY_BYTES] };
    let changes: Vec<fn(&mut ContainerSpec)> = vec![
        |s| s.service = "web".into(),
        |s| s.name = "x".into(),
        |s| s.image = "a/b:d".into(),
        |s| s.entrypoint = Some(vec![]),
        |s| s.entrypoint = Some(vec!["ab".into()]),
        |s| s.entrypoint = Some(vec!["a".into(), "b".into()]),
        |s| s.command = Some(vec!["ab".into()]),
        |s| s.hostname = Some("worker".into()),
        |s| s.user = Some("1000".into()),
        |s| drop(s.env.insert("PLAIN".into(), EnvValue::Plain("y".into()))),
        |s| {
            drop(s.env.insert("SECRET".into(), EnvValue::Secret(Secret::from("hunter3"))));
        },
        |s| drop(s.env.insert("NEW".into(), EnvValue::Plain(String::new()))),
        |s| drop(s.env.remove("PLAIN")),
        |s| s.files[0].path = "/g".into(),
        |s| s.files[0].content = "d".into(),
        |s| s.files[0].mode = 0o400,
        |s| s.files.clear(),
        |s| s.volumes[0].volume = "w".into(),
        |s| s.volumes[0].path = "/w".into(),
        |s| s.networks[0].network = "m".into(),
        |s| s.networks[0].address = Ipv4Addr::new(10, 0, 0, 3),
        |s| s.networks[0].aliases.push("b".into()),
        |s| s.limits.memory = None,
        |s| s.limits.cpu_shares = Some(1),
        |s| s.limits.pids = Some(1),
        |s| s.cap_drop = vec!["NET_RAW".into()],
        |s| s.cap_add = vec!["NET_RAW".into()],
        |s| s.no_new_privileges = false,
        |s| s.stop_signal = Some("SIGINT".into()),
        |s| s.stop_timeout = Duration::from_millis(10_001),
        |s| s.probe = Probe::Tcp { port: 5002 },
        |s| s.probe = Probe::Running { stable_for: Duration::from_secs(5001) },
        |s| s.probe = Probe::Http { port: 5001, path: "/".into(), deadline: Duration::ZERO },
        |s| s.probe = Probe::Exec { command: vec![], deadline: Duration::ZERO },
        |s| s.after = vec!["api".into()],
        |s| s.serving = false,
        |s| s.stop_order = 2,
    ];
    let mut seen = vec![
        hasher.container(&spec(), LogDriver::JsonFile),
        hasher.container(&spec(), LogDriver::Journald),
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut changed = spec();
        change(&mut changed);
        let hash = hasher.container(&changed, LogDriver::JsonFile);
        assert!(!seen.contains(&hash), "change {index} is not seen");
        seen.push(hash);
    }
    assert_eq!(
        hasher.container(&spec(), LogDriver::JsonFile),
        seen[0],
        "the same spec hashes the same"
    );
}

#[test]
fn networks_have_hashes_too() {
    let hasher = SpecHasher { key: [7; KEY_BYTES] };
    let network = NetworkSpec {
        name: "n".into(),
        subnet: Ipv4Addr::new(10, 0, 0, 0),
        prefix: 26,
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        internal: false,
        options: BTreeMap::new(),
    };
    let mut seen = vec![hasher.network(&network)];
    let changes: Vec<fn(&mut NetworkSpec)> = vec![
        |n| n.name = "m".into(),
        |n| n.subnet = Ipv4Addr::new(10, 0, 1, 0),
        |n| n.prefix = 27,
        |n| n.gateway = Ipv4Addr::new(10, 0, 0, 2),
        |n| n.internal = true,
        |n| drop(n.options.insert("a".into(), "b".into())),
    ];
    for change in changes {
        let mut changed = network.clone();
        change(&mut changed);
        let hash = hasher.network(&changed);
        assert!(!seen.contains(&hash));
        seen.push(hash);
    }
}

#[test]
fn the_key_is_made_once_private_and_decides_the_hash() {
    let state = tempfile::tempdir().expect("temporary directory");
    let first = SpecHasher::open(state.path()).expect("made");
    let second = SpecHasher::open(state.path()).expect("read");
    let hash = first.container(&spec(), LogDriver::JsonFile);
    assert_eq!(hash, second.container(&spec(), LogDriver::JsonFile));
    let path = state.path().join(KEY_FILE);
    let mode = std::fs::metadata(&path).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(state.path()).expect("readable").count(), 1, "no draft is left");

    let other = tempfile::tempdir().expect("temporary directory");
    let other = SpecHasher::open(other.path()).expect("made");
    assert_ne!(
        hash,
        other.container(&spec(), LogDriver::JsonFile),
        "without the key nothing can be guessed"
    );

    std::fs::write(&path, b"short").expect("writable");
    assert!(SpecHasher::open(state.path()).is_err(), "a broken key is not silently replaced");
    assert_eq!(format!("{first:?}"), "SpecHasher([REDACTED])");
}

#[test]
fn two_that_start_at_once_agree_on_one_key() {
    let state = tempfile::tempdir().expect("temporary directory");
    let hashes: Vec<SpecHash> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    SpecHasher::open(state.path())
                        .expect("opens")
                        .container(&spec(), LogDriver::JsonFile)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]));
}
