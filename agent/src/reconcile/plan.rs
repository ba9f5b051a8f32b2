//! What to do next with the node's containers: a pure function of the wanted
//! stack and what was seen. Two rules shape it: what serves starts first, and
//! no more containers start at once than there are cores, because three Python
//! imports on two cores take three times as long as one (measured on Dify
//! 1.14.2: api alone 31 s, with worker and beat at once 89 to 115 s).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use dify_common::retry::Backoff;

/// A container of the stack, and how it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Dify's service name.
    pub service: String,
    /// Services that must be ready first.
    pub after: Vec<String>,
    /// How it was seen.
    pub seen: Seen,
    /// Exits and failed actions in a row without having been ready for long.
    pub failures: u32,
    /// Since the last of them.
    pub ago: Duration,
}

/// How a container was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Absent,
    /// It exists, made from another spec.
    Outdated,
    /// It exists, made from this spec, and does not run.
    Stopped,
    /// An action of ours on it is under way.
    Busy,
    /// Runs, and was not ready yet.
    Starting,
    /// Answers.
    Ready,
    /// Was ready in this run, does not answer now.
    Silent,
    /// Runs and has not answered for so long that it never will.
    Stuck,
}

/// One step; names its target and leaves no choice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Move {
    /// Make the container and start it.
    Create(String),
    /// Start the container that is there.
    Start(String),
    /// Stop and remove the container, then make the wanted one.
    Replace(String),
}

impl Move {
    /// Its target.
    pub fn service(&self) -> &str {
        let (Self::Create(service) | Self::Start(service) | Self::Replace(service)) = self;
        service
    }

    /// Its word in logs and tables.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Start(_) => "start",
            Self::Replace(_) => "replace",
        }
    }
}

/// Why a container is not started now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingOn {
    /// Another container must be ready first.
    Needs {
        /// Who waits.
        service: String,
        /// For whom.
        on: String,
    },
    /// As many containers are starting as there are cores.
    Cores {
        /// Who waits.
        service: String,
        /// How many start at once.
        slots: usize,
    },
    /// It exited; the next start is due later.
    Backoff {
        /// Who waits.
        service: String,
        /// Exits in a row.
        failures: u32,
        /// Until the next start.
        left: Duration,
    },
    /// It runs and does not answer yet.
    Readiness {
        /// Who is waited for.
        service: String,
    },
}

impl fmt::Display for WaitingOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Needs { service, on } => write!(f, "{service} waits for {on}"),
            Self::Cores { service, slots } => {
                write!(f, "{service} waits for a core: {slots} containers start at once")
            }
            // Without the time left, which would make it another reason each second.
            Self::Backoff { service, failures, .. } => {
                let seconds = restart_delay(*failures).as_secs();
                write!(
                    f,
                    "{service} failed {failures} times in a row, next start {seconds} s later"
                )
            }
            Self::Readiness { service } => write!(f, "{service} runs and does not answer yet"),
        }
    }
}

/// What to do now, and what is not done and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a plan that nobody carries out or reads changes nothing"]
pub struct Plan {
    /// In order.
    pub moves: Vec<Move>,
    /// Why the rest waits.
    pub waiting_on: Vec<WaitingOn>,
}

/// Delay before a container that exited is started again: 1 s doubling to 1 min.
/// The first start after a reboot or a clean stop is at once.
pub fn restart_delay(failures: u32) -> Duration {
    let backoff = Backoff::try_new(Duration::from_secs(1), Duration::from_mins(1));
    match failures {
        0 => Duration::ZERO,
        n => backoff.expect("1 s is less than 1 min").ceiling(n - 1),
    }
}

