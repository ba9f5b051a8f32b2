//! Dify's own images: found, and pinned to what the registry has today.

use std::path::Path;
use std::time::Duration;

use tests::bed::Endpoints;
use tests::child::Launch;
use tests::{Broken, Doing as _, Outcome, catalog, program};
use tokio::time::timeout;

use super::screen::{Screen, Tone};
use super::vm::Real;

/// The release whose manifest was held against the images themselves.
pub(crate) const RELEASE: &str = "1.14.2";
/// A few small documents; a registry that is away is told sooner.
const LOCK: Duration = Duration::from_mins(2);
/// Where nothing listens: this machine is no VM of Google's, and what it may be
/// told there is not asked for.
const NO_METADATA: &str = "127.0.0.1:9";

/// Why the images cannot be used, and the exit code `releases lock` had for it.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The registry is away, or has not what it should have.
    Registry(u8),
    /// The demo itself.
    Broken(Broken),
}

impl From<Broken> for Refusal {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// Writes the release's lock, by the agent's own verb.
pub(crate) async fn lock(
    screen: &Screen,
    bed: &Endpoints,
    mirror: Option<&str>,
) -> Result<Real, Refusal> {
    let releases = bed.folder.join("real-releases");
    copy_manifest(&releases)?;
    let mut verb = vec!["releases", "lock", RELEASE];
    verb.extend(mirror.into_iter().flat_map(|mirror| ["--mirror", mirror]));
    let typed = format!("dify-agent {}", verb.join(" "));
    screen.command(&typed);
    let moving = screen.moving(format!("asking {} for digests", mirror.unwrap_or("docker.io")));

    let agent = program::path("dify-agent")?;
    let mut command = Launch { program: &agent, user: None, at_our_death: "KILL" }.command();
    // Our own environment, which may name a proxy; no document but the built-in manifests.
    command.arg("--config").arg(bed.folder.join("no-document")).args(&verb);
    command.arg("--out").arg(&releases).env("GCE_METADATA_HOST", NO_METADATA);
    let running = timeout(LOCK, command.output()).await;
    let output = running.doing(|| typed.clone())?.doing(|| typed.clone())?;
    drop(moving);
    if output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        screen.line(format!("  {}", said.trim()));
        return Ok(Real { mirror: mirror.map(str::to_owned), releases });
    }
    let code = output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    let complaint = String::from_utf8_lossy(&output.stderr);
    explain(screen, mirror, complaint.trim());
    Err(Refusal::Registry(code))
}

fn explain(screen: &Screen, mirror: Option<&str>, complaint: &str) {
    screen.line(screen.paint(Tone::Bad, "  Dify's own images cannot be had from here."));
    let registry = mirror.unwrap_or("docker.io");
    let elsewhere = match mirror {
        None => "name a mirror: make demo DIFY=real DIFY_MIRROR=registry.example.com/docker.io,",
        Some(_) => "name another mirror, or none for docker.io,",
    };
    let rows = [
        ("tried", format!("the images of Dify {RELEASE} at {registry}, without credentials")),
        ("found", complaint.to_owned()),
        (
            "to do",
            format!(
                "run it where {registry} can be reached (HTTPS_PROXY is honoured; the Docker engine has a proxy setting of its own), or {elsewhere} with langgenius/* and ubuntu/squid under that prefix; `make demo` alone needs no registry but its own"
            ),
        ),
    ];
    for (label, text) in rows {
        screen.prose(label, &text);
    }
}

fn copy_manifest(to: &Path) -> Outcome {
    std::fs::create_dir_all(to).doing(|| format!("create {}", to.display()))?;
    let name = format!("{RELEASE}.yaml");
    let from = catalog::manifests().join(&name);
    std::fs::copy(&from, to.join(&name)).doing(|| format!("copy {}", from.display())).map(drop)
}
