//! The packet filter, in force between real containers.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::time::Duration;

use dify_agent::engine::docker::Ended;
use dify_agent::engine::firewall::{Firewall, Path, Port, Rule, Verdict};
use dify_agent::engine::observed::Subnet;
use futures_util::FutureExt;

use super::bed::{Bed, guest_image, on_engine, wait_for};
use super::guest::PORT;

fn filter() -> String {
    let output = Command::new("iptables").args(["-w", "-S"]).output().expect("iptables runs");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test]
async fn rules_are_in_force_between_containers_applied_twice_and_removed() {
    on_engine("firewall", 30, async |bed: Bed| {
        let one = |last| Some(Subnet { base: bed.address(last), prefix: 32 });
        let rule = |path, from, to, port, verdict| Rule { path, from, to, port, verdict };
        let rules = vec![
            rule(Path::Through, one(11), one(10), Some(Port::Tcp(PORT)), Verdict::Pass),
            rule(Path::Through, one(12), None, None, Verdict::Reject),
            rule(Path::ToHost, one(12), None, None, Verdict::Drop),
        ];
        let firewall = Firewall::new(bed.site.node(), rules);
        let chain = firewall.chain(Path::Through);
        let outcome = AssertUnwindSafe(check(&bed, &firewall)).catch_unwind().await;
        firewall.remove().await.expect("removed");
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        assert!(!filter().contains(&chain), "nothing is left");
        firewall.remove().await.expect("again is fine");
    })
    .await;
}

async fn check(bed: &Bed, firewall: &Firewall) {
    let image = guest_image(bed).await;
    bed.engine.ensure_network(&bed.network("main", 0), &bed.site).await.expect("network");
    let server = bed.container("sandbox", 10, "serve", &image);
    bed.engine.create(&server, &bed.site).await.expect("created");
    bed.engine.start(&server.name).await.expect("started");
    let address = SocketAddr::from((bed.address(10), PORT));
    wait_for("the server", async || tokio::net::TcpStream::connect(address).await.is_ok()).await;

    let reaches = async |last: u8| {
        let spec = bed.container("client", last, &format!("reach {address}"), &image);
        let finished = bed
            .engine
            .run_once(&spec, &bed.site, Duration::from_secs(20), |_| ())
            .await
            .expect("ran");
        assert!(matches!(finished.ended, Ended::Exited(0 | 1)), "{finished:?}");
        finished.succeeded()
    };
    assert!(reaches(12).await, "without rules it reaches");
    firewall.apply().await.expect("applied");
    let once = filter();
    firewall.apply().await.expect("applied again");
    assert_eq!(once, filter(), "twice is once");
    assert!(
        once.contains(&format!("-A DOCKER-USER -j {}", firewall.chain(Path::Through))),
        "{once}"
    );
    assert!(!reaches(12).await, "the rule keeps it out (bridge-nf-call-iptables must be 1)");
    assert!(reaches(11).await, "another is let through");
}
