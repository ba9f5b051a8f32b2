//! The one retry: a bounded number of attempts with full jitter, stopped early
//! by an error that says of itself that it is final.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use rand::RngExt;
use tracing::{debug, info};

/// Exponential backoff with full jitter. Private fields: [`Backoff::try_new`]
/// refuses what makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
}

impl Backoff {
    /// For calls to services nearby: 100 ms doubling to 5 s.
    pub const NEARBY: Self = Self { min: Duration::from_millis(100), max: Duration::from_secs(5) };

    /// A backoff from `min` doubling to `max`.
    pub fn try_new(min: Duration, max: Duration) -> Option<Self> {
        (!min.is_zero() && min <= max).then_some(Self { min, max })
    }

    /// The longest wait before attempt `attempt` (0 = the first retry).
    pub fn ceiling(&self, attempt: u32) -> Duration {
        self.min.saturating_mul(2_u32.saturating_pow(attempt.min(20))).min(self.max)
    }

    /// A wait drawn from half the ceiling to the ceiling: spread, but never a
    /// hot loop.
    pub fn wait(&self, attempt: u32) -> Duration {
        let ceiling = self.ceiling(attempt);
        ceiling.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// An error that knows whether trying again can help.
pub trait Retryable {
    /// Trying again cannot help.
    fn is_permanent(&self) -> bool;
}

/// Calls `act` until it succeeds, says its failure is permanent, or `attempts`
/// are used up. Each call carries its own deadline; there is none around the whole.
pub async fn retry<T, E, F, Fut>(
    what: &'static str,
    attempts: u32,
    backoff: Backoff,
    mut act: F,
) -> Result<T, E>
where
    E: Retryable + fmt::Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut failed = 0;
    loop {
        match act().await {
            Ok(value) => {
                if failed > 0 {
                    info!(what, failed, "succeeded after retries");
                }
                return Ok(value);
            }
            Err(error) if error.is_permanent() || failed + 1 >= attempts => return Err(error),
            Err(error) => {
                let wait = backoff.wait(failed);
                debug!(what, %error, ?wait, "will try again");
                tokio::time::sleep(wait).await;
                failed += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no")]
    struct No(bool);

    impl Retryable for No {
        fn is_permanent(&self) -> bool {
            self.0
        }
    }

    #[test]
    fn backoff_refuses_nonsense_and_is_capped() {
        let second = Duration::from_secs(1);
        assert!(Backoff::try_new(Duration::ZERO, second).is_none());
        assert!(Backoff::try_new(second * 2, second).is_none());
        let backoff = Backoff::try_new(second, second * 10).expect("valid");
        assert_eq!(backoff.ceiling(1), second * 2);
        assert_eq!(backoff.ceiling(4_000_000_000), second * 10);
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_when_attempts_are_used_or_the_error_is_final() {
        for (permanent, expected) in [(false, 3), (true, 1)] {
            let mut calls = 0;
            let result: Result<(), No> = retry("test", 3, Backoff::NEARBY, || {
                calls += 1;
                async move { Err(No(permanent)) }
            })
            .await;
            assert!(result.is_err());
            assert_eq!(calls, expected);
        }
    }
}
