//! Who reaches whom, from outside and from user code.

use std::collections::BTreeMap;

use crate::dify::fixture::{
    RELEASES, all, everything, has_agent, plain, secrets, service, stack, value, wired,
};
use crate::engine::spec::FirewallRule;

#[test]
fn every_url_users_see_is_https_on_the_public_host() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        for service in ["api", "worker", "api_websocket"] {
            for key in [
                "CONSOLE_API_URL",
                "CONSOLE_WEB_URL",
                "SERVICE_API_URL",
                "APP_WEB_URL",
                "TRIGGER_URL",
                "FILES_URL",
            ] {
                let url = value(&stack, service, key);
                assert_eq!(url.as_deref(), Some("https://dify.example.com"), "{service}.{key}");
            }
            let template = value(&stack, service, "ENDPOINT_URL_TEMPLATE");
            assert_eq!(template.as_deref(), Some("https://dify.example.com/e/{hook_id}"));
            let inner = value(&stack, service, "INTERNAL_FILES_URL");
            assert_eq!(inner.as_deref(), Some("http://api:5001"));
        }
        for (key, expected) in [
            ("CONSOLE_API_URL", "https://dify.example.com"),
            ("APP_API_URL", "https://dify.example.com"),
            ("NEXT_PUBLIC_SOCKET_URL", "wss://dify.example.com"),
        ] {
            assert_eq!(value(&stack, "web", key).as_deref(), Some(expected));
        }
    }
}

#[test]
fn the_api_never_goes_out_unfiltered() {
    for release in RELEASES {
        let stack = stack(&plain(), release);
        for service in ["api", "worker"] {
            for key in ["SSRF_PROXY_HTTP_URL", "SSRF_PROXY_HTTPS_URL"] {
                assert_eq!(value(&stack, service, key).as_deref(), Some("http://ssrf_proxy:3128"));
            }
        }
        assert_eq!(
            value(&stack, "sandbox", "HTTPS_PROXY").as_deref(),
            Some("http://ssrf_proxy:3128")
        );
    }
}

#[test]
fn user_code_shares_a_network_with_its_proxy_alone() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        let on = |network: &str| -> Vec<&str> {
            all(&stack)
                .filter(|c| c.networks.iter().any(|leg| leg.network == network))
                .map(|c| c.service.as_str())
                .collect()
        };
        assert_eq!(on("dify-dify-x7f2-sandbox"), ["sandbox", "ssrf_proxy"]);
        assert_eq!(on("dify-dify-x7f2-code"), ["api", "ssrf_proxy", "worker", "migration", "job"]);
        let sandbox = service(&stack, "sandbox");
        assert_eq!(sandbox.networks.len(), 1);
        assert!(sandbox.cap_drop.contains(&"NET_RAW".to_owned()) && sandbox.no_new_privileges);
        for network in &stack.networks {
            assert_eq!(network.internal, !network.name.ends_with("-main"), "{}", network.name);
        }
        // api and worker say `sandbox` and reach the proxy's relay.
        assert_eq!(
            value(&stack, "worker", "CODE_EXECUTION_ENDPOINT").as_deref(),
            Some("http://sandbox:8194")
        );
        let relay = service(&stack, "ssrf_proxy")
            .networks
            .iter()
            .find(|leg| leg.network.ends_with("-code"));
        assert_eq!(relay.expect("is there").aliases, ["ssrf_proxy", "sandbox"]);
        let bridges: Vec<&str> = stack
            .firewall
            .iter()
            .map(|FirewallRule::CloseHost { bridge, .. }| bridge.as_str())
            .collect();
        assert!(bridges.contains(&"dify-0a5801-s"), "{bridges:?}");
        assert!(!bridges.contains(&"dify-0a5801-m"), "{bridges:?}");
    }
}

#[test]
fn the_proxy_denies_private_and_metadata_addresses_before_it_allows_anything() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        for name in ["ssrf_proxy", "agent_ssrf_proxy"] {
            let Some(proxy) = stack.containers.iter().find(|c| c.service == name) else {
                assert!(!has_agent(release));
                continue;
            };
            let conf = &proxy.files[0].content;
            let place = |line: &str| {
                conf.lines()
                    .position(|l| l.starts_with(line))
                    .unwrap_or_else(|| panic!("{line} in {conf}"))
            };
            for range in [
                "169.254.0.0/16",
                "10.0.0.0/8",
                "172.16.0.0/12",
                "192.168.0.0/16",
                "127.0.0.0/8",
                "100.64.0.0/10",
                "fc00::/7",
                "fe80::/10",
            ] {
                assert!(conf.contains(range), "{range}");
            }
            let open = conf.lines().position(|l| l == "http_access allow clients").expect("opens");
            assert!(place("http_access deny to_private") < open);
            assert!(place("http_access deny CONNECT !tunnel_ports") < open);
            assert!(place("acl tunnel_ports port 443") < open);
            assert_eq!(
                conf.lines().rfind(|l| l.starts_with("http_access")),
                Some("http_access deny all")
            );
        }
    }
}

