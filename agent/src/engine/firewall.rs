//! Which container may open a connection to which, beyond what Docker's
//! networks say: a chain of our own per node, entered from `DOCKER-USER`
//! (Docker's documented place for it, kept over its restarts) and, for what is
//! addressed to the VM itself, from `INPUT`.
//!
//! Between containers of one bridge the kernel asks iptables only with
//! `net.bridge.bridge-nf-call-iptables=1` (module br_netfilter).

use std::fmt::Write as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use dify_common::ids::NodeId;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::error::{EngineError, EngineErrorKind};
use super::observed::Subnet;

/// One run of iptables, waiting for its lock included.
const DEADLINE: Duration = Duration::from_secs(20);
/// Seconds it waits for the lock (`-w`), which Docker takes as well.
const LOCK_SECONDS: &str = "10";

/// One rule about opening connections; answers are always let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Where the packet is going.
    pub path: Path,
    /// From whom; `None` is anybody.
    pub from: Option<Subnet>,
    /// To whom; `None` is anybody.
    pub to: Option<Subnet>,
    /// To which port; `None` is any protocol and port.
    pub port: Option<Port>,
    /// What then.
    pub verdict: Verdict,
}

/// Through the VM or to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Through: between containers, or out of the VM.
    Through,
    /// To an address of the VM, such as a bridge's.
    ToHost,
}

/// A port of a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// TCP.
    Tcp(u16),
    /// UDP.
    Udp(u16),
}

/// What happens to a connection that matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No further rule of ours: whatever Docker says.
    Pass,
    /// Let through, whatever Docker says.
    Accept,
    /// Refused at once, with an answer, so that nobody waits.
    Reject,
    /// Swallowed.
    Drop,
}

impl Verdict {
    fn target(self) -> &'static str {
        match self {
            Self::Pass => "RETURN",
            Self::Accept => "ACCEPT",
            Self::Reject => "REJECT",
            Self::Drop => "DROP",
        }
    }
}

impl Path {
    const ALL: [Self; 2] = [Self::Through, Self::ToHost];

    fn parent(self) -> &'static str {
        match self {
            Self::Through => "DOCKER-USER",
            Self::ToHost => "INPUT",
        }
    }
}

/// A node's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firewall {
    name: String,
    rules: Vec<Rule>,
}

impl Firewall {
    /// The first rule that matches decides.
    pub fn new(node: &NodeId, rules: Vec<Rule>) -> Self {
        // A chain's name has 28 characters at most, a node's up to 63.
        let hash = hex::encode(&Sha256::digest(node.as_str())[..6]);
        Self { name: format!("DIFY-{hash}"), rules }
    }

    /// Name of the chain for `path`.
    pub fn chain(&self, path: Path) -> String {
        match path {
            Path::Through => self.name.clone(),
            Path::ToHost => format!("{}-IN", self.name),
        }
    }

    /// What `iptables-restore --noflush` reads: both chains, each emptied and
    /// filled in one transaction, nothing else touched.
    pub fn restore_input(&self) -> String {
        let mut text = String::from("*filter\n");
        for path in Path::ALL {
            let chain = self.chain(path);
            let _ = writeln!(text, ":{chain} - [0:0]");
            let _ =
                writeln!(text, "-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN");
            for rule in self.rules.iter().filter(|rule| rule.path == path) {
                let _ = writeln!(text, "-A {chain}{}", rule.matches());
            }
        }
        text.push_str("COMMIT\n");
        text
    }

    /// Arguments of the iptables call that checks (`-C`), inserts (`-I`) or
    /// deletes (`-D`) the way into a chain.
    pub fn jump(&self, path: Path, operation: &str) -> Vec<String> {
        let chain = self.chain(path);
        ["-w", LOCK_SECONDS, operation, path.parent(), "-j", &chain].map(str::to_owned).to_vec()
    }

    /// Puts the rules in force. Any number of times: the same rules again
    /// change nothing, and connections that stand are not cut.
    pub async fn apply(&self) -> Result<(), EngineError> {
        let restore = ["-w", LOCK_SECONDS, "--noflush"].map(str::to_owned);
        self.run("iptables-restore", &restore, &self.restore_input()).await?;
        for path in Path::ALL {
            if self.try_run("iptables", &self.jump(path, "-C"), "").await?.status.success() {
                continue;
            }
            self.run("iptables", &self.jump(path, "-I"), "").await?;
        }
        Ok(())
    }

