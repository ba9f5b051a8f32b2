//! Getting documents: from a metadata server on the wire and from files.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use dify_common::gcp::metadata::Metadata;
use serde_json::json;
use tokio::sync::watch;

use super::{EXAMPLE, PLANTED};
use crate::config::{LoadError, Overrides, Source, Watcher};
use crate::exit::Exit;

/// Attributes of one VM; every change has a tag of its own.
type Attributes = Arc<watch::Sender<(u32, BTreeMap<String, String>)>>;

async fn answer(
    State(attributes): State<Attributes>,
    Path(path): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    if headers.get("metadata-flavor").is_none() {
        return StatusCode::FORBIDDEN.into_response();
    }
    match path.as_str() {
        "instance/name" => ([("metadata-flavor", "Google")], "dify-x7f2").into_response(),
        "instance/attributes/" if query.get("recursive").is_some_and(|it| it == "true") => {
            let mut seen = attributes.subscribe();
            if query.contains_key("wait_for_change") {
                let last = query["last_etag"].clone();
                let changed = seen.wait_for(|(tag, _)| tag.to_string() != last);
                let at_most = Duration::from_secs(query["timeout_sec"].parse().expect("a number"));
                let _ = tokio::time::timeout(at_most, changed).await;
            }
            let (tag, values) = seen.borrow().clone();
            let headers = [("metadata-flavor", "Google".to_owned()), ("etag", tag.to_string())];
            (headers, json!(values).to_string()).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

#[expect(clippy::disallowed_methods, reason = "the server ends with its test's runtime")]
async fn metadata_server(attributes: &Attributes) -> Source {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let host = listener.local_addr().expect("bound").to_string();
    let router = axum::Router::new()
        .route("/computeMetadata/v1/{*path}", axum::routing::get(answer))
        .with_state(attributes.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Source::Metadata(Metadata::new(host))
}

fn attributes(values: &[(&str, &str)]) -> Attributes {
    let values = values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Arc::new(watch::Sender::new((1, values.collect())))
}

fn set(attributes: &Attributes, key: &str, value: &str) {
    attributes.send_modify(|(tag, values)| {
        *tag += 1;
        values.insert(key.to_owned(), value.to_owned());
    });
}

#[tokio::test]
async fn a_vm_is_told_by_its_attributes() {
    let attributes = attributes(&[("dify-config", EXAMPLE), ("dify-release", "1.15.0\n")]);
    let source = metadata_server(&attributes).await;
    let settings = Watcher::new(source, Overrides::default()).load().await.expect("valid");
    assert_eq!(settings.node.as_str(), "dify-x7f2");
    assert_eq!(settings.release.as_str(), "1.15.0");
}

#[tokio::test]
async fn later_documents_arrive_valid_or_with_their_mistakes_and_only_when_they_differ() {
    let attributes = attributes(&[("dify-config", EXAMPLE)]);
    let source = metadata_server(&attributes).await;
    let mut watcher = Watcher::new(source, Overrides::default());
    let first = watcher.load().await.expect("valid");

    set(&attributes, "dify-config", &EXAMPLE.replace("schema: 1", "schema: 1\nextra: 1"));
    let error = watcher.changed().await.expect_err("not valid");
    assert_eq!(error.problems().map(|problems| problems.iter().count()), Some(1));

    // Another's attribute is no news; the next thing handed out is the release's change.
    set(&attributes, "ssh-keys", "x");
    set(&attributes, "dify-config", EXAMPLE);
    assert_eq!(watcher.changed().await.expect("valid again"), first);
    set(&attributes, "ssh-keys", "y");
    set(&attributes, "dify-release", "1.15.0");
    let second = watcher.changed().await.expect("valid");
    assert_eq!(second.release.as_str(), "1.15.0");

    set(&attributes, "dify-release", PLANTED.repeat(9).as_str());
    let error = watcher.changed().await.expect_err("no release id");
    let problems = error.problems().expect("mistakes").to_string();
    assert!(problems.contains("dify-release: ") && !problems.contains(PLANTED), "{problems}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_said_with_its_exit_code() {
    let source = metadata_server(&attributes(&[("ssh-keys", "x")])).await;
    let error = Watcher::new(source, Overrides::default()).load().await.expect_err("absent");
    assert!(matches!(error, LoadError::Absent { .. }), "{error}");
    assert_eq!(error.exit(), Exit::Configuration);

    // Port 1 of loopback: nothing listens there.
    let source = Source::Metadata(Metadata::new("127.0.0.1:1".to_owned()));
    let error = Watcher::new(source, Overrides::default()).load().await.expect_err("down");
    assert_eq!(error.exit(), Exit::Dependency);

    let source = Source::File("/nonexistent/config.yaml".into());
    let error = Watcher::new(source, Overrides::default()).load().await.expect_err("no file");
    assert_eq!(error.exit(), Exit::Configuration);
    assert!(error.to_string().contains("/nonexistent/config.yaml"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_file_is_watched_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, EXAMPLE).expect("written");
    let overrides = Overrides { node: "n1".parse().ok(), ..Overrides::default() };
    let mut watcher = Watcher::new(Source::File(path.clone()), overrides);
    assert_eq!(watcher.load().await.expect("valid").node.as_str(), "n1");

    std::fs::write(&path, "schema: 1\n").expect("written");
    assert!(watcher.changed().await.is_err());
    // A file that is away for a moment, as editors do it, is waited out.
    std::fs::remove_file(&path).expect("removed");
    let away = tokio::time::timeout(Duration::from_mins(1), watcher.changed()).await;
    assert!(away.is_err(), "nothing to hand out");
    std::fs::write(&path, EXAMPLE.replace("1.14.2", "1.15.0")).expect("written");
    assert_eq!(watcher.changed().await.expect("valid").release.as_str(), "1.15.0");
}

#[test]
fn the_command_line_wins_then_a_named_metadata_server() {
    let named = BTreeMap::from([("GCE_METADATA_HOST".to_owned(), "127.0.0.1:9".to_owned())]);
    let path = std::path::Path::new("/tmp/x.yaml");
    assert_eq!(Source::choose(Some(path), &named).origin(), "/tmp/x.yaml");
    assert!(Source::choose(None, &named).origin().contains("127.0.0.1:9"));
}
