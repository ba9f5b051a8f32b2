//! `releases list|show|lock`.

use std::path::{Path, PathBuf};

use dify_common::clock;
use dify_common::gcp::token::Tokens;
use dify_common::ids::ReleaseId;
use dify_common::settings::Environment;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::table::{json, say, table};
use super::{Output, ReleasesVerb, Told, told};
use crate::config::source::DEFAULT_FILE;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::registry::{InvalidReference, Reference, Registry};
use crate::release::lock::Locked;
use crate::release::{Library, Lock, ReleaseError};

/// Where locks are written and found by default.
const RELEASES: &str = "/etc/dify-agent/releases";

#[derive(Debug, Serialize)]
struct Listed {
    release: ReleaseId,
    services: usize,
    images: usize,
    locked: bool,
}

#[derive(Debug, Serialize)]
struct Shown {
    service: String,
    image: String,
}

fn bad(error: ReleaseError) -> Failure {
    Failure::lasting(error.exit(), &error)
}

/// The library a node would use; without settings, the built-in one.
async fn library(told: &Told) -> Library {
    // Asked of a file only: these verbs are also for machines that are no VM,
    // where looking for a metadata server takes seconds.
    let known = told.config.is_some() || Path::new(DEFAULT_FILE).exists();
    let folder = if known {
        told::settings(told).await.ok().and_then(|settings| settings.images.releases_dir)
    } else {
        Some(PathBuf::from(RELEASES)).filter(|folder| folder.is_dir())
    };
    Library::new(folder)
}

/// Runs one of the three.
pub(super) async fn releases(told: &Told, verb: ReleasesVerb) -> Result<Exit, Failure> {
    let library = library(told).await;
    match verb {
        ReleasesVerb::List(output) => list(&library, output),
        ReleasesVerb::Show { id, output } => show(&library, &id, output),
        ReleasesVerb::Lock { id, mirror, out } => {
            lock(&library, &id, mirror.as_deref(), &out).await
        }
    }
}

fn list(library: &Library, output: Output) -> Result<Exit, Failure> {
    let mut listed = Vec::new();
    for release in library.known().map_err(bad)? {
        let manifest = library.manifest(&release).map_err(bad)?;
        let locked = library.lock(&release).map_err(bad)?.is_some();
        let (services, images) = (manifest.services.len(), manifest.images().len());
        listed.push(Listed { release, services, images, locked });
    }
    if output.json {
        json(&listed);
    } else {
        let mut rows = table(&["release", "services", "images", "locked"]);
        for item in &listed {
            let locked = if item.locked { "yes" } else { "no" };
            rows.add_row([
                item.release.as_str(),
                &item.services.to_string(),
                &item.images.to_string(),
                locked,
            ]);
        }
        say(rows.to_string());
    }
    Ok(Exit::Done)
}

fn show(library: &Library, id: &ReleaseId, output: Output) -> Result<Exit, Failure> {
    let manifest = library.manifest(id).map_err(bad)?;
    let lock = library.lock(id).map_err(bad)?;
    let shown: Vec<Shown> = manifest
        .services
        .iter()
        .map(|service| Shown {
            service: service.name.clone(),
            image: lock
                .as_ref()
                .and_then(|lock| lock.reference(&service.image))
                .unwrap_or_else(|| service.image.clone()),
        })
        .collect();
    if output.json {
        json(&shown);
    } else {
        let mut rows = table(&["service", "image"]);
        for item in &shown {
            rows.add_row([&item.service, &item.image]);
        }
        say(rows.to_string());
    }
    Ok(Exit::Done)
}

async fn lock(
    library: &Library,
    id: &ReleaseId,
    mirror: Option<&str>,
    out: &Path,
) -> Result<Exit, Failure> {
    let manifest = library.manifest(id).map_err(bad)?;
    let google = manifest.images().iter().any(|image| {
        let asked = image.parse::<Reference>().and_then(|image| place(image, mirror));
        asked.is_ok_and(|asked| asked.is_google())
    });
    let tokens = if google { Tokens::find(&Environment).await.ok() } else { None };
    let registry = Registry::new(tokens).map_err(|error| Failure::lasting(Exit::Failed, &error))?;
    let invalid = |error: InvalidReference| Failure::lasting(Exit::Manifest, &error);
    let images = manifest.images();
    let bar = ProgressBar::new(images.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    let mut lock = Lock::new(id.clone());
    for image in images {
        bar.set_message(image.to_owned());
        let reference: Reference = image.parse().map_err(invalid)?;
        let asked = place(reference, mirror).map_err(invalid)?;
        let resolved = registry.resolve(&asked).await;
        let resolved = resolved.map_err(|error| Failure::passing(Exit::Dependency, &error))?;
        let locked = Locked {
            digest: resolved.digest,
            media_type: resolved.media_type,
            registry: asked.host().to_owned(),
            resolved_at: clock::now_rfc3339(),
        };
        lock.images.insert(image.to_owned(), locked);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let path = out.join(format!("{id}.lock.yaml"));
    write_whole(&path, &lock.to_yaml()).map_err(|error| Failure {
        message: format!("write {}: {error}", path.display()),
        exit: Exit::Disk,
        permanent: true,
    })?;
    say(format!("locked {} images of {id} in {}", lock.images.len(), path.display()));
    Ok(Exit::Done)
}

/// Where an image is asked for.
fn place(image: Reference, mirror: Option<&str>) -> Result<Reference, InvalidReference> {
    match mirror {
        Some(mirror) => image.mirrored(mirror),
        None => Ok(image),
    }
}

/// Whole or not at all: a reader never sees half a lock.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let part = path.with_extension("part");
    let mut file = std::fs::File::create(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(part, path)
}
