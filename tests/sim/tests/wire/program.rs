//! `gcp-sim` as a person starts it.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::{client, text};

const STATE: &str = "
project: { id: my-project, number: 42 }
attributes: { fleet: blue }
instances:
- { name: vm-a, service_account: a@my-project.iam.gserviceaccount.com, attributes: { dify-release: 1.17.1 } }
- { name: vm-b }
secrets:
  one: first
  two: [{ value: a }, { value: b, state: DISABLED }]
buckets: { data: { hello.txt: hello } }
denied: [{ account: a@my-project.iam.gserviceaccount.com, permission: storage.buckets.get }]
";

/// Ends the program with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn serves_the_project_of_a_state_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), STATE).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gcp-sim"));
    let command = command.arg("--state").arg(file.path()).stdout(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();

    let client = client();
    let metadata = |vm: &str, path: &str| {
        let host = ready["metadata_hosts"][vm].as_str().unwrap();
        client
            .get(format!("http://{host}/computeMetadata/v1/{path}"))
            .header("Metadata-Flavor", "Google")
    };
    assert_eq!(text(metadata("vm-a", "instance/attributes/dify-release")).await.1, "1.17.1");
    assert_eq!(text(metadata("vm-b", "project/attributes/fleet")).await.1, "blue");
    let (_, token) = text(metadata("vm-a", "instance/service-accounts/default/token")).await;
    let token: Value = serde_json::from_str(&token).unwrap();
    let status = async |path: &str| {
        let url = format!("{}{path}", ready["urls"]["googleapis"].as_str().unwrap());
        text(client.get(url).bearer_auth(token["access_token"].as_str().unwrap())).await.0
    };
    assert_eq!(status("/v1/projects/my-project/secrets/one/versions/latest:access").await, 200);
    assert_eq!(status("/v1/projects/42/secrets/two/versions/latest:access").await, 400);
    assert_eq!(status("/storage/v1/b/data/o/hello.txt").await, 200);
    assert_eq!(status("/storage/v1/b/data").await, 403);
}

#[test]
fn refuses_a_key_it_does_not_know() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "secretz: { a: planted-value }\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_gcp-sim"))
        .arg("--state")
        .arg(file.path())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("secretz"), "{told}");
    assert!(!told.contains("planted-value"), "{told}");
}
