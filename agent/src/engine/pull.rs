//! Pulling a release's images: several at once, only what is missing, again
//! after a failure (layers that came stay), with news for whoever shows it.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use dify_common::gcp::token::{TokenError, Tokens};
use dify_common::retry::{Backoff, retry};
use dify_common::secret::Secret;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::mpsc;

use super::docker::{Engine, ImageFacts, LayerEvent, RegistryLogin};
use super::error::{EngineError, EngineErrorKind};
use crate::registry::Reference;

/// Tries for one image: with the backoff below about two minutes of a registry
/// that is away.
const ATTEMPTS: u32 = 6;
/// User name that goes with an access token (Artifact Registry, "Configure
/// authentication to Artifact Registry for Docker").
const TOKEN_USER: &str = "oauth2accesstoken";

fn backoff() -> Backoff {
    Backoff::try_new(Duration::from_secs(2), Duration::from_mins(1)).expect("2 s is below a minute")
}

/// News of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullEvent {
    /// Which image.
    pub image: Reference,
    /// What.
    pub news: PullNews,
}

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullNews {
    /// It was here already.
    Present,
    /// A try begins.
    Started,
    /// A layer moved.
    Layer(LayerEvent),
    /// It is here now.
    Done,
    /// A try failed; there may be another.
    Failed(EngineError),
}

/// An image that is here now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// As it was asked for.
    pub reference: Reference,
    /// What the engine holds.
    pub facts: ImageFacts,
}

/// Some images could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullErrors(Vec<EngineError>);

impl PullErrors {
    /// Each of them.
    pub fn all(&self) -> &[EngineError] {
        &self.0
    }

    /// The one that decides what happens next: a final one before one that
    /// time may heal.
    pub fn worst(&self) -> &EngineError {
        let worst = self.0.iter().find(|error| error.is_permanent()).or(self.0.first());
        worst.expect("made of at least one error")
    }
}

impl fmt::Display for PullErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the release's images are missing", self.0.len())?;
        self.0.iter().try_for_each(|error| write!(f, "; {error}"))
    }
}

impl std::error::Error for PullErrors {}

/// Has every image here when it returns. `news` may be dropped by its reader
/// at any time.
pub async fn pull_all(
    engine: &Engine,
    images: &[Reference],
    concurrency: NonZeroU32,
    tokens: Option<&Tokens>,
    news: &mpsc::Sender<PullEvent>,
) -> Result<Vec<Pulled>, PullErrors> {
    let at_once = usize::try_from(concurrency.get()).unwrap_or(usize::MAX);
    // Collected and boxed first: a stream that borrows its items makes the
    // future fail to be `Send` for every lifetime.
    let pulls: Vec<BoxFuture<'_, Result<Pulled, EngineError>>> =
        images.iter().map(|image| pull_one(engine, image, tokens, news).boxed()).collect();
    let results: Vec<Result<Pulled, EngineError>> =
        stream::iter(pulls).buffered(at_once).collect().await;
    let (mut pulled, mut failed) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(image) => pulled.push(image),
            Err(error) => failed.push(error),
        }
    }
    if failed.is_empty() { Ok(pulled) } else { Err(PullErrors(failed)) }
}

async fn pull_one(
    engine: &Engine,
    image: &Reference,
    tokens: Option<&Tokens>,
    news: &mpsc::Sender<PullEvent>,
) -> Result<Pulled, EngineError> {
    // Progress is dropped rather than waited for when the reader is slow; the
    // turning points are not.
    let tell = |news: PullNews| PullEvent { image: image.clone(), news };
    if let Some(facts) = engine.image(image).await? {
        let _ = news.send(tell(PullNews::Present)).await;
        return Ok(Pulled { reference: image.clone(), facts });
    }
    let facts = retry("pull image", ATTEMPTS, backoff(), async || {
        let _ = news.send(tell(PullNews::Started)).await;
        let login = login(image, tokens).await?;
        let pulled = engine
            .pull(image, login.as_ref(), |layer| {
                drop(news.try_send(tell(PullNews::Layer(layer))));
            })
            .await;
        let turn = match &pulled {
            Ok(_) => PullNews::Done,
            Err(error) => PullNews::Failed(error.clone()),
        };
        let _ = news.send(tell(turn)).await;
        pulled
    })
    .await?;
    Ok(Pulled { reference: image.clone(), facts })
}

/// The VM's own access token for Google's registries, nothing for others.
pub async fn login(
    image: &Reference,
    tokens: Option<&Tokens>,
) -> Result<Option<RegistryLogin>, EngineError> {
    let Some(tokens) = tokens.filter(|_| image.is_google()) else {
        return Ok(None);
    };
    let token = tokens.token().await.map_err(|error: TokenError| {
        let found = dify_common::chain::Chain(&error).to_string();
        EngineError::new(
            EngineErrorKind::Registry,
            "log in to the registry of",
            image.to_string(),
            found,
        )
    })?;
    Ok(Some(RegistryLogin { user: TOKEN_USER.to_owned(), password: Secret::from(token.as_str()) }))
}
