//! `status`, `drain`, `undrain`: the running agent, asked over its socket.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use dify_common::wire::status::{AgentStatus, Phase};
use tokio::time::sleep;

use super::table::{json, say, table};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::ops::OpsClient;

/// A live table is redrawn, and a drain asked about, this often.
const EVERY: Duration = Duration::from_secs(1);
/// Clears the terminal and goes to its first line (ECMA-48).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Shows the status once, or every second until interrupted. The exit code
/// says whether the node serves: 0 yes, 2 on its way, 1 failed.
pub async fn status(socket: &Path, as_json: bool, watch: bool) -> Result<Exit, Failure> {
    let client = OpsClient::new(socket);
    loop {
        let status = ask(&client).await?;
        if as_json {
            json(&status);
        } else {
            let clear = if watch { CLEAR } else { "" };
            say(format!("{clear}{}", render(&status)));
        }
        if !watch {
            return Ok(exit_of(&status));
        }
        sleep(EVERY).await;
    }
}

/// Asks the node to leave service; `wait`: returns when nothing is in flight.
pub async fn drain(socket: &Path, wait: bool) -> Result<Exit, Failure> {
    let client = OpsClient::new(socket);
    client.drain().await.map_err(|error| Failure::passing(Exit::Dependency, &error))?;
    if !wait {
        return Ok(Exit::Done);
    }
    let (mut last, mut began) = (Vec::new(), false);
    loop {
        let status = ask(&client).await?;
        if status.drained {
            return Ok(Exit::Done);
        }
        // Taken up within a moment; gone again means that somebody called it back.
        let draining = status.phase == Phase::Draining;
        if began && !draining {
            return Err(Failure::said(Exit::Failed, "the node was called back into service"));
        }
        began |= draining;
        if status.waiting_on != last {
            say(status.waiting_on.join("; "));
            last = status.waiting_on;
        }
        sleep(EVERY).await;
    }
}

/// Asks the node to serve again.
pub async fn undrain(socket: &Path) -> Result<Exit, Failure> {
    let client = OpsClient::new(socket);
    client.undrain().await.map_err(|error| Failure::passing(Exit::Dependency, &error))?;
    Ok(Exit::Done)
}

async fn ask(client: &OpsClient) -> Result<AgentStatus, Failure> {
    client.status().await.map_err(|error| Failure::passing(Exit::Dependency, &error))
}

fn exit_of(status: &AgentStatus) -> Exit {
    match status.phase {
        Phase::Serving if status.ready => Exit::Done,
        Phase::Failed => Exit::Failed,
        Phase::Booting
        | Phase::Preflight
        | Phase::Pulling
        | Phase::Gating
        | Phase::Starting
        | Phase::Serving
        | Phase::Degraded
        | Phase::Draining
        | Phase::Stopped
        | Phase::Unknown => Exit::StillGoing,
    }
}

/// The status as a person reads it: the verdict first, then what is behind it.
pub fn render(status: &AgentStatus) -> String {
    let mut out = String::new();
    let release = status.release.as_deref().unwrap_or("?");
    let word = |yes: bool| if yes { "200" } else { "503" };
    let _ = writeln!(
        out,
        "{}  Dify {release}  {} since {}\n/health {}   /health/live {}",
        status.node,
        status.phase,
        status.since,
        word(status.ready),
        word(status.live),
    );
    for (head, items) in [
        ("missing", &status.missing),
        ("faults", &status.faults),
        ("waiting on", &status.waiting_on),
    ] {
        if !items.is_empty() {
            let _ = writeln!(out, "{head}: {}", items.join("; "));
        }
    }
    if let Some(failure) = &status.failure {
        let _ = writeln!(out, "failed ({}): {}", failure.kind, failure.message);
    }
    if !status.timeline.is_empty() {
        let phases: Vec<String> = status
            .timeline
            .iter()
            .map(|done| {
                let (seconds, tenths) = (done.millis / 1000, done.millis % 1000 / 100);
                format!("{} {seconds}.{tenths} s", done.phase)
            })
            .collect();
        let _ = writeln!(out, "phases: {}", phases.join(" > "));
    }
    if !status.containers.is_empty() {
        let mut containers = table(&["service", "state", "ready", "restarts", "image", "detail"]);
        for container in &status.containers {
            containers.add_row([
                container.service.as_str(),
                &container.state,
                if container.ready { "yes" } else { "no" },
                &container.restarts.to_string(),
                &short(&container.image),
                container.detail.as_deref().unwrap_or_default(),
            ]);
        }
        let _ = writeln!(out, "\n{containers}");
    }
    if !status.edges.is_empty() {
        let mut edges = table(&["edge", "state", "in flight", "upgraded", "requests"]);
        for edge in &status.edges {
            edges.add_row([
                edge.instance.clone(),
                format!("{:?}", edge.state).to_lowercase(),
                edge.in_flight.to_string(),
                edge.upgraded.to_string(),
                edge.requests.to_string(),
            ]);
        }
        let _ = writeln!(out, "\n{edges}");
    }
    for finding in &status.findings {
        let _ = writeln!(out, "\nfinding {}: {}", finding.code, finding.message);
    }
    out.trim_end().to_owned()
}

/// An image reference a person can tell from another: the digest cut short.
fn short(image: &str) -> String {
    match image.split_once("@sha256:") {
        Some((name, digest)) => {
            let name = name.rsplit('/').next().unwrap_or(name);
            format!("{name}@{}", digest.get(..12).unwrap_or(digest))
        }
        None => image.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Board;

    #[test]
    fn a_person_sees_the_verdict_and_what_is_missing() {
        let board = Board::new("n1".parse().expect("valid"), false);
        let status = board.status();
        let text = render(&status);
        assert!(text.contains("/health 503   /health/live 200"), "{text}");
        assert!(text.contains("missing: booting"), "{text}");
        assert_eq!(exit_of(&status), Exit::StillGoing);
    }

    #[test]
    fn a_digest_is_cut_short() {
        let image = format!("127.0.0.1:5000/langgenius/dify-api@sha256:{}", "ab".repeat(32));
        assert_eq!(short(&image), "dify-api@abababababab");
        assert_eq!(short("a/b:1"), "a/b:1");
    }
}
