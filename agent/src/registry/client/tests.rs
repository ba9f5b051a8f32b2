//! Against registries that misbehave; a real one is in the integration tests.

use axum::Router;
use axum::extract::{Query, State};
use axum::http::HeaderMap as Headers;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use dify_common::tasks::Tasks;
use tracing::Span;

use super::*;

const MANIFEST: &str = r#"{"schemaVersion":2}"#;
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    /// Wants a token of its own service, then answers well.
    Bearer,
    /// Its token service refuses.
    TokenRefused,
    /// Takes no token at all.
    NeverEnough,
    /// Wants a password.
    Basic,
    /// Names another digest than that of what it sends.
    WrongDigest,
    /// Sends a page for people.
    Html,
    /// Does not stop sending.
    Endless,
    /// Is overloaded.
    Busy,
}

#[derive(Clone)]
struct Stand {
    manner: Manner,
    host: String,
}

async fn manifest(State(stand): State<Stand>, headers: Headers) -> Response {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok());
    let bearer_at = |host| {
        format!(
            "Bearer realm=\"http://{host}/token\",service=\"stand\",scope=\"repository:a/b:pull\""
        )
    };
    let challenge = if stand.manner == Manner::Basic {
        "Basic realm=\"x\"".to_owned()
    } else {
        bearer_at(&stand.host)
    };
    let kind = [("content-type", OCI_MANIFEST)];
    match (stand.manner, bearer) {
        (Manner::Bearer, Some("Bearer t0ken")) => (kind, MANIFEST).into_response(),
        (Manner::Bearer | Manner::TokenRefused | Manner::NeverEnough | Manner::Basic, _) => {
            (http::StatusCode::UNAUTHORIZED, [("www-authenticate", challenge)]).into_response()
        }
        (Manner::WrongDigest, _) => {
            let wrong = format!("sha256:{}", "0".repeat(64));
            (kind, [("docker-content-digest", wrong)], MANIFEST).into_response()
        }
        (Manner::Html, _) => ([("content-type", "text/html")], "<html>").into_response(),
        (Manner::Endless, _) => (kind, vec![b' '; LARGEST_MANIFEST + 1]).into_response(),
        (Manner::Busy, _) => http::StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn token(State(stand): State<Stand>, Query(query): Query<Vec<(String, String)>>) -> Response {
    let has = |key: &str, value: &str| query.iter().any(|(k, v)| k == key && v == value);
    if stand.manner == Manner::TokenRefused
        || !has("service", "stand")
        || !has("scope", "repository:a/b:pull")
    {
        return http::StatusCode::FORBIDDEN.into_response();
    }
    axum::Json(serde_json::json!({"token": "t0ken", "expires_in": 300})).into_response()
}

async fn stand(manner: Manner) -> (Reference, Tasks) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = listener.local_addr().expect("bound").to_string();
    let reference = format!("{host}/a/b:1").parse().expect("a reference");
    let router = Router::new()
        .route("/v2/a/b/manifests/1", get(manifest))
        .route("/token", get(token))
        .with_state(Stand { manner, host });
    let tasks = Tasks::default();
    tasks.spawn("registry", Span::none(), async move {
        axum::serve(listener, router).await.expect("serves");
    });
    (reference, tasks)
}

#[tokio::test]
async fn a_token_is_fetched_when_asked_for() {
    let (image, _tasks) = stand(Manner::Bearer).await;
    let resolved = Registry::new(None).expect("client").resolve(&image).await.expect("resolved");
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(MANIFEST)));
    assert_eq!(
        resolved,
        Resolved {
            digest: digest.parse().expect("a digest"),
            media_type: OCI_MANIFEST.to_owned(),
            size: MANIFEST.len() as u64,
        }
    );
}

#[tokio::test]
async fn what_a_registry_can_do_wrong_has_a_kind() {
    for (manner, kind, permanent) in [
        (Manner::TokenRefused, "registry-auth", true),
        (Manner::NeverEnough, "registry-auth", true),
        (Manner::Basic, "registry-auth", true),
        (Manner::WrongDigest, "digest", true),
        (Manner::Html, "registry", true),
        (Manner::Endless, "registry", true),
        (Manner::Busy, "registry", false),
    ] {
        let (image, _tasks) = stand(manner).await;
        let error = Registry::new(None).expect("client").resolve(&image).await.expect_err("wrong");
        assert_eq!((error.kind(), error.is_permanent()), (kind, permanent), "{manner:?}: {error}");
    }
}

#[tokio::test]
async fn a_token_is_never_fetched_in_the_clear_for_a_registry_elsewhere() {
    let image: Reference = "registry.example/a/b:1".parse().expect("a reference");
    let challenge =
        Challenge { realm: "http://127.0.0.1:1/token".to_owned(), service: None, scope: None };
    let client = Registry::new(None).expect("client");
    let error = client.token(&image, &challenge, None).await.expect_err("refused before asking");
    assert!(matches!(error, RegistryError::Odd { .. }), "{error}");
}
