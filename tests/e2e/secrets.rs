//! Every secret is where it is needed and nowhere else. Each test of this
//! binary ends with the same search; this one also proves that it can find.

use tests::Outcome;
use tests::fleet::{Fleet, Options};

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_where_they_are_needed_and_nowhere_else() -> Outcome {
    let fleet = Fleet::start(Options::default()).await?;
    let mut node = fleet.node().await?;
    node.boot_to_serving().await?;
    for verb in [
        &["plan"][..],
        &["plan", "--json"],
        &["config"],
        &["config", "--json"],
        &["status", "--json"],
        &["check"],
    ] {
        let (_, printed) = node.run_verb(verb).await?;
        assert!(fleet.secrets.found_in(&printed).is_empty(), "{verb:?} prints a secret");
    }
    // Not vacuous: the search sees what the api was rightly given.
    let api = node.container("api").await?;
    let environment = fleet.engine.environment(&api.id).await?;
    assert_eq!(
        environment.get("SECRET_KEY").map(String::as_str),
        Some(fleet.secrets.get("secret_key"))
    );
    let held = format!("{:?}", fleet.engine.inspect(&api.id).await?);
    assert!(fleet.secrets.found_in(&held).contains(&"database_password"));
    for service in ["web", "ssrf_proxy"] {
        let container = node.container(service).await?;
        let text = format!("{:?}", fleet.engine.inspect(&container.id).await?);
        assert!(fleet.secrets.found_in(&text).is_empty(), "{service} holds a secret");
    }
    fleet.close(vec![node], &[]).await
}
