//! Images: what is there, and pulling one.

use std::fmt;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::{CreateImageOptionsBuilder, RemoveImageOptions};
use dify_common::ids::Digest;
use dify_common::secret::{ExposeSecret, Secret};
use futures_util::StreamExt;

use super::{Engine, EngineError, EngineErrorKind, QUICK, SLOW, translate, within};
use crate::registry::Reference;

/// Without a word from the engine for this long a pull is stuck. Extracting a
/// large layer reports in seconds, a slow registry's first byte in tens.
const SILENCE: Duration = Duration::from_mins(3);
/// One pull in all; Dify's largest image (about 3 GB) at 2 MB/s.
const PULL: Duration = Duration::from_mins(30);

/// An image on this engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// Engine's id: the digest of the image's configuration.
    pub id: String,
    /// `repository@digest` for each registry it was pulled from.
    pub repo_digests: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
}

impl ImageFacts {
    /// Whether it was pulled as `digest`.
    pub fn has(&self, digest: &Digest) -> bool {
        self.repo_digests
            .iter()
            .any(|found| found.rsplit_once('@').is_some_and(|(_, found)| found == digest.as_str()))
    }
}

/// What a registry lets us in with.
#[derive(Clone)]
pub struct RegistryLogin {
    /// User name; for Google's registries the literal `oauth2accesstoken`.
    pub user: String,
    /// Password or token.
    pub password: Secret,
}

impl fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryLogin").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Progress of one layer of a pull, as the engine reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerEvent {
    /// Layer's short id; empty for news of the image as a whole.
    pub layer: String,
    /// Engine's word: `Downloading`, `Pull complete`, ...
    pub status: String,
    /// Bytes done, where it counts.
    pub current: Option<u64>,
    /// Bytes in all, where it knows.
    pub total: Option<u64>,
}

impl Engine {
    /// The image a reference names here, if it is there.
    pub async fn image(&self, reference: &Reference) -> Result<Option<ImageFacts>, EngineError> {
        let name = wanted(reference);
        match within(QUICK, "inspect image", &name, self.docker.inspect_image(&name)).await {
            Ok(found) => Ok(Some(ImageFacts {
                id: found.id.unwrap_or_default(),
                repo_digests: found.repo_digests.unwrap_or_default(),
                size: found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
            })),
            Err(error)
                if matches!(
                    error.kind(),
                    EngineErrorKind::NotFound | EngineErrorKind::BadImage
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Pulls one image and checks that what came is what was asked for.
    pub async fn pull(
        &self,
        reference: &Reference,
        login: Option<&RegistryLogin>,
        mut on_event: impl FnMut(LayerEvent),
    ) -> Result<ImageFacts, EngineError> {
        const DOING: &str = "pull image";
        let target = reference.to_string();
        let credentials = login.map(|login| DockerCredentials {
            username: Some(login.user.clone()),
            password: Some(login.password.expose_secret().to_owned()),
            serveraddress: Some(reference.host().to_owned()),
            ..DockerCredentials::default()
        });
        let options = CreateImageOptionsBuilder::new()
            .from_image(&reference.repository())
            .tag(reference.target())
            .build();
        let mut news = Box::pin(self.docker.create_image(Some(options), None, credentials));
        let pulled = async {
            loop {
                match tokio::time::timeout(SILENCE, news.next()).await {
                    Err(_) => return Err(EngineError::deadline(DOING, &target, SILENCE)),
                    Ok(None) => return Ok(()),
                    Ok(Some(Err(error))) => return Err(translate(DOING, &target, error)),
                    Ok(Some(Ok(info))) => on_event(layer_event(info)),
                }
            }
        };
        match tokio::time::timeout(PULL, pulled).await {
            Ok(done) => done?,
            Err(_) => return Err(EngineError::deadline(DOING, &target, PULL)),
        }
        self.verify(reference).await
    }

    /// Lets go of an image; its layers go when no other needs them. One that is
    /// gone is fine, one that a container was made from is a conflict.
    pub async fn remove_image(&self, reference: &Reference) -> Result<(), EngineError> {
        let name = wanted(reference);
        let removed = self.docker.remove_image(&name, None::<RemoveImageOptions>, None);
        match within(SLOW, "remove image", &name, removed).await {
            Err(error)
                if matches!(
                    error.kind(),
                    EngineErrorKind::NotFound | EngineErrorKind::BadImage
                ) =>
            {
                Ok(())
            }
            removed => removed.map(drop),
        }
    }

    /// The engine checks digests while pulling; this makes sure it did, and
    /// that the image can be run by the reference.
    async fn verify(&self, reference: &Reference) -> Result<ImageFacts, EngineError> {
        const DOING: &str = "verify pulled image";
        let problem =
            |kind, found: String| EngineError::new(kind, DOING, reference.to_string(), found);
        let facts = self.image(reference).await?.ok_or_else(|| {
            problem(
                EngineErrorKind::Engine,
                "the pull ended well, but the image is not there".to_owned(),
            )
        })?;
        match reference.digest() {
            Some(digest) if !facts.has(digest) => {
                let found = format!("the engine holds it as {}", facts.repo_digests.join(", "));
                Err(problem(EngineErrorKind::DigestMismatch, found))
            }
            _ => Ok(facts),
        }
    }
}

/// As the engine looks images up: never tag and digest together.
fn wanted(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{}@{digest}", reference.repository()),
        (None, tag) => format!("{}:{}", reference.repository(), tag.unwrap_or("latest")),
    }
}

fn layer_event(info: CreateImageInfo) -> LayerEvent {
    let detail = info.progress_detail.unwrap_or_default();
    let bytes = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
    LayerEvent {
        layer: info.id.unwrap_or_default(),
        status: info.status.unwrap_or_default(),
        current: bytes(detail.current),
        total: bytes(detail.total).filter(|total| *total > 0),
    }
}
