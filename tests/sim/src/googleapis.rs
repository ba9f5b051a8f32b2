//! The shared listener: which service a path belongs to, in whose shape it refuses.

use std::sync::Arc;

use futures_util::{FutureExt as _, future::BoxFuture};
use http::StatusCode;

use crate::{
    Service,
    clock::Clock,
    iam::Iam,
    secrets::Secrets,
    server::Answer,
    signing::Signer,
    storage::Storage,
    token,
    wire::{self, Call, Reply},
};

#[derive(Debug)]
pub(crate) struct GoogleApis {
    pub(crate) clock: Clock,
    pub(crate) iam: Iam,
    pub(crate) signer: Arc<Signer>,
    pub(crate) secrets: Secrets,
    pub(crate) storage: Storage,
}

impl Answer for GoogleApis {
    fn service(&self, path: &str) -> Service {
        if path == "/token" || path.starts_with("/oauth2/") {
            Service::Token
        } else if path.starts_with("/v1/") {
            Service::SecretManager
        } else {
            // Cloud Storage's XML API owns every other path: `/BUCKET/OBJECT`.
            Service::Storage
        }
    }

    fn refuse(&self, service: Service, status: StatusCode) -> Reply {
        let (name, reason) = names(status);
        let text = status.canonical_reason().unwrap_or("Error");
        match service {
            Service::Token | Service::Metadata => token::refuse(status, "internal_failure", text),
            Service::SecretManager => wire::rpc_error(status, name, text, None),
            Service::Storage => wire::storage_error(status, reason, text, None),
        }
    }

    fn answer(&self, service: Service, call: Call) -> BoxFuture<'_, Reply> {
        let reply = match service {
            Service::Token | Service::Metadata => {
                token::answer(&call, &self.iam, &self.signer, &self.clock)
            }
            Service::SecretManager => self.secrets.answer(&call, &self.iam),
            Service::Storage => self.storage.answer(&call, &self.iam),
        };
        std::future::ready(reply).boxed()
    }
}

/// The google.rpc name and the Cloud Storage reason of a status.
fn names(status: StatusCode) -> (&'static str, &'static str) {
    match status.as_u16() {
        400 => ("INVALID_ARGUMENT", "invalid"),
        401 => ("UNAUTHENTICATED", "authError"),
        403 => ("PERMISSION_DENIED", "forbidden"),
        404 => ("NOT_FOUND", "notFound"),
        409 => ("ABORTED", "conflict"),
        412 => ("FAILED_PRECONDITION", "conditionNotMet"),
        429 => ("RESOURCE_EXHAUSTED", "rateLimitExceeded"),
        500 => ("INTERNAL", "internalError"),
        503 => ("UNAVAILABLE", "backendError"),
        504 => ("DEADLINE_EXCEEDED", "gatewayTimeout"),
        _ => ("UNKNOWN", "backendError"),
    }
}
