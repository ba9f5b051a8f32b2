//! The client. Bounded in everything: deadlines, body sizes, one challenge.

use std::str::FromStr;
use std::time::Duration;

use dify_common::gcp::install_tls_provider;
use dify_common::gcp::token::Tokens;
use dify_common::ids::Digest;
use dify_common::retry::Retryable;
use dify_common::secret::{ExposeSecret, Secret};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use reqwest::{Client, Method, StatusCode};
use sha2::{Digest as _, Sha256};

use super::challenge::{Asked, Challenge};
use super::reference::{DOCKER_HUB, Reference};

/// One request, body included: a manifest has a few kilobytes.
const DEADLINE: Duration = Duration::from_secs(20);
/// Manifests are refused by registries above 4 MiB (distribution's limit).
const LARGEST_MANIFEST: usize = 4 << 20;
/// A token answer; Docker Hub's has about 5 KB.
const LARGEST_TOKEN: usize = 256 << 10;
/// Every kind of manifest and list Docker itself asks for: what the registry
/// gives for these is what `docker pull` would name by digest.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// Where docker.io's API is.
const DOCKER_HUB_API: &str = "registry-1.docker.io";

/// What a reference is at the registry, now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Digest of the manifest or of the list of manifests.
    pub digest: Digest,
    /// Which of the two, by media type.
    pub media_type: String,
    /// Bytes of that document.
    pub size: u64,
}

/// A registry did not answer what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or no whole answer in time.
    #[error("ask registry {host}; is it reachable from here (Cloud NAT, proxy, mirror)?")]
    Unreachable {
        /// The registry.
        host: String,
        /// What the HTTP client says.
        #[source]
        source: reqwest::Error,
    },
    /// It answered with a status that is no answer.
    #[error("registry {host} answered {status} to {asked}")]
    Status {
        /// The registry.
        host: String,
        /// The answer.
        status: StatusCode,
        /// The request's path.
        asked: String,
    },
    /// It has no such image or tag.
    #[error("registry has no {0}; check the release's image names and the mirror prefix")]
    Unknown(Box<Reference>),
    /// It does not let us read.
    #[error(
        "registry {host} does not let us read {asked} ({why}); other registries than Google's are read without credentials"
    )]
    Denied {
        /// The registry.
        host: String,
        /// The request's path.
        asked: String,
        /// What is wrong.
        why: &'static str,
    },
    /// What it sent is not what it says it is.
    #[error("registry sent {found} as {expected} of {image}: do not use it")]
    Mismatch {
        /// What was asked for.
        image: Box<Reference>,
        /// Digest it names, or that was asked for.
        expected: String,
        /// Digest of what came.
        found: Digest,
    },
    /// It is no registry, or not one we understand.
    #[error("registry {host} sent {what}")]
    Odd {
        /// The registry.
        host: String,
        /// What is odd.
        what: &'static str,
    },
    /// The VM's own token could not be had.
    #[error("get a token for registry {host}")]
    Token {
        /// The registry.
        host: String,
        /// Why.
        #[source]
        source: dify_common::gcp::token::TokenError,
    },
    /// The HTTP client could not be made.
    #[error("set up the registry client")]
    Setup(#[source] reqwest::Error),
}

impl RegistryError {
    /// The word used as `kind` on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::Status { .. } | Self::Odd { .. } | Self::Setup(_) => {
                "registry"
            }
            Self::Unknown(_) => "image",
            Self::Denied { .. } | Self::Token { .. } => "registry-auth",
            Self::Mismatch { .. } => "digest",
        }
    }
}

impl Retryable for RegistryError {
    fn is_permanent(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Token { .. } => false,
            Self::Status { status, .. } => {
                !status.is_server_error() && *status != StatusCode::TOO_MANY_REQUESTS
            }
            Self::Unknown(_)
            | Self::Denied { .. }
            | Self::Mismatch { .. }
            | Self::Odd { .. }
            | Self::Setup(_) => true,
        }
    }
}

