//! Secret Manager and Cloud Storage on the wire: a few answers as Google's
//! documents give them, enough to see what is sent and how refusals are told
//! apart.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dify_agent::backends::bucket::{Storage, judge};
use dify_agent::backends::{CheckLine, Verdict};
use dify_agent::config::settings::SecretName;
use dify_agent::secrets::{Manager, fetch_all};
use dify_common::gcp::metadata::Metadata;
use dify_common::gcp::token::Tokens;
use dify_common::retry::Retryable as _;
use dify_common::secret::ExposeSecret as _;
use dify_common::tasks::Tasks;
use serde_json::json;
use tracing::Span;

use crate::is_send;

/// What the service holds and forbids.
#[derive(Default)]
struct World {
    objects: BTreeMap<String, String>,
    /// Verbs of Cloud Storage that are forbidden.
    forbidden: Vec<&'static str>,
    /// Transient failures still to come.
    unavailable: u32,
}

type Shared = Arc<Mutex<World>>;

pub(crate) struct Google {
    pub(crate) base: String,
    world: Shared,
    /// Owns the server's task, which ends with the test's runtime.
    _tasks: Tasks,
}

impl Google {
    pub(crate) async fn start() -> Self {
        let world = Shared::default();
        let router = Router::new()
            .route("/computeMetadata/v1/instance/service-accounts/default/token", get(token))
            .route("/v1/projects/p/secrets/{secret}/versions/{version}", get(access))
            .route("/storage/v1/b/{bucket}", get(bucket))
            .route("/upload/storage/v1/b/{bucket}/o", post(insert))
            .route("/storage/v1/b/{bucket}/o/{object}", get(read))
            .route("/storage/v1/b/{bucket}/o/{object}", delete(remove))
            .with_state(world.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        let tasks = Tasks::default();
        tasks.spawn("google", Span::none(), async move {
            axum::serve(listener, router).await.expect("serves");
        });
        Self { base, world, _tasks: tasks }
    }

    pub(crate) fn tokens(&self) -> Tokens {
        Tokens::from_metadata(Metadata::new(self.base.replace("http://", "")))
    }

    fn manager(&self) -> Manager {
        Manager::new(&self.base, self.tokens())
    }

    async fn bucket_lines(&self, bucket: &str) -> Vec<CheckLine> {
        let storage = Storage::new(&self.base, self.tokens());
        let facts = storage.look(bucket, &"node".parse().expect("valid")).await;
        judge(bucket, &facts)
    }
}

async fn token() -> Response {
    let token = json!({"access_token": "t0ken", "expires_in": 3599, "token_type": "Bearer"});
    ([("metadata-flavor", "Google")], token.to_string()).into_response()
}

fn refusal(code: u16, status: &str) -> Response {
    let body = json!({"error": {"code": code, "message": format!("{status}!"), "status": status}});
    (StatusCode::from_u16(code).expect("a status"), body.to_string()).into_response()
}

fn refused(world: &Shared, headers: &HeaderMap, verb: &str) -> Option<Response> {
    if headers.get("authorization").is_none_or(|value| value != "Bearer t0ken") {
        return Some(refusal(401, "UNAUTHENTICATED"));
    }
    let world = world.lock().expect("whole");
    world.forbidden.contains(&verb).then(|| refusal(403, "PERMISSION_DENIED"))
}

async fn access(
    State(world): State<Shared>,
    Path((secret, version)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = refused(&world, &headers, "access") {
        return refused;
    }
    let mut world = world.lock().expect("whole");
    if world.unavailable > 0 {
        world.unavailable -= 1;
        return refusal(503, "UNAVAILABLE");
    }
    match (secret.as_str(), version.as_str()) {
        ("disabled", _) => refusal(400, "FAILED_PRECONDITION"),
        ("denied", _) => refusal(403, "PERMISSION_DENIED"),
        ("redis", "latest:access") => {
            let value = b"a value\n";
            let crc = crc32c::crc32c(value).to_string();
            json!({
                "name": "projects/7/secrets/redis/versions/3",
                "payload": {"data": STANDARD.encode(value), "dataCrc32c": crc}
            })
            .to_string()
            .into_response()
        }
        ("damaged", _) => {
            json!({"payload": {"data": STANDARD.encode("hunter2"), "dataCrc32c": "1"}})
                .to_string()
                .into_response()
        }
        _ => refusal(404, "NOT_FOUND"),
    }
}

async fn bucket(
    State(world): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    match refused(&world, &headers, "get") {
        Some(refused) => refused,
        None if name == "files" => {
            json!({"name": name, "location": "EUROPE-WEST3"}).to_string().into_response()
        }
        None => refusal(404, "NOT_FOUND"),
    }
}

async fn insert(
    State(world): State<Shared>,
    Path(bucket): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: String,
) -> Response {
    if let Some(refused) = refused(&world, &headers, "insert") {
        return refused;
    }
    if bucket != "files" {
        return refusal(404, "NOT_FOUND");
    }
    let mut world = world.lock().expect("whole");
    let name = query["name"].clone();
    if query.get("ifGenerationMatch").is_some_and(|g| g == "0") && world.objects.contains_key(&name)
    {
        return refusal(412, "conditionNotMet");
    }
    world.objects.insert(name.clone(), body);
    json!({"name": name, "generation": "17"}).to_string().into_response()
}

async fn read(
    State(world): State<Shared>,
    Path((_, object)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = refused(&world, &headers, "read") {
        return refused;
    }
    let world = world.lock().expect("whole");
    match world.objects.get(&object) {
        Some(content) => content.clone().into_response(),
        None => refusal(404, "NOT_FOUND"),
    }
}

async fn remove(
    State(world): State<Shared>,
    Path((_, object)): Path<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = refused(&world, &headers, "delete") {
        return refused;
    }
    assert_eq!(query.get("ifGenerationMatch").map(String::as_str), Some("17"));
    world.lock().expect("whole").objects.remove(&object);
    StatusCode::NO_CONTENT.into_response()
}

#[tokio::test]
async fn a_secret_is_fetched_through_a_passing_fault() {
    let google = Google::start().await;
    google.world.lock().expect("whole").unavailable = 2;
    let references = [(SecretName::RedisPassword, "sm://p/redis".parse().expect("valid"))].into();
    let manager = google.manager();
    let secrets = is_send(fetch_all(&references, Some(&manager))).await.expect("is there");
    let value = secrets.get(SecretName::RedisPassword).expect("is there");
    assert_eq!(value.expose_secret(), "a value");
    assert_eq!(
        secrets.versions()[&SecretName::RedisPassword],
        "projects/7/secrets/redis/versions/3"
    );
    assert_eq!(secrets.findings()[0].code, "secret-line-end");
    assert!(!format!("{secrets:?}").contains("a value"));
}

#[tokio::test]
async fn each_refusal_of_secret_manager_is_told_apart_and_none_shows_a_value() {
    let google = Google::start().await;
    let names = [
        (SecretName::SecretKey, "absent"),
        (SecretName::InitPassword, "disabled"),
        (SecretName::DatabasePassword, "denied"),
        (SecretName::VectorPassword, "damaged"),
    ];
    let references = names
        .map(|(name, secret)| (name, format!("sm://p/{secret}/1").parse().expect("valid")))
        .into();
    let errors = fetch_all(&references, Some(&google.manager())).await.expect_err("none is there");
    let kinds: Vec<_> = errors.iter().map(|(_, error)| error.kind()).collect();
    assert_eq!(
        kinds,
        ["secret-not-found", "secret-disabled", "secret-permission", "secret-checksum"]
    );
    assert!(errors.is_permanent());
    let text = format!("{errors} {errors:?}");
    assert!(
        text.contains("roles/secretmanager.secretAccessor") && text.contains("sm://p/denied/1"),
        "{text}"
    );
    assert!(!text.contains("hunter2") && !text.contains("t0ken"), "{text}");
}

#[tokio::test]
async fn a_bucket_is_probed_and_left_as_it_was() {
    let google = Google::start().await;
    let lines = google.bucket_lines("files").await;
    assert!(lines.iter().all(|line| line.verdict == Verdict::Ok), "{lines:?}");
    let names: Vec<_> = lines.iter().map(|line| line.name).collect();
    assert_eq!(names, ["get", "write", "read", "delete", "clock"]);
    assert!(google.world.lock().expect("whole").objects.is_empty());
}

#[tokio::test]
async fn missing_rights_on_a_bucket_are_named() {
    let google = Google::start().await;
    google.world.lock().expect("whole").forbidden = vec!["get", "delete"];
    let lines = google.bucket_lines("files").await;
    let advice: Vec<_> = lines.iter().filter_map(|line| line.advice.clone()).collect();
    assert_eq!(advice.len(), 2, "{lines:?}");
    assert!(
        advice[0].contains("storage.buckets.get") && advice[1].contains("storage.objects.delete")
    );
    let lines = google.bucket_lines("absent").await;
    assert!(lines.iter().any(|line| {
        line.name == "write"
            && line.advice.as_deref().is_some_and(|text| text.contains("create bucket absent"))
    }));
}
