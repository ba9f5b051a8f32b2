//! A Docker engine of one test's own, to be filled up and restarted: in a
//! network namespace, so that neither its packet filter nor its networks meet
//! those of the engine everybody else uses.
//!
//! ```text
//!  the machine                      namespace of the run
//!  10.214.N.1 ───── veth pair ───── 10.214.N.2      dockerd, dify-agent, dify-edge
//!  bed.host: links, metadata        default route   127.0.0.1:REGISTRY is sent to the bed's
//! ```

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::child::{self, Child, Launch};
use crate::docker::Engine;
use crate::wait::wait_for;
use crate::{Doing as _, Outcome};

/// With a managed containerd to start, on a busy machine.
const START: Duration = Duration::from_secs(30);
/// Docker gives its containers 15 s (dockerd's `shutdown-timeout`).
const STOP: Duration = Duration::from_secs(40);

/// The engine and its namespace. Dropping it ends both.
#[derive(Debug)]
pub struct Dockerd {
    /// Where it listens.
    pub socket: PathBuf,
    /// Name of its network namespace, for `ip netns`.
    pub namespace: String,
    folder: PathBuf,
    data: PathBuf,
    child: Option<Child>,
}

/// Makes the namespace and its way out. `$1` name, `$2` number, `$3` address of
/// the bed, `$4` port of the registry on loopback, `$5` its port at the bed.
const NAMESPACE: &str = r#"
set -e
# Of a run that was killed.
ip link delete "df$2h" 2>/dev/null || true
ip netns add "$1"
ip link add "df$2h" type veth peer name "df$2n"
ip link set "df$2n" netns "$1"
ip addr add "10.214.$2.1/30" dev "df$2h"
ip link set "df$2h" up
inside() { ip netns exec "$1" "${@:2}"; }
inside "$1" ip addr add "10.214.$2.2/30" dev "df$2n"
inside "$1" ip link set lo up
inside "$1" ip link set "df$2n" up
inside "$1" ip route add default via "10.214.$2.1"
inside "$1" sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1
# Docker takes a registry on loopback without TLS, and no other.
inside "$1" iptables -t nat -A OUTPUT -p tcp -d 127.0.0.1 --dport "$4" -j DNAT --to-destination "$3:$5"
inside "$1" iptables -t nat -A POSTROUTING -o "df$2n" -j MASQUERADE
"#;

impl Dockerd {
    /// Starts one with its data in `data`. `number` names the namespace: that of
    /// the node's subnet, which is nobody else's. `registry` is the port that
    /// agents are told, on loopback; `bed` the same registry at the bed's address.
    pub async fn start(
        folder: &Path,
        data: &Path,
        number: u8,
        registry: u16,
        bed: SocketAddr,
    ) -> Outcome<Self> {
        let namespace = format!("dify-fleet-{number}");
        let folder = folder.to_owned();
        std::fs::create_dir_all(&folder).doing(|| format!("create {}", folder.display()))?;
        let mut dockerd = Self {
            socket: folder.join("docker.sock"),
            data: data.to_owned(),
            namespace,
            folder,
            child: None,
        };
        dockerd.forget();
        let IpAddr::V4(address) = bed.ip() else {
            return Err(crate::Broken::new("the bed has no IPv4 address"));
        };
        let mut make = Command::new("bash");
        make.args(["-c", NAMESPACE, "bash", &dockerd.namespace, &number.to_string()]);
        make.args([address.to_string(), registry.to_string(), bed.port().to_string()]);
        child::run(&mut make).await?;
        dockerd.resume().await?;
        Ok(dockerd)
    }

    /// Stops it as systemd does; its containers end with it.
    pub async fn stop(&mut self) -> Outcome {
        match self.child.take() {
            Some(child) => child.stop("TERM", STOP).await.map(drop),
            None => Ok(()),
        }
    }

    /// Starts it again.
    pub async fn resume(&mut self) -> Outcome {
        let launch = Launch { program: Path::new("nsenter"), user: None, at_our_death: "TERM" };
        let mut command = launch.command();
        // Not `ip netns exec`: it hides the control groups under a new /sys.
        command.arg(format!("--net=/run/netns/{}", self.namespace)).args(["--", "dockerd"]);
        command.arg("--data-root").arg(&self.data);
        command.arg("--exec-root").arg(self.folder.join("exec"));
        command.arg("--pidfile").arg(self.folder.join("pid"));
        command.arg(format!("--host=unix://{}", self.socket.display()));
        // The default bridge would have the address of the machine's own, which is the bed's.
        command.arg("--bridge=none");
        let mut child = Child::start("dockerd", command, self.folder.join("dockerd.log"))?;
        wait_for("dockerd", Duration::from_millis(100), START, async || {
            child.check()?;
            self.engine().await.map(drop).map_err(|broken| format!("{broken:?}"))
        })
        .await?;
        self.child = Some(child);
        Ok(())
    }

    /// A client of it.
    pub async fn engine(&self) -> Outcome<Engine> {
        Engine::connect_to(&self.socket).await
    }

    fn forget(&self) {
        let mut delete = std::process::Command::new("ip");
        let delete = delete.args(["netns", "delete", &self.namespace]);
        // Missing is what it should be.
        let _ = delete.stderr(std::process::Stdio::null()).status();
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // Killed, it would leave its containerd and their mounts behind.
        if let Some(pid) = self.child.as_ref().and_then(Child::pid) {
            let script = r#"kill -TERM "$0"; for _ in $(seq 200); do [ -e "/proc/$0/exe" ] || exit 0; sleep 0.1; done"#;
            let mut end = std::process::Command::new("bash");
            let _ = end.args(["-c", script, &pid.to_string()]).status();
        }
        let mut unmount = std::process::Command::new("umount");
        let _ = unmount.arg("-l").arg(&self.data).stderr(std::process::Stdio::null()).status();
        self.forget();
    }
}
