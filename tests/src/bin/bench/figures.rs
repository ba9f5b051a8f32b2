//! What was measured, and what it comes to.

use std::collections::BTreeMap;

use dify_common::clock;
use dify_common::wire::status::PhaseTime;
use serde::Serialize;
use serde_json::{Value, json};

use super::memory::Memory;
use super::watch::Moment;

/// Mebibyte.
pub(crate) const MIB: f64 = 1_048_576.0;

/// Who boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Contender {
    Agent,
    Compose,
}

/// What the databases hold at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// The release's schema: a VM that joins a fleet, or boots again.
    Migrated,
    /// Nothing: the first boot of a new fleet.
    Empty,
}

/// One boot.
#[derive(Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) contender: Contender,
    pub(crate) state: State,
    pub(crate) number: u32,
    /// By Dify's service name.
    pub(crate) services: BTreeMap<String, Moment>,
    /// Seconds; agent: `front` (the api's first 200 through port 1080) and
    /// `health` (`/health` 200 there); compose: `command` (its own end).
    pub(crate) extra: BTreeMap<String, f64>,
    /// The agent's own account.
    pub(crate) phases: Vec<PhaseTime>,
    /// What the agent and the edge complained of: an odd round often says why.
    pub(crate) alarms: Vec<String>,
}

/// A figure both have, with the target of their ratio.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Measure {
    /// First 200 of the api's `/health`.
    FirstApi,
    /// Every service answers.
    Everything,
}

/// Median, least and most, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// The machine a run was made on.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) processor: String,
    pub(crate) system: String,
    pub(crate) date: String,
}

/// Everything of one run.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) machine: Machine,
    pub(crate) release: &'static str,
    pub(crate) scale: f64,
    pub(crate) rounds: Vec<Round>,
    pub(crate) memory: Memory,
}

impl State {
    /// The headline first: what a fleet does every day.
    pub(crate) const ALL: [Self; 2] = [Self::Migrated, Self::Empty];

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Migrated => "migrated database",
            Self::Empty => "empty database",
        }
    }
}

impl Measure {
    pub(crate) const ALL: [Self; 2] = [Self::FirstApi, Self::Everything];

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::FirstApi => "first api 200",
            Self::Everything => "every service answers",
        }
    }

    /// Largest share of compose's time that is good enough.
    pub(crate) fn target(self) -> f64 {
        match self {
            Self::FirstApi => 0.5,
            Self::Everything => 1.0,
        }
    }
}

impl Round {
    pub(crate) fn seconds(&self, measure: Measure) -> f64 {
        match measure {
            Measure::FirstApi => self.services.get("api").map_or(f64::NAN, |api| api.answers),
            Measure::Everything => {
                self.services.values().map(|moment| moment.answers).fold(0.0, f64::max)
            }
        }
    }

    /// One line.
    pub(crate) fn words(&self) -> String {
        let [first, everything] = Measure::ALL.map(|measure| self.seconds(measure));
        let phases: Vec<String> = self
            .phases
            .iter()
            .map(|PhaseTime { phase, millis }| format!("{phase} {millis} ms"))
            .collect();
        let account =
            if phases.is_empty() { String::new() } else { format!(" ({})", phases.join(", ")) };
        format!("first api 200 after {first:.1} s, everything after {everything:.1} s{account}")
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), least, most })
    }
}

impl Figures {
    fn of(&self, state: State, contender: Contender) -> impl Iterator<Item = &Round> {
        self.rounds.iter().filter(move |it| (it.state, it.contender) == (state, contender))
    }

    /// A measure over the rounds.
    pub(crate) fn spread(&self, state: State, who: Contender, measure: Measure) -> Option<Spread> {
        Spread::of(self.of(state, who).map(|round| round.seconds(measure)).collect())
    }

    /// Something only one contender has.
    pub(crate) fn extra(&self, state: State, who: Contender, key: &str) -> Option<Spread> {
        Spread::of(self.of(state, who).filter_map(|it| it.extra.get(key).copied()).collect())
    }

    /// The agent's median over compose's.
    pub(crate) fn ratio(&self, state: State, measure: Measure) -> Option<f64> {
        let [agent, compose] =
            [Contender::Agent, Contender::Compose].map(|who| self.spread(state, who, measure));
        Some(agent?.median / compose?.median)
    }

    /// All of it, for programs.
    pub(crate) fn json(&self) -> Value {
        let summary: Vec<Value> = State::ALL
            .into_iter()
            .flat_map(|state| Measure::ALL.map(|measure| (state, measure)))
            .map(|(state, measure)| {
                json!({
                    "state": state, "measure": measure.words(),
                    "agent": self.spread(state, Contender::Agent, measure),
                    "compose": self.spread(state, Contender::Compose, measure),
                    "ratio": self.ratio(state, measure), "target": measure.target(),
                })
            })
            .collect();
        json!({
            "machine": self.machine, "dify": self.release, "scale": self.scale,
            "summary": summary, "memory": self.memory, "rounds": self.rounds,
        })
    }
}

impl Machine {
    /// This one, now.
    pub(crate) fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let after = |text: String, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key).map(str::to_owned));
            line.map_or_else(String::new, |line| {
                line.trim_start_matches([' ', '\t', ':', '=']).trim_matches('"').to_owned()
            })
        };
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: after(read("/proc/cpuinfo"), "model name"),
            system: after(read("/etc/os-release"), "PRETTY_NAME"),
            date: clock::now_rfc3339().chars().take(10).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_lies_in_the_middle() {
        let spread = |values: &[f64]| Spread::of(values.to_vec()).unwrap();
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert!((spread(&[4.0, 1.0]).median - 2.5).abs() < 1e-9);
        assert!(Spread::of(Vec::new()).is_none());
    }

    #[test]
    fn the_last_answer_is_everything() {
        let moment = |answers| Moment { runs: 0.5, answers };
        let services =
            BTreeMap::from([("api".into(), moment(6.0)), ("worker".into(), moment(9.0))]);
        let round = Round {
            contender: Contender::Agent,
            state: State::Empty,
            number: 1,
            services,
            extra: BTreeMap::new(),
            phases: Vec::new(),
            alarms: Vec::new(),
        };
        let [first, everything] = Measure::ALL.map(|measure| round.seconds(measure));
        assert!((first - 6.0).abs() < 1e-9 && (everything - 9.0).abs() < 1e-9);
    }
}
