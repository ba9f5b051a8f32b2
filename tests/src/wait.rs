//! The one way to wait for something.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::{Broken, Outcome};

/// Asks `condition` every `every` until it holds. After `at_most` the error
/// carries the last reason why it did not.
pub async fn wait_for<T>(
    what: &str,
    every: Duration,
    at_most: Duration,
    mut condition: impl AsyncFnMut() -> Result<T, String>,
) -> Outcome<T> {
    let deadline = Instant::now() + at_most;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = "never asked".to_owned();
    loop {
        let asked = timeout_at(deadline, async {
            ticks.tick().await;
            condition().await
        });
        match asked.await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(status)) => last = status,
            Err(_) => {
                return Err(Broken::new(format!("waited {at_most:?} for {what}; last: {last}")));
            }
        }
    }
}

/// Holds `condition` to be true all through `period`; fails at its first lapse.
pub async fn holds_for(
    what: &str,
    every: Duration,
    period: Duration,
    mut condition: impl AsyncFnMut() -> Result<(), String>,
) -> Outcome {
    let end = Instant::now() + period;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while Instant::now() < end {
        ticks.tick().await;
        condition().await.map_err(|lapse| Broken::new(format!("{what} did not hold: {lapse}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_last_status_is_reported() {
        let mut asked = 0;
        let error = wait_for("tea", SECOND, SECOND * 5, async || {
            asked += 1;
            Err::<(), _>(format!("cold, asked {asked} times"))
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(error.starts_with("waited 5s for tea; last: cold"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_condition_that_hangs_is_cut_off() {
        let hangs = wait_for("godot", SECOND, SECOND, async || {
            std::future::pending::<Result<(), String>>().await
        });
        assert!(hangs.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lapse_is_an_error() {
        let mut left = 3;
        let lapse = holds_for("peace", SECOND, SECOND * 9, async || {
            left -= 1;
            if left > 0 { Ok(()) } else { Err("war".to_owned()) }
        });
        assert_eq!(lapse.await.unwrap_err().to_string(), "peace did not hold: war");
    }
}
