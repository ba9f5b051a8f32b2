//! From what is told to what would run: settings -> secrets -> release -> stack.
//! Shared by `run`, `check`, `plan`, `job` and `logs`.

use dify_common::chain::Chain;
use dify_common::gcp::token::Tokens;
use dify_common::ids::{Digest, ReleaseId};
use dify_common::retry::Retryable;

use crate::backends::machine::machine;
use crate::config::SecretRef;
use crate::config::settings::Settings;
use crate::dify::stack::{Machine, Stack};
use crate::dify::wire;
use crate::engine::{Engine, LogDriver, Site};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::gate::{Gate, Subject, Timings};
use crate::reconcile::shots::Shots;
use crate::release::{Library, Lock, Release, ReleaseError};
use crate::secrets::{Manager, Secrets, fetch_all};

/// Settings with everything that follows from them without touching a container.
#[derive(Debug)]
pub struct Prepared {
    /// The secrets, in memory only.
    pub secrets: Secrets,
    /// The manifest.
    pub release: Release,
    /// Its lock, when there is one.
    pub lock: Option<Lock>,
    /// Newer releases whose schema this one may serve on.
    pub beside: Vec<ReleaseId>,
    /// What would run.
    pub stack: Stack,
    /// What it would run on.
    pub machine: Machine,
    /// Google identity, where there is one.
    pub tokens: Option<Tokens>,
}

/// A release with what other manifests and a registry say of it.
#[derive(Debug)]
pub struct Chosen {
    /// The manifest.
    pub release: Release,
    /// Its lock, when there is one.
    pub lock: Option<Lock>,
    /// Newer releases that let this one serve on their schema.
    pub beside: Vec<ReleaseId>,
}

/// The release and its lock, as told.
pub fn release(settings: &Settings) -> Result<Chosen, Failure> {
    let library = Library::new(settings.images.releases_dir.clone());
    let bad = |error: ReleaseError| Failure::lasting(error.exit(), &error);
    let release = library.manifest(&settings.release).map_err(bad)?;
    let lock = library.lock(&settings.release).map_err(bad)?;
    let mut beside = Vec::new();
    for id in library.known().map_err(bad)? {
        // A manifest that is broken says nothing; ours was read above.
        if let Ok(other) = library.manifest(&id)
            && other.beside.releases.contains(&settings.release)
        {
            beside.push(id);
        }
    }
    if lock.is_none() && !settings.images.allow_unlocked {
        let id = &settings.release;
        return Err(Failure::said(
            Exit::Manifest,
            format!(
                "release {id} has no lock, so nothing says which images it is: run \
                 `dify-agent releases lock {id}`, or set images.allow_unlocked to try it out"
            ),
        ));
    }
    Ok(Chosen { release, lock, beside })
}

/// Fetches the secrets. Files only: no Google identity is asked for.
pub async fn secrets(settings: &Settings, tokens: Option<&Tokens>) -> Result<Secrets, Failure> {
    let manager =
        tokens.map(|tokens| Manager::new(&settings.google.secret_manager, tokens.clone()));
    fetch_all(&settings.secrets, manager.as_ref()).await.map_err(|error| Failure {
        exit: Exit::Secret,
        message: Chain(&error).to_string(),
        permanent: error.is_permanent(),
    })
}

/// Whether any reference needs Google.
pub fn needs_google(settings: &Settings) -> bool {
    settings.secrets.values().any(|reference| matches!(reference, SecretRef::Manager { .. }))
}

/// Everything up to the stack.
pub async fn prepare(settings: &Settings, tokens: Option<Tokens>) -> Result<Prepared, Failure> {
    let Chosen { release, lock, beside } = release(settings)?;
    let secrets = secrets(settings, tokens.as_ref()).await?;
    let machine = machine().map_err(|error| Failure::passing(Exit::Bug, &error))?;
    let stack = wire(settings, secrets.values(), &release, lock.as_ref(), machine)
        .map_err(|error| Failure::lasting(error.exit(), &error))?;
    Ok(Prepared { secrets, release, lock, beside, stack, machine, tokens })
}

/// This node's place on the engine.
pub fn site(settings: &Settings) -> Result<Site, Failure> {
    let logs = match settings.logs.mode {
        dify_common::telemetry::LogMode::Journald => LogDriver::Journald,
        dify_common::telemetry::LogMode::Auto
        | dify_common::telemetry::LogMode::Json
        | dify_common::telemetry::LogMode::Text => LogDriver::JsonFile,
    };
    Site::open(&settings.paths.state, settings.node.clone(), settings.release.clone(), logs)
        .map_err(|error| Failure::lasting(Exit::Disk, &error))
}

/// The migration gate of this node for this stack.
pub async fn gate(
    settings: &Settings,
    prepared: &Prepared,
    engine: &Engine,
    site: &Site,
) -> Result<Gate<Shots>, Failure> {
    let stack = &prepared.stack;
    let digest = image_digest(engine, &stack.migration.image).await?;
    let subject = Subject {
        node: settings.node.clone(),
        release: settings.release.clone(),
        digest,
        post_migration: stack.post_migration.clone(),
        beside: prepared.beside.clone(),
    };
    let shots =
        Shots::new(engine.clone(), site.clone(), stack.migration.clone(), stack.job.clone());
    let options = crate::backends::postgres::options(
        &settings.database,
        prepared.secrets.get(crate::config::settings::SecretName::DatabasePassword),
        settings.certificates.as_deref(),
    );
    Ok(Gate::new(options, subject, shots, prepared.secrets.clone(), Timings::default()))
}

/// What names the image's schema head: the digest it is locked to, or the
/// engine's id of it where nothing is locked.
async fn image_digest(engine: &Engine, image: &str) -> Result<Digest, Failure> {
    let reference: crate::registry::Reference =
        image.parse().map_err(|error| Failure::lasting(Exit::Manifest, &error))?;
    if let Some(digest) = reference.digest() {
        return Ok(digest.clone());
    }
    let facts = engine
        .image(&reference)
        .await
        .map_err(|error| Failure::passing(Exit::Dependency, &error))?;
    facts.and_then(|facts| facts.id.parse().ok()).ok_or_else(|| {
        Failure::said(
            Exit::Manifest,
            format!("image {image} is not on this machine: pull it first"),
        )
    })
}
