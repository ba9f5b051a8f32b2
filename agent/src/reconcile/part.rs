//! The life of one container as this agent saw it: pure bookkeeping over
//! observations and probe answers.

use std::time::Duration;

use tokio::time::Instant;

use super::plan::Seen;

/// Ready and then silent for this many answers in a row is not ready.
const SILENCE_LIMIT: u32 = 3;
/// Running without an answer for this long is beyond hope: five times the
/// longest start seen on two busy cores (115 s).
const STUCK: Duration = Duration::from_mins(10);
/// A run that was ready for this long ends a row of failures.
const SETTLED: Duration = Duration::from_mins(1);
/// Asked this often until it answers first: the api's start takes tens of
/// seconds, web's under five; a quarter second is lost at most.
const EAGER: Duration = Duration::from_millis(250);
/// Asked this often afterwards.
const STEADY: Duration = Duration::from_secs(5);

/// What a probe heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// What it should say.
    Ready,
    /// Something else, or a refused connection: certainly not ready.
    Wrong(String),
    /// Nothing in time. On a saturated api this proves nothing, because the
    /// probe needs one of the slots that are taken.
    Nothing(String),
}

impl Answer {
    /// The same with its words passed through `scrub`: a program may quote a
    /// URL with a password in it.
    #[must_use]
    pub fn scrubbed(self, scrub: impl Fn(&str) -> String) -> Self {
        match self {
            Self::Ready => Self::Ready,
            Self::Wrong(text) => Self::Wrong(scrub(&text)),
            Self::Nothing(text) => Self::Nothing(scrub(&text)),
        }
    }
}

/// What the engine says of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// There is none.
    Absent,
    /// There is one of another spec.
    Outdated,
    /// It runs since the moment the text names (Docker's `StartedAt`).
    Running(String),
    /// It does not run.
    Stopped {
        /// It was started before.
        ran: bool,
        /// How it ended, in words.
        how: String,
    },
}

/// One container's record.
#[derive(Debug)]
pub struct Record {
    sight: Sight,
    /// An action of ours is under way.
    pub busy: bool,
    /// A probe is under way.
    pub asking: bool,
    /// Starts by this agent.
    pub starts: u32,
    /// Why it is not ready.
    pub detail: Option<String>,
    was_ready: bool,
    silences: u32,
    silent_since: Option<Instant>,
    failures: u32,
    since: Instant,
    asked: Option<Instant>,
}

impl Record {
    /// Nothing seen yet.
    pub fn new(now: Instant) -> Self {
        Self {
            sight: Sight::Absent,
            busy: false,
            asking: false,
            starts: 0,
            detail: None,
            was_ready: false,
            silences: 0,
            silent_since: None,
            failures: 0,
            since: now,
            asked: None,
        }
    }

    /// The engine said this now.
    pub fn saw(&mut self, sight: Sight, now: Instant) {
        // An exit while an action is under way is judged once it is over: it may
        // be the action's own doing, or the death of what it just started.
        if self.busy && matches!(sight, Sight::Stopped { ran: true, .. }) {
            return;
        }
        if sight == self.sight {
            if self.was_ready && now.duration_since(self.since) > SETTLED {
                self.failures = 0;
            }
            return;
        }
        match (&self.sight, &sight) {
            // An exit nobody asked for, or one that happened so fast that the
            // run in between was not even seen.
            (_, Sight::Stopped { ran: true, how }) if !self.busy => {
                self.failures = self.failures.saturating_add(1);
                self.detail = Some(how.clone());
            }
            (Sight::Absent, Sight::Stopped { .. }) => self.failures = 0,
            _ => {}
        }
        self.sight = sight;
        self.was_ready = false;
        self.silences = 0;
        self.silent_since = None;
        self.since = now;
        self.asked = None;
    }

    /// First sight after the agent started: a stop from before (reboot, engine
    /// restart) is nobody's failure.
    pub fn saw_first(&mut self, sight: Sight, now: Instant) {
        self.saw(sight, now);
        self.failures = 0;
    }

    /// An action of ours failed: as bad as an exit, so that the next one waits.
    pub fn failed(&mut self, why: String, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.detail = Some(why);
        self.since = now;
    }

    /// A probe of the run `of` came back. An answer of an earlier run is dropped.
    pub fn heard(&mut self, of: &str, answer: Answer, saturated: bool, now: Instant) {
        self.asking = false;
        if !matches!(&self.sight, Sight::Running(started) if started == of) {
            return;
        }
        match answer {
            Answer::Ready => {
                self.was_ready = true;
                self.silences = 0;
                self.silent_since = None;
                self.detail = None;
            }
            Answer::Nothing(_) if saturated && self.was_ready => {}
            Answer::Wrong(what) | Answer::Nothing(what) => {
                self.silences = self.silences.saturating_add(1);
                self.silent_since.get_or_insert(now);
                self.detail = Some(what);
            }
        }
    }

