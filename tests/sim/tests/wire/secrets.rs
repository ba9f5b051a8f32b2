use serde_json::json;
use sim::{Effect, Fault, Service, VersionState};

use crate::{ACCOUNT, Bed, json, text};

const SECRET: &str = "/v1/projects/dify-sim/secrets/db-password";

#[tokio::test]
async fn a_version_is_read_by_number_latest_and_alias() {
    let bed = Bed::start().await;
    bed.sim.secrets().add_version("db-password", "123456789");
    bed.sim.secrets().add_version("db-password", "two");
    bed.sim.secrets().set_alias("db-password", "stable", 1).unwrap();
    // The CRC-32C check value, as a decimal string; the project by its number, the version resolved.
    let one = json!({ "name": "projects/415104041262/secrets/db-password/versions/1",
                      "payload": { "data": "MTIzNDU2Nzg5", "dataCrc32c": "3808858755" } });
    for version in ["1", "stable"] {
        assert_eq!(
            json(bed.get(&format!("{SECRET}/versions/{version}:access?$alt=json"))).await,
            (200, one.clone())
        );
    }
    let (_, latest) =
        json(bed.get("/v1/projects/415104041262/secrets/db-password/versions/latest:access")).await;
    assert_eq!(latest["name"], "projects/415104041262/secrets/db-password/versions/2");
}

#[tokio::test]
async fn a_version_that_is_not_enabled_is_a_failed_precondition_even_as_latest() {
    let bed = Bed::start().await;
    bed.sim.secrets().add_version("db-password", "one");
    bed.sim.secrets().add_version("db-password", "two");
    for (state, name) in
        [(VersionState::Disabled, "DISABLED"), (VersionState::Destroyed, "DESTROYED")]
    {
        bed.sim.secrets().set_state("db-password", 2, state).unwrap();
        let text = format!(
            "Secret Version [projects/415104041262/secrets/db-password/versions/2] is in {name} state."
        );
        let error =
            json!({ "error": { "code": 400, "message": text, "status": "FAILED_PRECONDITION" } });
        assert_eq!(json(bed.get(&format!("{SECRET}/versions/latest:access"))).await, (400, error));
    }
    assert!(bed.sim.secrets().set_state("db-password", 3, VersionState::Enabled).is_err());
}

#[tokio::test]
async fn what_is_missing_forbidden_or_unauthenticated_has_googles_shape() {
    let bed = Bed::start().await;
    let (status, missing) = json(bed.get(&format!("{SECRET}/versions/latest:access"))).await;
    assert_eq!((status, &missing["error"]["status"]), (404, &json!("NOT_FOUND")));
    bed.sim.secrets().add_version("db-password", "one");
    assert_eq!(json(bed.get(&format!("{SECRET}/versions/9:access"))).await.0, 404);

    bed.sim.iam().deny(ACCOUNT, "secretmanager.versions.access");
    let text_of = "Permission 'secretmanager.versions.access' denied for resource \
                   'projects/dify-sim/secrets/db-password/versions/1' (or it may not exist).";
    let denied =
        json!({ "error": { "code": 403, "message": text_of, "status": "PERMISSION_DENIED" } });
    assert_eq!(json(bed.get(&format!("{SECRET}/versions/1:access"))).await, (403, denied));
    bed.sim.iam().allow(ACCOUNT, "secretmanager.versions.access");
    assert_eq!(
        text(bed.get("/v1/projects/other/secrets/db-password/versions/1:access")).await.0,
        403
    );

    let url = format!("{}{SECRET}/versions/1:access", bed.sim.urls().googleapis);
    for request in [bed.client.get(&url), bed.client.get(&url).bearer_auth("nobody's")] {
        let (status, error) = json(request).await;
        assert_eq!((status, &error["error"]["status"]), (401, &json!("UNAUTHENTICATED")));
    }
}

#[tokio::test]
async fn the_whole_life_of_a_secret_over_the_wire() {
    let bed = Bed::start().await;
    let create = bed
        .post("/v1/projects/dify-sim/secrets?secretId=k")
        .json(&json!({ "replication": { "automatic": {} } }));
    assert_eq!(json(create).await.1["name"], "projects/415104041262/secrets/k");
    assert_eq!(json(bed.post("/v1/projects/dify-sim/secrets?secretId=k")).await.0, 409);
    let add = |crc: &str| {
        bed.post("/v1/projects/dify-sim/secrets/k:addVersion")
            .json(&json!({ "payload": { "data": "MTIzNDU2Nzg5", "dataCrc32c": crc } }))
    };
    assert_eq!(json(add("1")).await.1["error"]["status"], "INVALID_ARGUMENT");
    assert_eq!(
        json(add("3808858755")).await.1["name"],
        "projects/415104041262/secrets/k/versions/1"
    );
    for (verb, state) in [("disable", "DISABLED"), ("enable", "ENABLED"), ("destroy", "DESTROYED")]
    {
        assert_eq!(
            json(bed.post(&format!("/v1/projects/dify-sim/secrets/k/versions/1:{verb}"))).await.1["state"],
            state
        );
    }
    assert_eq!(
        json(bed.post("/v1/projects/dify-sim/secrets/k/versions/1:enable")).await.0,
        400,
        "destruction is for good"
    );
    assert_eq!(json(bed.get("/v1/projects/dify-sim/secrets")).await.1["totalSize"], 1);
    let regional = "/v1/projects/dify-sim/locations/europe-west4/secrets/r/versions/latest:access";
    bed.sim.secrets().add_version("europe-west4/r", "v");
    assert_eq!(
        json(bed.get(regional)).await.1["name"],
        "projects/415104041262/locations/europe-west4/secrets/r/versions/1"
    );
    bed.sim.secrets().delete("k");
    assert_eq!(json(bed.get("/v1/projects/dify-sim/secrets/k")).await.0, 404);
}

#[tokio::test]
async fn a_fault_spoils_the_checksum_and_not_the_data() {
    let bed = Bed::start().await;
    bed.sim.secrets().add_version("db-password", "123456789");
    let fault = bed
        .sim
        .faults()
        .inject(Fault::new(Effect::WrongChecksum).on(Service::SecretManager).times(1));
    let read =
        async || json(bed.get(&format!("{SECRET}/versions/1:access"))).await.1["payload"].clone();
    assert_eq!(read().await, json!({ "data": "MTIzNDU2Nzg5", "dataCrc32c": "3808858756" }));
    assert_eq!(fault.hits(), 1);
    assert_eq!(read().await["dataCrc32c"], "3808858755");
}
