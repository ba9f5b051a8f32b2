use serde_json::{Value, json};
use sim::MaintenanceEvent;

use crate::{Bed, header, json, send, text, wait_for};

#[tokio::test]
async fn refuses_what_does_not_carry_the_header_or_was_forwarded() {
    let bed = Bed::start().await;
    let url = format!("http://{}/computeMetadata/v1/instance/name", bed.vm.metadata_host());
    let bare = send(bed.client.get(&url)).await;
    assert_eq!(bare.status(), 403);
    assert_eq!(header(&bare, "metadata-flavor"), "Google");
    assert!(header(&bare, "content-type").starts_with("text/html"));
    assert_eq!(send(bed.client.get(&url).header("Metadata-Flavor", "google")).await.status(), 403);
    assert_eq!(
        send(bed.metadata("instance/name").header("X-Forwarded-For", "10.0.0.1")).await.status(),
        403
    );

    let good = send(bed.metadata("instance/name")).await;
    assert_eq!(good.status(), 200);
    assert_eq!(header(&good, "server"), "Metadata Server for VM");
    assert_eq!(header(&good, "content-type"), "application/text");
    assert_eq!(header(&good, "etag").len(), 16);
    assert_eq!(good.text().await.unwrap(), "vm-1");
    // Google's libraries find out where they run by the root, without the header.
    let root = send(bed.client.get(format!("http://{}/", bed.vm.metadata_host()))).await;
    assert_eq!(
        (root.status().as_u16(), header(&root, "metadata-flavor").as_str()),
        (200, "Google")
    );
}

#[tokio::test]
async fn directories_list_redirect_and_recurse() {
    let bed = Bed::start().await;
    bed.vm.set_attribute("dify-config", "release: 1.17.1\n");
    let table = [
        ("", 200, "instance/\nproject/\nuniverse/\n"),
        ("instance/attributes/", 200, "dify-config\n"),
        ("instance/attributes/dify-config", 200, "release: 1.17.1\n"),
        ("instance/scheduling/", 200, "automatic-restart\non-host-maintenance\npreemptible\n"),
        ("instance/network-interfaces/0/ip", 200, "10.8.0.2"),
        ("instance/zone", 200, "projects/415104041262/zones/europe-west4-a"),
        ("instance/service-accounts/", 200, "agent@dify-sim.iam.gserviceaccount.com/\ndefault/\n"),
        ("project//project-id", 200, "dify-sim"),
        ("universe/universe-domain", 200, "googleapis.com"),
        ("instance/name?unknown=1&last_etag=0&timeout_sec=3", 200, "vm-1"),
        ("instance/name?alt=json", 200, "\"vm-1\""),
        ("instance/upcoming-maintenance?alt=json", 200, "\"NONE\""),
        (
            "instance/scheduling/?recursive=true&alt=text",
            200,
            "automatic-restart TRUE\non-host-maintenance MIGRATE\npreemptible FALSE\n",
        ),
    ];
    for (path, status, body) in table {
        assert_eq!(text(bed.metadata(path)).await, (status, body.to_owned()), "{path}");
    }
    for (path, status) in [
        ("instance/name/", 404),
        ("instance/attributes/none", 404),
        ("instance/network-interfaces/7/ip", 404),
        ("instance/?alt=json", 400),
        ("instance/?wait_for_change=true", 400),
    ] {
        assert_eq!(send(bed.metadata(path)).await.status(), status, "{path}");
    }
    let moved = send(bed.metadata("instance/attributes?recursive=true")).await;
    assert_eq!(moved.status(), 301);
    let target = format!(
        "http://{}/computeMetadata/v1/instance/attributes/?recursive=true",
        bed.vm.metadata_host()
    );
    assert_eq!(header(&moved, "location"), target);

    bed.vm.set_attribute("my-own-key", "v");
    let all = send(bed.metadata("instance/?recursive=true")).await;
    assert_eq!(header(&all, "content-type"), "application/json");
    let all: Value = serde_json::from_str(&all.text().await.unwrap()).unwrap();
    assert_eq!(all["attributes"]["my-own-key"], "v");
    assert_eq!(all["maintenanceEvent"], "NONE");
    assert_eq!(all["id"], 4_212_345_678_901_234_501_u64);
    let account = json!({ "aliases": ["default"], "email": "agent@dify-sim.iam.gserviceaccount.com",
                          "scopes": ["https://www.googleapis.com/auth/cloud-platform"] });
    assert_eq!(
        json(bed.metadata("instance/service-accounts/default/?recursive=true")).await,
        (200, account)
    );
}

#[tokio::test]
async fn the_etag_comes_back_when_the_content_does_and_depends_on_recursive() {
    let bed = Bed::start().await;
    let etag = async |path: &str| header(&send(bed.metadata(path)).await, "etag");
    bed.vm.set_attribute("k", "a");
    let first = etag("instance/attributes/k").await;
    bed.vm.set_attribute("k", "b");
    assert_ne!(etag("instance/attributes/k").await, first);
    bed.vm.set_attribute("k", "a");
    assert_eq!(etag("instance/attributes/k").await, first);
    assert_ne!(etag("instance/attributes/k?recursive=true").await, first);
}