#[test]
fn socket_io_has_an_upstream_only_with_collaboration() {
    for (settings, on) in [(plain(), false), (everything("1.14.2"), true)] {
        let stack = stack(&settings, "1.14.2");
        assert_eq!(stack.upstreams.contains_key("api_websocket"), on);
        assert_eq!(stack.routes.iter().any(|r| r.prefix == "/socket.io/"), on);
        assert_eq!(stack.refusals.iter().any(|r| r.prefix == "/socket.io/"), !on);
        for route in &stack.routes {
            assert!(stack.upstreams.contains_key(&route.upstream), "{route:?}");
        }
    }
}

#[test]
fn inner_api_is_refused_and_only_hooks_reach_the_daemon() {
    for release in RELEASES {
        let stack = stack(&everything(release), release);
        assert!(stack.refusals.iter().any(|r| r.prefix == "/inner/api" && r.status == 404));
        let daemon: Vec<_> =
            stack.routes.iter().filter(|r| r.upstream == "plugin_daemon").collect();
        assert!(daemon.len() == 1 && daemon[0].prefix == "/e/" && daemon[0].hook_url);
    }
}

#[test]
fn idle_connections_take_no_slot_of_the_api() {
    for release in RELEASES {
        for (name, upstream) in &stack(&everything(release), release).upstreams {
            assert_eq!(upstream.pooled, name == "web", "{name}");
        }
    }
}

#[test]
fn agent_services_are_refused_where_the_release_has_none() {
    let mut settings = plain();
    settings.features.agent = true;
    let error = wired(&settings, &secrets(), "1.15.0").expect_err("is refused").to_string();
    assert!(
        error.contains("features.agent: is on, but release 1.15.0 has no agent services"),
        "{error}"
    );
    let off = stack(&plain(), "1.17.1");
    assert!(off.containers.iter().all(|c| !c.service.contains("agent")));
    assert_eq!(value(&off, "api", "AGENT_BACKEND_BASE_URL"), None);
    assert_eq!(value(&off, "web", "NEXT_PUBLIC_ENABLE_AGENT_V2").as_deref(), Some("false"));
}

#[test]
fn private_places_are_opened_one_by_one_and_never_this_node_or_the_metadata_server() {
    let with = |key: &str, text: &str| {
        let mut settings = plain();
        let own = BTreeMap::from([(key.to_owned(), text.to_owned())]);
        settings.environment.insert("ssrf_proxy".into(), own);
        wired(&settings, &secrets(), "1.15.0")
    };
    let stack = with("SSRF_PROXY_ALLOW_PRIVATE_IPS", "10.9.0.0/16, 192.168.1.7").expect("is open");
    let conf = &service(&stack, "ssrf_proxy").files[0].content;
    let place =
        |line: &str| conf.lines().position(|l| l == line).unwrap_or_else(|| panic!("{line}"));
    let opened = place("http_access allow clients web_ports allowed_addresses");
    assert!(conf.contains("acl allowed_addresses dst 10.9.0.0/16 192.168.1.7"));
    assert!(
        place("http_access deny never") < opened && opened < place("http_access deny to_private")
    );
    assert!(place("acl never dst 10.88.1.0/24 127.0.0.0/8 169.254.0.0/16") < opened);
    for (key, bad) in [
        ("SSRF_PROXY_ALLOW_PRIVATE_IPS", "0.0.0.0/0"),
        ("SSRF_PROXY_ALLOW_PRIVATE_IPS", "all\nhttp_access"),
        ("SSRF_PROXY_ALLOW_PRIVATE_DOMAINS", "."),
        ("SSRF_PROXY_ALLOW_PRIVATE_DOMAINS", "a\"b"),
    ] {
        let error = with(key, bad).expect_err("is refused").to_string();
        assert!(error.contains(&format!("environment.ssrf_proxy.{key}: ")), "{error}");
    }
}