/// A client for any registry. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    /// For the loopback: plain HTTP, never by a proxy.
    near: Client,
    far: Client,
    tokens: Option<Tokens>,
}

impl Registry {
    /// With the VM's identity for Google's registries, where there is one.
    pub fn new(tokens: Option<Tokens>) -> Result<Self, RegistryError> {
        install_tls_provider();
        let builder = || {
            Client::builder()
                .timeout(DEADLINE)
                .user_agent(concat!("dify-agent/", env!("CARGO_PKG_VERSION")))
        };
        Ok(Self {
            near: builder().no_proxy().build().map_err(RegistryError::Setup)?,
            far: builder().build().map_err(RegistryError::Setup)?,
            tokens,
        })
    }

    /// Whether the registry of `image` answers, and as a registry. Asked
    /// without credentials: 401 is an answer.
    pub async fn ping(&self, image: &Reference) -> Result<(), RegistryError> {
        let answer = self.send(image, Method::GET, "/v2/", None).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::UNAUTHORIZED => Ok(()),
            status => Err(RegistryError::Status {
                host: image.host().to_owned(),
                status,
                asked: "/v2/".to_owned(),
            }),
        }
    }

    /// The digest `image` has now. The manifest itself is fetched and hashed:
    /// what the registry says of it is checked, not believed.
    pub async fn resolve(&self, image: &Reference) -> Result<Resolved, RegistryError> {
        let host = image.host().to_owned();
        let path = format!("/v2/{}/manifests/{}", image.path(), image.target());
        let answer = self.authorized(image, &path).await?;
        match answer.status() {
            status if status.is_success() => {}
            StatusCode::NOT_FOUND => return Err(RegistryError::Unknown(Box::new(image.clone()))),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(RegistryError::Denied {
                    host,
                    asked: path,
                    why: "credentials are not enough",
                });
            }
            status => {
                return Err(RegistryError::Status { host, status, asked: path });
            }
        }
        let named = header(answer.headers(), "docker-content-digest");
        let media_type = header(answer.headers(), CONTENT_TYPE.as_str()).unwrap_or_default();
        let body = bounded(answer, LARGEST_MANIFEST, &host).await?;
        let found = format!("sha256:{}", hex::encode(Sha256::digest(&body)));
        let found = Digest::from_str(&found).expect("a SHA-256 in hex is a digest");
        let asked = image.digest().map(|digest| digest.as_str().to_owned());
        for expected in [asked, named].into_iter().flatten() {
            if expected != found.as_str() {
                return Err(RegistryError::Mismatch {
                    image: Box::new(image.clone()),
                    expected,
                    found,
                });
            }
        }
        let is_manifest = MANIFESTS
            .split(", ")
            .any(|known| known == media_type.split(';').next().unwrap_or_default());
        if !is_manifest {
            return Err(RegistryError::Odd { host, what: "something that is no image manifest" });
        }
        Ok(Resolved { digest: found, media_type, size: body.len() as u64 })
    }

    /// Once without a token, then once with the one that was asked for.
    async fn authorized(
        &self,
        image: &Reference,
        path: &str,
    ) -> Result<reqwest::Response, RegistryError> {
        let answer = self.send(image, Method::GET, path, None).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let denied = |why| RegistryError::Denied {
            host: image.host().to_owned(),
            asked: path.to_owned(),
            why,
        };
        let asked = header(answer.headers(), WWW_AUTHENTICATE.as_str())
            .and_then(|header| Asked::parse(&header));
        let own = self.own_token(image).await?;
        let token = match asked {
            Some(Asked::Bearer(challenge)) => self.token(image, &challenge, own.as_ref()).await?,
            // Google's registries take the access token itself as bearer.
            Some(Asked::Basic) | None => {
                own.ok_or_else(|| denied("it wants credentials and we have none for it"))?
            }
        };
        self.send(image, Method::GET, path, Some(&token)).await
    }

    async fn own_token(&self, image: &Reference) -> Result<Option<Secret>, RegistryError> {
        let Some(tokens) = self.tokens.as_ref().filter(|_| image.is_google()) else {
            return Ok(None);
        };
        let host = image.host().to_owned();
        let token = tokens.token().await.map_err(|source| RegistryError::Token { host, source })?;
        Ok(Some(Secret::from(token.as_str())))
    }

    async fn token(
        &self,
        image: &Reference,
        challenge: &Challenge,
        own: Option<&Secret>,
    ) -> Result<Secret, RegistryError> {
        let host = image.host().to_owned();
        let odd = |what| RegistryError::Odd { host: host.clone(), what };
        let mut realm = reqwest::Url::parse(&challenge.realm)
            .map_err(|_| odd("a challenge without a valid realm"))?;
        // A token goes in and another comes out: in the clear only on this machine.
        if realm.scheme() != "https" && !image.is_loopback() {
            return Err(odd("a challenge that wants a token fetched without TLS"));
        }
        let default_scope = format!("repository:{}:pull", image.path());
        realm
            .query_pairs_mut()
            .append_pair("scope", challenge.scope.as_deref().unwrap_or(&default_scope));
        if let Some(service) = &challenge.service {
            realm.query_pairs_mut().append_pair("service", service);
        }
        // Google's own token service, and no other, gets the VM's token.
        let same_host = realm.host_str() == Some(image.host_name());
        let client = if image.is_loopback() { &self.near } else { &self.far };
        let mut request = client.get(realm);
        if let Some(own) = own.filter(|_| same_host) {
            request = request.basic_auth("oauth2accesstoken", Some(own.expose_secret()));
        }
        let unreachable = |source: reqwest::Error| RegistryError::Unreachable {
            host: host.clone(),
            source: source.without_url(),
        };
        let answer = request.send().await.map_err(unreachable)?;
        if !answer.status().is_success() {
            return Err(RegistryError::Denied {
                host,
                asked: challenge.realm.clone(),
                why: "its token service refused",
            });
        }
        let body = bounded(answer, LARGEST_TOKEN, &host).await?;
        let answer: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| odd("a token answer that is no JSON"))?;
        answer
            .token
            .or(answer.access_token)
            .map(Secret::from)
            .ok_or_else(|| odd("a token answer without a token"))
    }

    async fn send(
        &self,
        image: &Reference,
        method: Method,
        path: &str,
        bearer: Option<&Secret>,
    ) -> Result<reqwest::Response, RegistryError> {
        let host = if image.host() == DOCKER_HUB { DOCKER_HUB_API } else { image.host() };
        let (scheme, client) =
            if image.is_loopback() { ("http", &self.near) } else { ("https", &self.far) };
        let mut request =
            client.request(method, format!("{scheme}://{host}{path}")).header(ACCEPT, MANIFESTS);
        if let Some(bearer) = bearer {
            request = request.header(AUTHORIZATION, format!("Bearer {}", bearer.expose_secret()));
        }
        let unreachable = |source: reqwest::Error| RegistryError::Unreachable {
            host: image.host().to_owned(),
            source: source.without_url(),
        };
        request.send().await.map_err(unreachable)
    }
}

/// Both names are in use (token specification).
#[derive(serde::Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

async fn bounded(
    mut answer: reqwest::Response,
    largest: usize,
    host: &str,
) -> Result<Vec<u8>, RegistryError> {
    let host = || host.to_owned();
    let mut body = Vec::new();
    loop {
        let chunk = answer.chunk().await;
        let chunk = chunk.map_err(|source| RegistryError::Unreachable {
            host: host(),
            source: source.without_url(),
        })?;
        let Some(chunk) = chunk else {
            return Ok(body);
        };
        if body.len() + chunk.len() > largest {
            return Err(RegistryError::Odd { host: host(), what: "more than an answer can have" });
        }
        body.extend_from_slice(&chunk);
    }
}

#[cfg(test)]
mod tests;
