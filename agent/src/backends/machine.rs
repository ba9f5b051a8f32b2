//! This VM: room, memory, cores and ports.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use super::{CheckLine, Group};
use crate::dify::stack::Machine;

const GROUP: Group = Group::Machine;
const GIB: u64 = 1 << 30;

/// What the release wants of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Bytes free below Docker's root: the images, unpacked, and room to run.
    pub docker_free: u64,
    /// Bytes free below the state folder.
    pub state_free: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Cores.
    pub cores: u32,
}

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Docker's data root.
    pub docker_root: PathBuf,
    /// [`crate::config::settings::Paths::state`].
    pub state: PathBuf,
    /// Addresses this agent is about to listen on.
    pub listen: Vec<SocketAddr>,
}

/// What was found.
#[derive(Debug)]
pub struct Facts {
    /// Bytes free for Docker.
    pub docker_free: io::Result<u64>,
    /// Bytes free for our state; an error also when it cannot be written.
    pub state_free: io::Result<u64>,
    /// Cores and memory.
    pub machine: io::Result<Machine>,
    /// Addresses that cannot be listened on, and why.
    pub taken: Vec<(SocketAddr, io::Error)>,
}

/// Bytes an unprivileged process may still write below `path`, or below its
/// nearest folder that exists.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let about = rustix::fs::statvfs(there)?;
    if about.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
    }
    Ok(about.f_bavail.saturating_mul(about.f_frsize))
}

/// Cores and memory of this machine.
pub fn machine() -> io::Result<Machine> {
    let cores = std::thread::available_parallelism()?;
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let memory =
        total_memory(&text).ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?;
    let cores = u32::try_from(cores.get()).unwrap_or(u32::MAX);
    Ok(Machine { cores, memory })
}

/// `MemTotal` of proc(5), in bytes.
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibi: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibi * 1024)
}

/// Collects the facts.
pub fn look(places: &Places) -> Facts {
    let taken = places
        .listen
        .iter()
        .filter_map(|address| TcpListener::bind(address).err().map(|error| (*address, error)))
        .collect();
    Facts {
        docker_free: free_bytes(&places.docker_root),
        state_free: free_bytes(&places.state),
        machine: machine(),
        taken,
    }
}

/// The lines for this machine. Pure.
pub fn judge(places: &Places, facts: &Facts, need: &Need) -> Vec<CheckLine> {
    let mut lines = vec![
        disk(&places.docker_root, &facts.docker_free, need.docker_free),
        disk(&places.state, &facts.state_free, need.state_free),
    ];
    match &facts.machine {
        Ok(machine) => {
            let found = gib(machine.memory);
            // A machine sold as 8 GiB shows a little less.
            lines.push(if machine.memory.saturating_add(need.memory / 10) < need.memory {
                let advice = format!("use a machine type with {} or more", gib(need.memory));
                CheckLine::fail(GROUP, "memory", found, advice)
            } else {
                CheckLine::ok(GROUP, "memory", found)
            });
            let found = machine.cores.to_string();
            lines.push(if machine.cores < need.cores {
                let advice = format!("{} or more start Dify in better time", need.cores);
                CheckLine::warn(GROUP, "cores", found, advice)
            } else {
                CheckLine::ok(GROUP, "cores", found)
            });
        }
        Err(error) => {
            lines.push(CheckLine::warn(GROUP, "memory", error.to_string(), "is /proc mounted?"));
        }
    }
    for address in &places.listen {
        lines.push(match facts.taken.iter().find(|(taken, _)| taken == address) {
            None => CheckLine::ok(GROUP, "port", format!("{address} is free")),
            Some((_, error)) => CheckLine::fail(
                GROUP,
                "port",
                format!("{address}: {error}"),
                "stop what listens there (ss -ltnp), or change the address",
            ),
        });
    }
    lines
}

fn disk(path: &Path, free: &io::Result<u64>, need: u64) -> CheckLine {
    let path = path.display();
    match free {
        Ok(free) if *free < need => CheckLine::fail(
            GROUP,
            "disk",
            format!("{path}: {} free", gib(*free)),
            format!("{} are needed: enlarge the disk, or remove what is not needed", gib(need)),
        ),
        Ok(free) => CheckLine::ok(GROUP, "disk", format!("{path}: {} free", gib(*free))),
        Err(error) => CheckLine::fail(
            GROUP,
            "disk",
            format!("{path}: {error}"),
            "repair or remount the file system",
        ),
    }
}

/// With one decimal, without floating point.
fn gib(bytes: u64) -> String {
    format!("{}.{} GiB", bytes / GIB, bytes % GIB * 10 / GIB)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::{Verdict, exit};
    use crate::exit::Exit;

    fn judged(
        docker_free: io::Result<u64>,
        memory: u64,
        cores: u32,
        taken: bool,
    ) -> Vec<CheckLine> {
        let address: SocketAddr = "127.0.0.1:1081".parse().expect("valid");
        let places = Places {
            docker_root: "/var/lib/docker".into(),
            state: "/var/lib/dify-agent".into(),
            listen: vec![address],
        };
        let need = Need { docker_free: 10 * GIB, state_free: GIB, memory: 8 * GIB, cores: 2 };
        let busy = || io::Error::from(io::ErrorKind::AddrInUse);
        let facts = Facts {
            docker_free,
            state_free: Ok(2 * GIB),
            machine: Ok(Machine { cores, memory }),
            taken: if taken { vec![(address, busy())] } else { Vec::new() },
        };
        judge(&places, &facts, &need)
    }

    #[test]
    fn what_is_too_small_is_said() {
        let names = |lines: Vec<CheckLine>, verdict| -> Vec<&str> {
            lines.iter().filter(|line| line.verdict == verdict).map(|line| line.name).collect()
        };
        // 7.8 GiB is what a machine of 8 GiB shows.
        let good = judged(Ok(10 * GIB), 8 * GIB - GIB / 5, 2, false);
        assert!(good.iter().all(|line| line.verdict == Verdict::Ok), "{good:?}");
        let full = judged(Ok(GIB), 8 * GIB, 2, false);
        assert_eq!(exit(&full), Exit::Disk);
        let read_only = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(names(judged(Err(read_only), 8 * GIB, 2, false), Verdict::Fail), ["disk"]);
        assert_eq!(
            names(judged(Ok(10 * GIB), 4 * GIB, 1, true), Verdict::Fail),
            ["memory", "port"]
        );
        assert_eq!(names(judged(Ok(10 * GIB), 8 * GIB, 1, false), Verdict::Warn), ["cores"]);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let there = look(&Places {
            docker_root: "/does/not/exist/yet".into(),
            state: "/".into(),
            listen: vec!["127.0.0.1:0".parse().expect("valid")],
        });
        assert!(there.docker_free.is_ok() && there.taken.is_empty());
        assert!(there.machine.expect("Linux").memory > 0);
        assert_eq!(total_memory("MemTotal:  8 kB\n"), Some(8192));
    }
}