    /// Takes the rules out of force. What is not there is fine.
    pub async fn remove(&self) -> Result<(), EngineError> {
        for path in Path::ALL {
            // Each call deletes one; two agents may both have put one.
            while self.try_run("iptables", &self.jump(path, "-D"), "").await?.status.success() {}
            for operation in ["-F", "-X"] {
                let arguments =
                    ["-w", LOCK_SECONDS, operation, &self.chain(path)].map(str::to_owned);
                let _ = self.try_run("iptables", &arguments, "").await?;
            }
        }
        Ok(())
    }

    async fn run(
        &self,
        program: &'static str,
        arguments: &[String],
        input: &str,
    ) -> Result<(), EngineError> {
        let output = self.try_run(program, arguments, input).await?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let found = format!("{program} {}: {}", arguments.join(" "), said.trim());
        Err(self.failed(found))
    }

    async fn try_run(
        &self,
        program: &'static str,
        arguments: &[String],
        input: &str,
    ) -> Result<Output, EngineError> {
        let run = async {
            let mut child = Command::new(program)
                .args(arguments)
                .env_clear()
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes()).await?;
            }
            child.wait_with_output().await
        };
        match tokio::time::timeout(DEADLINE, run).await {
            Ok(done) => done.map_err(|error| self.failed(format!("run {program}: {error}"))),
            Err(_) => {
                Err(EngineError::deadline("set the packet filter's chain", &self.name, DEADLINE))
            }
        }
    }

    fn failed(&self, found: String) -> EngineError {
        EngineError::new(
            EngineErrorKind::Firewall,
            "set the packet filter's chain",
            &self.name,
            found,
        )
    }
}

impl Rule {
    fn matches(&self) -> String {
        let mut text = String::new();
        for (flag, subnet) in [("-s", self.from), ("-d", self.to)] {
            if let Some(Subnet { base, prefix }) = subnet {
                let _ = write!(text, " {flag} {base}/{prefix}");
            }
        }
        match self.port {
            Some(Port::Tcp(port)) => drop(write!(text, " -p tcp -m tcp --dport {port}")),
            Some(Port::Udp(port)) => drop(write!(text, " -p udp -m udp --dport {port}")),
            None => {}
        }
        let _ = write!(text, " -j {}", self.verdict.target());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_the_input_of_iptables_restore() {
        let sandbox = Subnet::parse("10.77.0.66/32");
        let rule = |path, from, to, port, verdict| Rule { path, from, to, port, verdict };
        let rules = vec![
            rule(
                Path::Through,
                Subnet::parse("10.77.0.0/26"),
                sandbox,
                Some(Port::Tcp(8194)),
                Verdict::Pass,
            ),
            rule(Path::Through, sandbox, None, None, Verdict::Reject),
            rule(Path::ToHost, sandbox, None, Some(Port::Udp(53)), Verdict::Accept),
            rule(Path::ToHost, sandbox, None, None, Verdict::Drop),
        ];
        let firewall = Firewall::new(&"n1".parse().expect("id"), rules);
        let chain = firewall.chain(Path::Through);
        let expected = "*filter\n\
            :CHAIN - [0:0]\n\
            -A CHAIN -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
            -A CHAIN -s 10.77.0.0/26 -d 10.77.0.66/32 -p tcp -m tcp --dport 8194 -j RETURN\n\
            -A CHAIN -s 10.77.0.66/32 -j REJECT\n\
            :CHAIN-IN - [0:0]\n\
            -A CHAIN-IN -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
            -A CHAIN-IN -s 10.77.0.66/32 -p udp -m udp --dport 53 -j ACCEPT\n\
            -A CHAIN-IN -s 10.77.0.66/32 -j DROP\n\
            COMMIT\n";
        assert_eq!(firewall.restore_input(), expected.replace("CHAIN", &chain));
        assert_eq!(
            firewall.jump(Path::Through, "-C"),
            ["-w", "10", "-C", "DOCKER-USER", "-j", &chain]
        );
    }

    #[test]
    fn chains_fit_into_the_kernel_and_differ_by_node() {
        let long = "a".repeat(63).parse().expect("id");
        let firewall = Firewall::new(&long, vec![]);
        assert!(firewall.chain(Path::ToHost).len() <= 28);
        assert_ne!(
            firewall.chain(Path::Through),
            Firewall::new(&"b".parse().expect("id"), vec![]).chain(Path::Through)
        );
    }
}
