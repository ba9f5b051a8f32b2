use reqwest::Method;
use sim::{Effect, Fault, Service};

use crate::{Bed, json, send, text, wait_for};

const OBJECT: &str = "/storage/v1/b/data/o/x?alt=media";
const UPLOAD: &str = "/upload/storage/v1/b/data/o?uploadType=media&name=x";

#[tokio::test]
async fn a_lost_answer_has_had_its_effect_and_a_lost_request_has_not() {
    let bed = Bed::start().await;
    bed.sim.storage().create_bucket("data");
    bed.sim.faults().inject(Fault::new(Effect::LoseRequest).method(Method::POST).times(1));
    assert!(bed.post(UPLOAD).body("1").send().await.is_err());
    assert_eq!(bed.sim.storage().list("data"), Vec::<String>::new());

    bed.sim.faults().inject(Fault::new(Effect::LoseAnswer).method(Method::POST).times(1));
    assert!(bed.post(UPLOAD).body("1").send().await.is_err());
    assert_eq!(bed.sim.storage().list("data"), ["x"]);
    let lost = bed.sim.requests().matching(Service::Storage, "POST", "name=x");
    assert_eq!(lost.iter().map(|record| record.status).collect::<Vec<_>>(), [None, None]);
}

#[tokio::test]
async fn a_hanging_call_goes_on_when_the_fault_is_cleared() {
    let bed = Bed::start().await;
    let fault = bed.vm.faults().inject(Fault::new(Effect::Hang).path("instance/name"));
    let clear = async {
        wait_for("the call to hang", || fault.hits() == 1).await;
        assert_eq!(bed.vm.requests().all()[0].status, None);
        // Others are not held.
        assert_eq!(text(bed.metadata("instance/id")).await.0, 200);
        fault.clear();
    };
    let (answer, ()) = tokio::join!(text(bed.metadata("instance/name")), clear);
    assert_eq!(answer, (200, "vm-1".into()));
}

#[tokio::test]
async fn statuses_come_in_each_services_shape_and_bodies_can_break_off() {
    let bed = Bed::start().await;
    bed.sim.storage().put("data", "x", "0123456789");
    bed.vm.faults().inject(Fault::new(Effect::Status(503)).times(1));
    let unavailable = send(bed.metadata("instance/name")).await;
    assert_eq!(unavailable.status(), 503);
    assert!(unavailable.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    assert_eq!(text(bed.metadata("instance/name")).await.0, 200);

    bed.sim.faults().inject(Fault::new(Effect::Status(503)).times(2));
    assert_eq!(json(bed.get(OBJECT)).await.1["error"]["errors"][0]["reason"], "backendError");
    assert_eq!(
        json(bed.get("/v1/projects/dify-sim/secrets")).await.1["error"]["status"],
        "UNAVAILABLE"
    );

    bed.sim.faults().inject(Fault::new(Effect::CutAnswer(4)).path("/o/x").times(1));
    let broken = send(bed.get(OBJECT)).await;
    assert_eq!(broken.content_length(), Some(10));
    assert!(broken.bytes().await.is_err());
    assert_eq!(text(bed.get(OBJECT)).await.1, "0123456789");
}

#[tokio::test]
async fn closed_services_refuse_and_come_back_with_what_they_held() {
    let bed = Bed::start().await;
    bed.sim.storage().put("data", "x", "1");
    bed.sim.close().await;
    assert!(bed.get(OBJECT).send().await.unwrap_err().is_connect());
    bed.sim.reopen().await.unwrap();
    assert_eq!(text(bed.get(OBJECT)).await.1, "1");
}

#[tokio::test]
async fn a_dropped_project_leaves_no_listener() {
    let Bed { sim, vm, client } = Bed::start().await;
    let (url, host) = (sim.urls().certs, vm.metadata_host());
    sim.stop().await;
    assert!(client.get(url).send().await.unwrap_err().is_connect());
    drop(vm);
    let gone = || std::net::TcpStream::connect(&host).is_err();
    wait_for("the metadata server to be gone", gone).await;
}
