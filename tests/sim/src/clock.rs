//! The simulator's time. One clock for tokens, rate limits and time stamps, so that a test can let an hour pass at once.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::locked;

/// Wall clock plus whatever a test has added; or a clock that only moves when told to.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    Running { ahead: Duration },
    Stopped { at: Duration },
}

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State::Running { ahead: Duration::ZERO })))
    }
}

impl Clock {
    /// A clock that stands at `seconds` since the Unix epoch until it is advanced: every answer repeats byte by byte.
    pub fn stopped_at(seconds: u64) -> Self {
        Self(Arc::new(Mutex::new(State::Stopped { at: Duration::from_secs(seconds) })))
    }

    /// Lets `by` pass at once.
    pub fn advance(&self, by: Duration) {
        match &mut *locked(&self.0) {
            State::Running { ahead } => *ahead += by,
            State::Stopped { at } => *at += by,
        }
    }

    /// Time since the Unix epoch.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place of this crate that asks for the time"
    )]
    pub fn now(&self) -> Duration {
        match &*locked(&self.0) {
            State::Running { ahead } => {
                *ahead
                    + SystemTime::now()
                        .duration_since(UNIX_EPOCH)
                        .expect("the machine's clock is past 1970")
            }
            State::Stopped { at } => *at,
        }
    }
}

/// RFC 3339 in UTC with milliseconds, as Google's JSON writes time stamps.
pub(crate) fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days to civil date, counted in eras of 400 years that begin on 1 March (H. Hinnant's public algorithm).
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    let milliseconds = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_known_dates() {
        let date = |seconds| rfc3339(Duration::from_secs(seconds));
        assert_eq!(date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(date(1_795_305_599), "2026-11-21T23:59:59.000Z");
    }

    #[test]
    fn a_stopped_clock_moves_only_when_told() {
        let clock = Clock::stopped_at(100);
        assert_eq!(clock.now(), Duration::from_secs(100));
        clock.advance(Duration::from_secs(5));
        assert_eq!(clock.now(), Duration::from_secs(105));
    }
}
