//! What `check` says of a fleet that would break later, and how it ends.

use serde_json::json;
use tests::Outcome;
use tests::fleet::{Fleet, Options};
use tests::node::Node;
use tests::stores::{CertificateNames, RedisOptions};
use tests::tmpfs::Tmpfs;

/// What `check` prints, which must end with `code`.
async fn check(node: &Node, code: i32) -> Outcome<String> {
    let (ended, printed) = node.run_verb(&["check"]).await?;
    assert_eq!(ended.code(), Some(code), "{printed}");
    Ok(printed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_would_break_later_is_refused_with_the_reason() -> Outcome {
    let redis = RedisOptions {
        policy: "allkeys-lru",
        names: CertificateNames::OtherHost,
        ..RedisOptions::default()
    };
    let fleet = Fleet::start(Options { redis, ..Options::default() }).await?;
    let node = fleet.node().await?;
    let mut document = node.document(&fleet);

    // Celery's queues are keys Redis may evict under such a policy.
    let printed = check(&node, 69).await?;
    assert!(printed.contains("allkeys-lru") && printed.contains("noeviction"), "{printed}");

    // Dify's Redis clients check names whenever they check the chain.
    document["redis"]["tls"] = json!("verify");
    node.tell(&document)?;
    let printed = check(&node, 69).await?;
    assert!(printed.contains("redis.invalid") && printed.contains("no-verify"), "{printed}");

    // More connections than the servers have, with the sum.
    document["capacity"]["max_vms"] = json!(40);
    node.tell(&document)?;
    let printed = check(&node, 64).await?;
    assert!(printed.contains("x 40 VMs + migration") && printed.contains("600"), "{printed}");
    fleet.close(vec![node], &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_is_refused() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let node = fleet.node().await?;
    let disk = Tmpfs::mount(&node.state(), 8).await?;
    let printed = check(&node, 73).await?;
    assert!(printed.contains("enlarge the disk"), "{printed}");
    disk.read_only(true).await?;
    let printed = check(&node, 73).await?;
    assert!(printed.contains("remount"), "{printed}");
    fleet.close(vec![node], &[]).await
}
