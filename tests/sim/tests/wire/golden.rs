//! Whole answers, byte by byte. `UPDATE=1` writes them anew; the change is then reviewed as a diff.

use std::{fmt::Write as _, path::Path};

use serde_json::json;

use crate::{ACCOUNT, Bed, send};

#[tokio::test]
async fn answers_are_as_checked_in() {
    let bed = Bed::start().await;
    bed.vm.set_attribute("dify-release", "1.17.1");
    bed.sim.secrets().add_version("k", "v");
    bed.sim.storage().create_bucket("data");
    bed.sim.iam().deny(ACCOUNT, "secretmanager.secrets.list");
    let insert = bed
        .post("/upload/storage/v1/b/data/o?uploadType=media&name=a/b")
        .header("content-type", "text/plain")
        .body("hello");
    let cases = [
        ("metadata", bed.metadata("?recursive=true")),
        ("metadata-404", bed.metadata("instance/nothing")),
        ("metadata-token", bed.metadata("instance/service-accounts/default/token")),
        ("token-invalid", bed.client.post(bed.sim.urls().token).body("")),
        ("secret", bed.get("/v1/projects/dify-sim/secrets/k")),
        ("secret-version", bed.get("/v1/projects/dify-sim/secrets/k/versions/latest")),
        ("secret-access", bed.get("/v1/projects/dify-sim/secrets/k/versions/latest:access")),
        ("secret-403", bed.get("/v1/projects/dify-sim/secrets")),
        (
            "secret-401",
            bed.client.get(format!("{}/v1/projects/dify-sim/secrets", bed.sim.urls().googleapis)),
        ),
        ("storage-insert", insert),
        ("storage-list", bed.get("/storage/v1/b/data/o?prefix=a/")),
        ("storage-media", bed.get("/storage/v1/b/data/o/a%2Fb?alt=media")),
        ("storage-bucket", bed.get("/storage/v1/b/data")),
        ("storage-404", bed.get("/storage/v1/b/data/o/none")),
        (
            "storage-rewrite",
            bed.post("/storage/v1/b/data/o/a%2Fb/rewriteTo/b/data/o/c").json(&json!({})),
        ),
    ];
    let mut stale = Vec::new();
    for (name, request) in cases {
        let response = send(request).await;
        let mut shown = format!("{}\n", response.status());
        for (name, value) in response.headers() {
            // The server's own frame, not the service's answer.
            if !matches!(name.as_str(), "date" | "content-length") {
                let _ = writeln!(shown, "{name}: {}", value.to_str().unwrap());
            }
        }
        shown = format!("{shown}\n{}\n", response.text().await.unwrap().trim_end());
        let (googleapis, host) = (bed.sim.urls().googleapis, bed.vm.metadata_host());
        let shown = shown.replace(&googleapis, "http://GOOGLEAPIS").replace(&host, "METADATA");
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.http"));
        if update() {
            std::fs::write(&file, &shown).unwrap();
        }
        if std::fs::read_to_string(&file).ok().as_deref() != Some(shown.as_str()) {
            stale.push(format!("{name}:\n{shown}"));
        }
    }
    assert!(
        stale.is_empty(),
        "changed; run with UPDATE=1 and review the diff:\n{}",
        stale.join("\n")
    );
}

#[expect(clippy::disallowed_methods, reason = "a test's own switch")]
fn update() -> bool {
    std::env::var("UPDATE").is_ok()
}
