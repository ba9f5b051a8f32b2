//! Against engines that misbehave, which a real one cannot be asked to do: a
//! socket that answers what dockerd would.

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use dify_common::secret::Secret;
use dify_common::tasks::Tasks;
use tokio::net::UnixListener;
use tracing::Span;

use super::*;
use crate::registry::Reference;

/// Answers a request, as `METHOD /path`, without the API version before it.
type Answer = fn(&str, &Request) -> Option<Response>;

struct Stand {
    folder: tempfile::TempDir,
    _tasks: Tasks,
}

impl Stand {
    fn begin(answer: Answer) -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        let listener = UnixListener::bind(folder.path().join("docker.sock")).expect("bound");
        let router = Router::new().fallback(async move |request: Request| {
            let path = request.uri().path();
            let path = path
                .strip_prefix("/v1.")
                .and_then(|rest| rest.split_once('/'))
                .map_or(path, |(_, rest)| rest);
            let what = format!("{} /{}", request.method(), path.trim_start_matches('/'));
            answer(&what, &request).unwrap_or_else(|| http::StatusCode::NOT_FOUND.into_response())
        });
        let tasks = Tasks::default();
        tasks.spawn("docker", Span::none(), async move {
            axum::serve(listener, router).await.expect("serves");
        });
        Self { folder, _tasks: tasks }
    }

    async fn connect(&self) -> Result<Engine, EngineError> {
        Engine::connect(&self.folder.path().join("docker.sock")).await
    }
}

fn version(api: &str) -> Response {
    axum::Json(serde_json::json!({"Version": "20.10.24+dfsg1", "ApiVersion": api})).into_response()
}

fn image() -> Reference {
    let digest = "0123456789abcdef".repeat(4);
    format!("europe-west3-docker.pkg.dev/p/r/api@sha256:{digest}").parse().expect("a reference")
}

#[tokio::test]
async fn an_engine_that_is_too_old_is_named() {
    let stand = Stand::begin(|what, _| (what == "GET /version").then(|| version("1.40")));
    let error = stand.connect().await.expect_err("too old");
    assert_eq!(error.kind(), EngineErrorKind::Invalid);
    assert!(error.to_string().contains("1.40") && error.to_string().contains("1.41"), "{error}");
}

#[tokio::test]
async fn a_newer_engine_is_spoken_to_in_its_own_version() {
    let stand = Stand::begin(|what, _| (what == "GET /version").then(|| version("1.47")));
    assert_eq!(stand.connect().await.expect("connected").version().api, (1, 47));
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_answer_runs_into_the_deadline() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let path = folder.path().join("docker.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    // Connections queue up and nobody takes them.
    let error = Engine::connect(&path).await.expect_err("silent");
    assert_eq!((error.kind(), error.is_permanent()), (EngineErrorKind::Deadline, false), "{error}");
    drop(listener);
    let error = Engine::connect(&path).await.expect_err("nobody listens");
    assert_eq!(
        (error.kind(), error.is_permanent()),
        (EngineErrorKind::Unreachable, false),
        "{error}"
    );
}

#[tokio::test]
async fn a_disk_that_fills_up_in_the_middle_of_a_pull_is_told_apart() {
    let stand = Stand::begin(|what, _| {
        match what {
        "GET /version" => Some(version("1.41")),
        "POST /images/create" => Some(
            "{\"status\":\"Downloading\",\"id\":\"0123456789ab\",\"progressDetail\":{\"current\":1,\"total\":9}}\r\n\
             {\"errorDetail\":{\"message\":\"write /var/lib/docker/tmp/GetImageBlob1: no space left on device\"},\
             \"error\":\"write /var/lib/docker/tmp/GetImageBlob1: no space left on device\"}\r\n"
                .into_response(),
        ),
        _ => None,
    }
    });
    let engine = stand.connect().await.expect("connected");
    let mut events = Vec::new();
    let error = engine.pull(&image(), None, |event| events.push(event)).await.expect_err("full");
    assert_eq!((error.kind(), error.is_permanent()), (EngineErrorKind::NoSpace, true), "{error}");
    let layer = LayerEvent {
        layer: "0123456789ab".into(),
        status: "Downloading".into(),
        current: Some(1),
        total: Some(9),
    };
    assert_eq!(events, [layer]);
}

#[tokio::test]
async fn a_pull_that_ends_well_with_another_image_is_refused() {
    let stand = Stand::begin(|what, _| match what {
        "GET /version" => Some(version("1.41")),
        "POST /images/create" => Some("{\"status\":\"Pull complete\"}\r\n".into_response()),
        what if what.starts_with("GET /images/") => {
            let other = format!("x/y@sha256:{}", "f".repeat(64));
            Some(
                axum::Json(serde_json::json!({"Id": "sha256:1", "RepoDigests": [other]}))
                    .into_response(),
            )
        }
        _ => None,
    });
    let engine = stand.connect().await.expect("connected");
    let error = engine.pull(&image(), None, |_| ()).await.expect_err("another");
    assert_eq!(error.kind(), EngineErrorKind::DigestMismatch, "{error}");
}

#[tokio::test]
async fn the_login_goes_to_the_engine_in_its_header_and_nowhere_else() {
    let stand = Stand::begin(|what, request| match what {
        "GET /version" => Some(version("1.41")),
        "POST /images/create" => {
            let header = request.headers().get("x-registry-auth")?.to_str().ok()?;
            let bytes = base64::engine::general_purpose::STANDARD.decode(header).ok()?;
            let login: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
            let is_right = login["username"] == "oauth2accesstoken"
                && login["password"] == "ya29.t0ken"
                && login["serveraddress"] == "europe-west3-docker.pkg.dev"
                && !request.uri().to_string().contains("t0ken");
            let status =
                if is_right { http::StatusCode::CONFLICT } else { http::StatusCode::BAD_REQUEST };
            Some(status.into_response())
        }
        _ => None,
    });
    let engine = stand.connect().await.expect("connected");
    let login =
        RegistryLogin { user: "oauth2accesstoken".into(), password: Secret::from("ya29.t0ken") };
    let error = engine.pull(&image(), Some(&login), |_| ()).await.expect_err("the stand ends it");
    assert_eq!(
        error.kind(),
        EngineErrorKind::Conflict,
        "{error}: the stand did not see the login it should"
    );
    assert!(!format!("{login:?}{error}").contains("t0ken"));
}