    /// The run to ask now, if it is time to ask.
    pub fn due(&mut self, once: bool, now: Instant) -> Option<String> {
        let Sight::Running(started) = &self.sight else {
            return None;
        };
        let every = if self.was_ready && self.silences == 0 { STEADY } else { EAGER };
        let answered_once = once && self.was_ready;
        if self.asking || answered_once || self.asked.is_some_and(|at| now < at + every) {
            return None;
        }
        self.asked = Some(now);
        self.asking = true;
        Some(started.clone())
    }

    /// As the plan sees it.
    pub fn seen(&self, now: Instant) -> Seen {
        let stuck = |since: Instant| now.duration_since(since) >= STUCK;
        match &self.sight {
            _ if self.busy => Seen::Busy,
            Sight::Absent => Seen::Absent,
            Sight::Outdated => Seen::Outdated,
            Sight::Stopped { .. } => Seen::Stopped,
            Sight::Running(_) if !self.was_ready && stuck(self.since) => Seen::Stuck,
            Sight::Running(_) if !self.was_ready => Seen::Starting,
            Sight::Running(_) if self.silent_since.is_some_and(stuck) => Seen::Stuck,
            Sight::Running(_) if self.silences >= SILENCE_LIMIT => Seen::Silent,
            Sight::Running(_) => Seen::Ready,
        }
    }

    /// Failures in a row, and the time since the last of them.
    pub fn failures(&self, now: Instant) -> (u32, Duration) {
        (self.failures, now.duration_since(self.since))
    }

    /// Docker's word for it.
    pub fn state(&self) -> &'static str {
        match self.sight {
            Sight::Absent => "absent",
            Sight::Outdated => "outdated",
            Sight::Running(_) => "running",
            Sight::Stopped { ran: true, .. } => "exited",
            Sight::Stopped { ran: false, .. } => "created",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(record: &mut Record, started: &str, now: Instant) {
        record.saw(Sight::Running(started.into()), now);
    }

    fn exited() -> Sight {
        Sight::Stopped { ran: true, how: "exit code 137".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_counts_and_a_settled_run_forgives() {
        let now = Instant::now();
        let mut record = Record::new(now);
        running(&mut record, "1", now);
        record.saw(exited(), now);
        running(&mut record, "2", now);
        record.saw(exited(), now);
        assert_eq!(record.failures(now).0, 2);
        running(&mut record, "3", now);
        record.heard("3", Answer::Ready, false, now);
        running(&mut record, "3", now + SETTLED * 2);
        record.saw(exited(), now + SETTLED * 2);
        assert_eq!(record.failures(now).0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reboot_is_no_failure() {
        let now = Instant::now();
        let mut record = Record::new(now);
        record.saw_first(exited(), now);
        assert_eq!((record.seen(now), record.failures(now).0), (Seen::Stopped, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn three_silences_are_silent_unless_the_container_is_saturated() {
        let now = Instant::now();
        let mut record = Record::new(now);
        running(&mut record, "1", now);
        assert_eq!(record.seen(now), Seen::Starting);
        record.heard("1", Answer::Ready, false, now);
        for _ in 0..9 {
            record.heard("1", Answer::Nothing("no answer in 5 s".into()), true, now);
        }
        assert_eq!(record.seen(now), Seen::Ready);
        for _ in 0..SILENCE_LIMIT {
            record.heard("1", Answer::Nothing("no answer in 5 s".into()), false, now);
        }
        assert_eq!(record.seen(now), Seen::Silent);
        record.heard("1", Answer::Ready, false, now);
        assert_eq!(record.seen(now), Seen::Ready);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_an_earlier_run_is_dropped() {
        let now = Instant::now();
        let mut record = Record::new(now);
        running(&mut record, "1", now);
        running(&mut record, "2", now);
        record.heard("1", Answer::Ready, false, now);
        assert_eq!(record.seen(now), Seen::Starting);
    }

    #[tokio::test(start_paused = true)]
    async fn asks_eagerly_then_steadily_and_one_at_a_time() {
        let now = Instant::now();
        let mut record = Record::new(now);
        running(&mut record, "1", now);
        assert_eq!(record.due(false, now).as_deref(), Some("1"));
        assert_eq!(record.due(false, now + EAGER), None, "one at a time");
        record.heard("1", Answer::Wrong("503".into()), false, now);
        assert!(record.due(false, now + EAGER).is_some());
        record.heard("1", Answer::Ready, false, now);
        assert_eq!(record.due(true, now + STEADY * 9), None, "asked once only");
        assert_eq!(record.due(false, now + EAGER * 3), None);
        assert!(record.due(false, now + EAGER + STEADY).is_some());
    }
}