#[tokio::test]
async fn wait_for_change_answers_on_difference_change_deletion_and_timeout() {
    let bed = Bed::start().await;
    bed.vm.set_attribute("k", "a");
    let etag = header(&send(bed.metadata("instance/attributes/k")).await, "etag");
    let wait =
        |rest: &str| bed.metadata(&format!("instance/attributes/k?wait_for_change=true{rest}"));

    // Another ETag than the present one: at once.
    assert_eq!(text(wait("&last_etag=0")).await, (200, "a".into()));
    // Time over: 200 with what is there.
    let same = send(wait(&format!("&last_etag={etag}&timeout_sec=0"))).await;
    assert_eq!((same.status().as_u16(), header(&same, "etag")), (200, etag.clone()));

    let change = async {
        wait_for("a waiter", || bed.vm.waiting() == 1).await;
        // Somebody else's key wakes the server, not the caller.
        bed.vm.set_attribute("other", "x");
        bed.vm.set_attribute("k", "b");
    };
    let (answer, ()) = tokio::join!(text(wait(&format!("&last_etag={etag}"))), change);
    assert_eq!(answer, (200, "b".into()));

    let delete = async {
        wait_for("a waiter", || bed.vm.waiting() == 1).await;
        bed.vm.delete_attribute("k");
    };
    let (answer, ()) = tokio::join!(send(wait("")), delete);
    assert_eq!(answer.status(), 404);
    assert_eq!(bed.vm.waiting(), 0);

    let project = async {
        wait_for("a waiter", || bed.vm.waiting() == 1).await;
        bed.sim.set_project_attribute("fleet", "blue");
    };
    let (answer, ()) = tokio::join!(
        text(bed.metadata("project/attributes/?recursive=true&wait_for_change=true")),
        project
    );
    assert_eq!(answer, (200, r#"{"fleet":"blue"}"#.into()));
}

#[tokio::test]
async fn preemption_and_maintenance_are_announced() {
    let bed = Bed::start().await;
    assert_eq!(text(bed.metadata("instance/preempted")).await.1, "FALSE");
    bed.vm.set_preempted(true);
    bed.vm.set_maintenance_event(MaintenanceEvent::TerminateOnHostMaintenance);
    assert_eq!(text(bed.metadata("instance/preempted")).await.1, "TRUE");
    assert_eq!(
        text(bed.metadata("instance/maintenance-event")).await.1,
        "TERMINATE_ON_HOST_MAINTENANCE"
    );
}

#[tokio::test]
async fn guest_attributes_are_gated_named_and_limited() {
    let bed = Bed::start().await;
    let url = |path: &str| {
        format!(
            "http://{}/computeMetadata/v1/instance/guest-attributes/{path}",
            bed.vm.metadata_host()
        )
    };
    let put =
        |path: &str| bed.client.put(url(path)).header("Metadata-Flavor", "Google").body("yes");
    let refused = text(put("dify/ready")).await;
    assert_eq!(refused, (403, "Guest attributes endpoint access is disabled.".into()));

    bed.sim.set_project_attribute("enable-guest-attributes", "TRUE");
    assert_eq!(text(put("dify/ready")).await.0, 200);
    assert_eq!(text(put("ready")).await.0, 400, "a namespace is mandatory");
    assert_eq!(text(put("dify/re%20ady")).await.0, 400);
    assert_eq!(bed.vm.guest_attributes(), [("dify/ready".to_owned(), "yes".to_owned())].into());
    assert_eq!(
        json(bed.metadata("instance/guest-attributes/?recursive=true")).await,
        (200, json!({ "dify": { "ready": "yes" } }))
    );

    // The third query of this second is the last that counts; the fourth is lost without a word.
    assert_eq!(text(put("dify/third")).await.0, 200);
    assert_eq!(text(put("dify/fourth")).await.0, 200);
    assert!(bed.vm.guest_attributes().contains_key("dify/third"));
    assert!(!bed.vm.guest_attributes().contains_key("dify/fourth"));
    bed.sim.clock().advance(std::time::Duration::from_mins(1));
    let delete = bed.client.delete(url("dify/ready")).header("Metadata-Flavor", "Google");
    assert_eq!(text(delete).await.0, 200);
    assert_eq!(text(bed.metadata("instance/guest-attributes/dify/ready")).await.0, 404);

    // The VM's own item wins over the project's.
    bed.vm.set_attribute("enable-guest-attributes", "false");
    assert_eq!(text(put("dify/ready")).await.0, 403);
}

#[tokio::test]
async fn a_closed_server_refuses_connections_and_comes_back_on_its_port() {
    let bed = Bed::start().await;
    bed.vm.close().await;
    assert!(bed.metadata("instance/name").send().await.unwrap_err().is_connect());
    bed.vm.reopen().await.unwrap();
    assert_eq!(text(bed.metadata("instance/name")).await, (200, "vm-1".into()));
}
