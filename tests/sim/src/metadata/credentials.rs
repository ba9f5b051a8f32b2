//! `service-accounts/ACCOUNT/token` and `identity`.

use std::{fmt, time::Duration};

use http::StatusCode;
use serde_json::json;

use super::{Metadata, not_found};
use crate::{
    IDENTITY_LIFETIME,
    iam::Issued,
    locked, token,
    wire::{self, Call, Reply},
};

/// The server hands out a cached access token until this much of its life is left (Google's documentation).
const RENEW_BEFORE: Duration = Duration::from_mins(5);

/// An access token the server hands out again.
pub(super) struct CachedToken(Issued);

impl fmt::Debug for CachedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CachedToken(..)")
    }
}

impl Metadata {
    pub(super) fn credential(&self, call: &Call, account: &str, leaf: &str) -> Reply {
        let (email, instance) = {
            let state = locked(&self.state);
            (state.instance.service_account.clone(), state.instance.clone())
        };
        if email.is_empty() || (account != "default" && account != email) {
            return not_found();
        }
        let now = self.common.clock.now();
        if leaf == "token" {
            let issued = self.access_token(&email, now);
            let left = issued.expires.saturating_sub(now).as_secs();
            let value =
                json!({ "access_token": issued.token, "expires_in": left, "token_type": "Bearer" });
            return wire::reply(StatusCode::OK, "application/json", value.to_string());
        }
        let Some(audience) = call.query("audience").filter(|audience| !audience.is_empty()) else {
            return wire::reply(
                StatusCode::BAD_REQUEST,
                "text/html; charset=UTF-8",
                "non-empty audience parameter required",
            );
        };
        let mut claims =
            token::identity_claims(&email, audience, now.as_secs(), IDENTITY_LIFETIME.as_secs());
        if call.query("format") == Some("full") {
            let project = &self.common.project;
            claims["google"] = json!({ "compute_engine": {
                "instance_creation_timestamp": 1_767_225_600, "instance_id": instance.id.to_string(),
                "instance_name": instance.name, "project_id": project.id, "project_number": project.number,
                "zone": instance.zone,
            }});
        } else if let Some(claims) = claims.as_object_mut() {
            // The standard format names the account by `sub` alone.
            claims.remove("email");
            claims.remove("email_verified");
        }
        wire::reply(StatusCode::OK, "text/html", self.common.signer.jwt(&claims))
    }

    fn access_token(&self, email: &str, now: Duration) -> Issued {
        let mut state = locked(&self.state);
        if let Some(CachedToken(cached)) = &state.token
            && cached.expires > now + RENEW_BEFORE
            && self.common.iam.knows(&cached.token)
        {
            return cached.clone();
        }
        let issued = self.common.iam.issue(email);
        state.token = Some(CachedToken(issued.clone()));
        issued
    }
}
