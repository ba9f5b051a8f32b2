//! `/console/api/setup` and `/console/api/init`: who owns a new installation.

use http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use sqlx::Row as _;

use super::server::App;
use crate::failure::Failure;
use crate::http::{Answer, error, header_of, internal_error, json, read_json};

/// One database read; 500 at once when it fails.
pub(super) async fn setup_state(app: &App) -> Answer {
    match finished_at(app).await {
        Ok(Some(at)) => json(200, &json!({"step": "finished", "setup_at": at})),
        Ok(None) => json(200, &json!({"step": "not_started", "setup_at": null})),
        Err(failure) => internal_error("app.py:875", &failure),
    }
}

/// Makes the first account; needs the init password first if there is one.
pub(super) async fn setup(app: &App, request: Request<Incoming>) -> Answer {
    let validated = init_done(app, request.headers());
    match finished_at(app).await {
        Ok(None) => {}
        Ok(Some(_)) => {
            return error(
                403,
                "already_setup",
                "Dify has been successfully installed. Please refresh the page or return to the dashboard homepage.",
            );
        }
        Err(failure) => return internal_error("app.py:875", &failure),
    }
    if !validated {
        return error(
            401,
            "not_init_validated",
            "Init validation has not been completed yet. Please proceed with the init validation process first.",
        );
    }
    let body = read_json(request.into_body()).await;
    let (Some(email), Some(name), Some(_)) =
        (body["email"].as_str(), body["name"].as_str(), body["password"].as_str())
    else {
        return error(400, "invalid_param", "email, name and password are required");
    };
    let made = async {
        let mut loan = app.pool.take().await?;
        let account = "INSERT INTO accounts (name, email) VALUES ($1, $2)";
        sqlx::query(account).bind(name).bind(email).execute(&mut loan.connection).await?;
        let setup = "INSERT INTO dify_setups (version) VALUES ($1)";
        sqlx::query(setup).bind(&app.image.baked.release).execute(&mut loan.connection).await?;
        app.pool.give_back(loan);
        Ok::<_, Failure>(())
    };
    match made.await {
        Ok(()) => json(201, &json!({"result": "success"})),
        Err(failure) => {
            app.pool.invalidate();
            internal_error("setup.py:60", &failure)
        }
    }
}

/// Whether INIT_PASSWORD still has to be given in this browser.
pub(super) fn init_state(app: &App, request: &Request<Incoming>) -> Answer {
    let state = if init_done(app, request.headers()) { "finished" } else { "not_started" };
    json(200, &json!({"status": state}))
}

/// Checks INIT_PASSWORD and remembers it in a signed cookie, valid on every node.
pub(super) async fn init(app: &App, request: Request<Incoming>) -> Answer {
    let Some(expected) = app.env().get("INIT_PASSWORD") else {
        return json(201, &json!({"result": "success"}));
    };
    let body = read_json(request.into_body()).await;
    if body["password"].as_str() != Some(expected) {
        return error(
            401,
            "init_validate_failed",
            "Init validation failed. Please check the password and try again.",
        );
    }
    let mut answer = json(201, &json!({"result": "success"}));
    let secure =
        if app.env().or("CONSOLE_API_URL", "").starts_with("https://") { "; Secure" } else { "" };
    let cookie = format!("session={}; HttpOnly; Path=/; SameSite=Lax{secure}", session(app));
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    answer
}

fn init_done(app: &App, headers: &http::HeaderMap) -> bool {
    app.env().get("INIT_PASSWORD").is_none()
        || header_of(headers, "cookie").contains(&format!("session={}", session(app)))
}

/// Stands for Flask's signed session: depends on SECRET_KEY, equal on all nodes.
fn session(app: &App) -> String {
    let digest = Sha256::digest(format!("init:{}", app.env().or("SECRET_KEY", "")).as_bytes());
    digest.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

async fn finished_at(app: &App) -> Result<Option<String>, Failure> {
    let read = async {
        let mut loan = app.pool.take().await?;
        let row = sqlx::query("SELECT setup_at::text FROM dify_setups LIMIT 1")
            .fetch_optional(&mut loan.connection)
            .await?;
        app.pool.give_back(loan);
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    };
    let result = read.await;
    if result.is_err() {
        app.pool.invalidate();
    }
    result
}
