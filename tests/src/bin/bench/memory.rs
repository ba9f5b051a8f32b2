//! Resident memory of the programs, as the kernel counts it.

use std::time::Duration;

use ::tests::node::Node;
use ::tests::{Broken, Doing as _, Outcome};
use serde::Serialize;
use tokio::time::interval;

/// A node that serves is left alone this long before it is looked at.
const SETTLE: u32 = 10;
/// Looks, a second apart; the largest counts.
const LOOKS: u32 = 10;

/// Bytes of one program.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Resident {
    /// `VmRSS` of proc(5): all resident pages, those of the program file included.
    pub(crate) bytes: u64,
    /// `RssAnon`: what the program allocated.
    pub(crate) anonymous: u64,
}

/// Both programs of a node.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) agent: Resident,
    pub(crate) edge: Resident,
}

/// Looks at a node that serves.
pub(crate) async fn at_rest(node: &Node) -> Outcome<Memory> {
    let agent = node.agent_pid().ok_or_else(|| Broken::new("the agent does not run"))?;
    let edge = child_named("dify-edge")?;
    let mut memory = Memory { agent: Resident::default(), edge: Resident::default() };
    let mut seconds = interval(Duration::from_secs(1));
    for second in 0..SETTLE + LOOKS {
        seconds.tick().await;
        // The node serves: a page through the front door.
        let page = node.get("/apps").await.map_err(Broken::new)?;
        if page.status() != 200 {
            return Err(Broken::new(format!("the node at rest answers {}", page.status())));
        }
        if second >= SETTLE {
            memory.agent = memory.agent.max(of(agent)?);
            memory.edge = memory.edge.max(of(edge)?);
        }
    }
    Ok(memory)
}

impl Resident {
    fn max(self, other: Self) -> Self {
        if other.bytes > self.bytes { other } else { self }
    }

    fn parse(status: &str) -> Option<Self> {
        let kibibytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        };
        let (bytes, anonymous) = (kibibytes("VmRSS")? * 1024, kibibytes("RssAnon")? * 1024);
        Some(Self { bytes, anonymous })
    }
}

fn of(pid: u32) -> Outcome<Resident> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).doing(|| format!("read {path}"))?;
    Resident::parse(&text).ok_or_else(|| Broken::new(format!("{path} tells no memory")))
}

/// The process of that name that we started. There is one.
fn child_named(name: &str) -> Outcome<u32> {
    let parent = format!("PPid:\t{}", std::process::id());
    let ours = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.starts_with(&format!("Name:\t{name}\n")) && status.lines().any(|line| line == parent)
    };
    let all = std::fs::read_dir("/proc").doing(|| "list /proc".into())?;
    let mut pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.find(ours).ok_or_else(|| Broken::new(format!("no child of ours is named {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_words_are_read() {
        let status = "Name:\tx\nVmRSS:\t   2048 kB\nRssAnon:\t    512 kB\n";
        let read = Resident::parse(status).unwrap();
        assert_eq!((read.bytes, read.anonymous), (2 << 20, 512 << 10));
        assert!(Resident::parse("Name:\tx\n").is_none());
    }
}
