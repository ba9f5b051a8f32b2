//! Access tokens. On a VM from the metadata server by a provider of our own
//! behind `gcp_auth`'s trait, because gcp_auth 0.12 hard-codes the metadata
//! host; elsewhere `gcp_auth::provider()` (key file, user credentials, gcloud).

use std::fmt;
use std::sync::Arc;

use gcp_auth::{Token, TokenProvider};
use tokio::sync::Mutex;

use super::metadata::{HOST_VARIABLE, Metadata};
use crate::settings::Source;

/// The scope that covers every API of Google Cloud; what a caller may do is
/// decided by IAM, not by the scope.
pub const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";

/// No token could be had.
#[derive(Debug, thiserror::Error)]
#[error("get an access token from {origin}; does this machine have a service account?")]
pub struct TokenError {
    origin: &'static str,
    #[source]
    source: gcp_auth::Error,
}

/// Where bearers come from. Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    origin: &'static str,
    provider: Arc<dyn TokenProvider>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Tokens {
    /// The metadata server's default service account.
    pub fn from_metadata(metadata: Metadata) -> Self {
        let provider = Arc::new(MetadataTokens { metadata, cached: Mutex::default() });
        Self { origin: "the metadata server", provider }
    }

    /// The metadata server where there is one (or `GCE_METADATA_HOST` names
    /// one), else whatever gcp_auth finds: key file, user credentials, gcloud.
    pub async fn find(source: &impl Source) -> Result<Self, TokenError> {
        super::install_tls_provider();
        let metadata = Metadata::from_source(source);
        if source.get(HOST_VARIABLE).is_some() || metadata.get("instance/id").await.is_ok() {
            return Ok(Self::from_metadata(metadata));
        }
        let origin = "Google's application default credentials";
        let provider =
            gcp_auth::provider().await.map_err(|source| TokenError { origin, source })?;
        Ok(Self { origin, provider })
    }

    /// A token that is good for some seconds at least.
    pub async fn token(&self) -> Result<Arc<Token>, TokenError> {
        let origin = self.origin;
        self.provider.token(&[CLOUD_PLATFORM]).await.map_err(|source| TokenError { origin, source })
    }
}

/// gcp_auth's provider for a metadata server at any host.
struct MetadataTokens {
    metadata: Metadata,
    cached: Mutex<Option<Arc<Token>>>,
}

#[async_trait::async_trait]
impl TokenProvider for MetadataTokens {
    async fn token(&self, _scopes: &[&str]) -> Result<Arc<Token>, gcp_auth::Error> {
        // Held across the fetch on purpose: one fetch serves all who wait.
        let mut cached = self.cached.lock().await;
        if let Some(token) = cached.as_ref().filter(|token| !token.has_expired()) {
            return Ok(token.clone());
        }
        let text = self.read("instance/service-accounts/default/token").await?;
        let token: Token = serde_json::from_str(&text).map_err(|error| {
            gcp_auth::Error::Json("parse the metadata server's token answer", error)
        })?;
        let token = Arc::new(token);
        *cached = Some(token.clone());
        Ok(token)
    }

    async fn project_id(&self) -> Result<Arc<str>, gcp_auth::Error> {
        self.read("project/project-id").await.map(Arc::from)
    }
}

impl MetadataTokens {
    async fn read(&self, path: &str) -> Result<String, gcp_auth::Error> {
        match self.metadata.get(path).await {
            Ok(Some(text)) => Ok(text),
            Ok(None) => Err(gcp_auth::Error::Str("the metadata server has no such value")),
            Err(error) => Err(gcp_auth::Error::Other("metadata server", Box::new(error))),
        }
    }
}
