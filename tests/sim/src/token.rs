//! `POST /token`: the OAuth 2.0 token endpoint for service-account keys (RFC 7523), and `GET /oauth2/v3/certs`.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    clock::Clock,
    iam::Iam,
    signing::Signer,
    wire::{self, Call, Reply},
};

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// Longest life of an assertion, in seconds: Google's documentation of the server-to-server flow.
const LONGEST_ASSERTION: u64 = 3_600;
/// Seconds an assertion may be issued ahead of our clock.
const SKEW: u64 = 300;

pub(crate) fn answer(call: &Call, iam: &Iam, signer: &Signer, clock: &Clock) -> Reply {
    if call.path == "/oauth2/v3/certs" {
        let mut reply = wire::json(StatusCode::OK, &signer.key_set());
        wire::set(
            &mut reply,
            "cache-control",
            "public, max-age=20000, must-revalidate, no-transform",
        );
        return reply;
    }
    if call.method != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "invalid_request", "Only POST is allowed");
    }
    let form = wire::pairs(&String::from_utf8_lossy(&call.body));
    let field =
        |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    match field("grant_type") {
        None => {
            return refuse(
                StatusCode::BAD_REQUEST,
                "invalid_request",
                "Missing required parameter: grant_type",
            );
        }
        Some(JWT_BEARER) => {}
        Some(other) => {
            return refuse(
                StatusCode::BAD_REQUEST,
                "unsupported_grant_type",
                &format!("Invalid grant_type: {other}"),
            );
        }
    }
    let Some(claims) = field("assertion").and_then(|assertion| signer.verified(assertion)) else {
        return refuse(StatusCode::BAD_REQUEST, "invalid_grant", "Invalid JWT Signature.");
    };
    let now = clock.now().as_secs();
    let time = |name: &str| claims[name].as_u64().unwrap_or_default();
    let (issued, expires) = (time("iat"), time("exp"));
    if expires <= now || issued > now + SKEW || expires > issued + LONGEST_ASSERTION {
        let text = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. \
                    Check your iat and exp values in the JWT claim.";
        return refuse(StatusCode::BAD_REQUEST, "invalid_grant", text);
    }
    let Some(email) = claims["iss"].as_str() else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "invalid_grant",
            "Invalid grant: account not found",
        );
    };
    if !audience_is_ours(&claims) {
        return refuse(
            StatusCode::BAD_REQUEST,
            "invalid_grant",
            "Invalid JWT: Failed audience check.",
        );
    }
    // With `target_audience` instead of a scope the answer is an identity token.
    if let Some(audience) = claims["target_audience"].as_str() {
        let claims = identity_claims(email, audience, now, crate::IDENTITY_LIFETIME.as_secs());
        return wire::json(StatusCode::OK, &json!({ "id_token": signer.jwt(&claims) }));
    }
    if claims["scope"].as_str().is_none_or(str::is_empty) {
        let text = "Invalid OAuth scope or ID token audience provided.";
        return refuse(StatusCode::BAD_REQUEST, "invalid_scope", text);
    }
    let issued = iam.issue(email);
    let left = issued.expires.saturating_sub(clock.now()).as_secs();
    wire::json(
        StatusCode::OK,
        &json!({ "access_token": issued.token, "expires_in": left, "token_type": "Bearer" }),
    )
}

/// Claims of a Google-signed identity token for a service account.
pub(crate) fn identity_claims(email: &str, audience: &str, now: u64, lifetime: u64) -> Value {
    let id = crate::iam::account_id(email);
    json!({
        "aud": audience, "azp": id, "email": email, "email_verified": true,
        "exp": now + lifetime, "iat": now, "iss": "https://accounts.google.com", "sub": id,
    })
}

/// The audience is the endpoint's own URL; we are known by several addresses, so only its path counts.
fn audience_is_ours(claims: &Value) -> bool {
    claims["aud"].as_str().is_some_and(|audience| audience.ends_with("/token"))
}

pub(crate) fn refuse(status: StatusCode, error: &str, description: &str) -> Reply {
    wire::json(status, &json!({ "error": error, "error_description": description }))
}