/// `parts` in start order; `slots`: how many may be starting at once.
pub fn plan(parts: &[Part], slots: usize) -> Plan {
    let seen: BTreeMap<&str, &Seen> =
        parts.iter().map(|part| (part.service.as_str(), &part.seen)).collect();
    let mut plan = Plan::default();
    let mut starting =
        parts.iter().filter(|part| matches!(part.seen, Seen::Starting | Seen::Busy)).count();
    for part in parts {
        let service = part.service.clone();
        let step = match &part.seen {
            Seen::Ready | Seen::Busy | Seen::Silent => continue,
            Seen::Starting => {
                plan.waiting_on.push(WaitingOn::Readiness { service });
                continue;
            }
            Seen::Stopped => Move::Start(service.clone()),
            Seen::Absent => Move::Create(service.clone()),
            Seen::Outdated | Seen::Stuck => Move::Replace(service.clone()),
        };
        let left = restart_delay(part.failures).saturating_sub(part.ago);
        if !left.is_zero() {
            let failures = part.failures;
            plan.waiting_on.push(WaitingOn::Backoff { service, failures, left });
            continue;
        }
        // A need that was up and is silent now holds nobody back: it may be
        // silent because of the very thing that is starting.
        let unmet = part.after.iter().find(|need| {
            !matches!(seen.get(need.as_str()), None | Some(Seen::Ready | Seen::Silent))
        });
        if let Some(on) = unmet {
            plan.waiting_on.push(WaitingOn::Needs { service, on: on.clone() });
        } else if starting >= slots.max(1) {
            plan.waiting_on.push(WaitingOn::Cores { service, slots: slots.max(1) });
        } else {
            starting += 1;
            plan.moves.push(step);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(service: &str, after: &[&str], seen: Seen) -> Part {
        let after = after.iter().map(|need| (*need).to_owned()).collect();
        Part { service: service.into(), after, seen, failures: 0, ago: Duration::ZERO }
    }

    #[test]
    fn a_bare_node_starts_what_serves_and_no_more_than_cores() {
        let parts = [
            part("api", &[], Seen::Absent),
            part("web", &[], Seen::Absent),
            part("worker", &[], Seen::Absent),
        ];
        let plan = plan(&parts, 2);
        assert_eq!(plan.moves, [Move::Create("api".into()), Move::Create("web".into())]);
        assert_eq!(plan.waiting_on, [WaitingOn::Cores { service: "worker".into(), slots: 2 }],);
    }

    #[test]
    fn needs_come_first() {
        let parts = [
            part("ssrf_proxy", &[], Seen::Starting),
            part("sandbox", &["ssrf_proxy"], Seen::Absent),
        ];
        let found = plan(&parts, 4);
        assert!(found.moves.is_empty());
        assert!(
            found
                .waiting_on
                .contains(&WaitingOn::Needs { service: "sandbox".into(), on: "ssrf_proxy".into() })
        );
    }

    #[test]
    fn a_settled_stack_has_nothing_to_do() {
        let parts = [part("api", &[], Seen::Ready), part("web", &["api"], Seen::Ready)];
        assert_eq!(plan(&parts, 2), Plan::default());
    }

    #[test]
    fn failures_in_a_row_wait_longer_and_a_first_start_does_not() {
        let web = part("web", &[], Seen::Stopped);
        assert_eq!(plan(std::slice::from_ref(&web), 2).moves, [Move::Start("web".into())]);
        for seen in [Seen::Stopped, Seen::Absent, Seen::Outdated] {
            let failing = Part { seen, failures: 4, ago: Duration::from_secs(5), ..web.clone() };
            let found = plan(&[failing], 2);
            assert!(found.moves.is_empty());
            let left = Duration::from_secs(3);
            let service = "web".to_owned();
            assert_eq!(found.waiting_on, [WaitingOn::Backoff { service, failures: 4, left }]);
        }
        assert_eq!(restart_delay(1000), Duration::from_mins(1));
    }

    #[test]
    fn a_changed_spec_replaces_only_that_container() {
        let parts = [part("api", &[], Seen::Ready), part("web", &[], Seen::Outdated)];
        assert_eq!(plan(&parts, 2).moves, [Move::Replace("web".into())]);
    }

    #[test]
    fn every_reason_reads_as_a_sentence() {
        let service = || "worker".to_owned();
        for (reason, expected) in [
            (WaitingOn::Needs { service: service(), on: "api".into() }, "worker waits for api"),
            (
                WaitingOn::Cores { service: service(), slots: 2 },
                "worker waits for a core: 2 containers start at once",
            ),
            (
                WaitingOn::Backoff {
                    service: service(),
                    failures: 3,
                    left: Duration::from_secs(4),
                },
                "worker failed 3 times in a row, next start 4 s later",
            ),
            (WaitingOn::Readiness { service: service() }, "worker runs and does not answer yet"),
        ] {
            assert_eq!(reason.to_string(), expected);
        }
    }

    /// Carrying out any plan brings every stack, however torn, to rest.
    #[test]
    fn any_mix_converges_and_then_rests() {
        let kinds = [Seen::Absent, Seen::Outdated, Seen::Stopped, Seen::Starting, Seen::Ready];
        for mix in 0..kinds.len().pow(4) {
            let kind = |n: u32| kinds[mix / kinds.len().pow(n) % kinds.len()].clone();
            let mut parts = [
                part("api", &[], kind(0)),
                part("web", &["api"], kind(1)),
                part("worker", &["api"], kind(2)),
                part("worker_beat", &["worker"], kind(3)),
            ];
            for _round in 0..12 {
                let found = plan(&parts, 2);
                for step in found.moves {
                    let (Move::Create(name) | Move::Start(name) | Move::Replace(name)) = step;
                    let part = parts.iter_mut().find(|part| part.service == name);
                    part.expect("known").seen = Seen::Starting;
                }
                // The world moves on: what started answers in the end.
                if let Some(part) = parts.iter_mut().find(|part| part.seen == Seen::Starting) {
                    part.seen = Seen::Ready;
                }
            }
            assert!(parts.iter().all(|part| part.seen == Seen::Ready), "{mix}: {parts:?}");
            assert_eq!(plan(&parts, 2), Plan::default());
        }
    }
}
