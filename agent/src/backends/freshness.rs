//! When is a service away? N of M, so that one lost packet takes no VM out of
//! the load balancer. Pure: the caller brings the time.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that mean away.
const FAILURES: u32 = 3;
/// Failing for this long means away, however few questions fit in.
const FAILING_FOR: Duration = Duration::from_secs(10);
/// Successes in a row that mean back.
const SUCCESSES: u32 = 2;

/// What the last answers add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    state: State,
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Never asked.
    Unknown,
    /// There; the present run of failures and when it began.
    Up { failures: u32, first: Option<Instant> },
    /// Away; the present run of successes.
    Down { successes: u32 },
}

impl Freshness {
    /// Nothing is known yet, which counts as away.
    pub fn new(now: Instant) -> Self {
        Self { state: State::Unknown, since: now }
    }

    /// The service counts as there.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Since when that is so.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Takes an answer in; true when the service has just come or gone.
    pub fn observe(&mut self, ok: bool, now: Instant) -> bool {
        let next = match (self.state, ok) {
            // The first answer of all decides at once: a boot need not wait for proof.
            (State::Unknown | State::Up { .. }, true) => State::Up { failures: 0, first: None },
            (State::Up { failures, first }, false) => {
                let first = first.unwrap_or(now);
                if failures + 1 >= FAILURES || now.duration_since(first) >= FAILING_FOR {
                    State::Down { successes: 0 }
                } else {
                    State::Up { failures: failures + 1, first: Some(first) }
                }
            }
            (State::Down { successes }, true) if successes + 1 >= SUCCESSES => {
                State::Up { failures: 0, first: None }
            }
            (State::Down { successes }, true) => State::Down { successes: successes + 1 },
            (State::Unknown | State::Down { .. }, false) => State::Down { successes: 0 },
        };
        let was = self.is_up();
        self.state = next;
        let turned = was != self.is_up();
        if turned {
            self.since = now;
        }
        turned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `answers` (`+` there, `-` away), `every` apart; `U` and `D` come out.
    fn run(answers: &str, every: Duration) -> String {
        let mut now = Instant::now();
        let mut fresh = Freshness::new(now);
        let states = answers.chars().map(|answer| {
            now += every;
            fresh.observe(answer == '+', now);
            if fresh.is_up() { 'U' } else { 'D' }
        });
        states.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn hysteresis() {
        let second = Duration::from_secs(1);
        for (answers, every, states) in [
            ("+", second, "U"),
            ("-", second, "D"),
            ("-+", second, "DD"),
            ("-++", second, "DDU"),
            ("+--+--+", second, "UUUUUUU"),
            ("+---", second, "UUUD"),
            ("+---+-++", second, "UUUDDDDU"),
            // Slow answers: failing for ten seconds is enough.
            ("+--", second * 9, "UUU"),
            ("+--", second * 10, "UUD"),
        ] {
            assert_eq!(run(answers, every), states, "{answers} every {every:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn since_moves_only_when_the_state_does() {
        let start = Instant::now();
        let mut fresh = Freshness::new(start);
        let second = Duration::from_secs(1);
        assert!(fresh.observe(true, start + second));
        assert!(!fresh.observe(true, start + second * 2));
        assert!(!fresh.observe(false, start + second * 3));
        assert_eq!(fresh.since(), start + second);
    }
}
