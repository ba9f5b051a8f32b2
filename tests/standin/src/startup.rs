//! Start-up cost: CPU burnt and time taken, in the proportions of the real images.
//!
//! Measured with Dify 1.14.2 on two busy cores: the api process imports Python
//! modules for 13 s of CPU and gives its first answer after 26-31 s when it
//! starts alone; three such starts at once share the cores. So CPU is really
//! burnt (contention stretches it) and the rest of the time is slept.

use std::time::Duration;

use crate::baked::{Baked, Fault};
use crate::failure::Failure;
use crate::tasks;

/// CPU and wall time of one start when nothing else runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    cpu: Duration,
    wall: Duration,
}

/// The api image in each long-running mode.
pub(crate) const API: Cost = Cost { cpu: Duration::from_secs(13), wall: Duration::from_secs(28) };
/// `flask upgrade-db`, empty database or not: nearly all of it is Python's start.
pub(crate) const MIGRATION: Cost =
    Cost { cpu: Duration::from_secs(13), wall: Duration::from_secs(30) };
/// A `flask` command that boots no application (`db heads`).
pub(crate) const FLASK: Cost = Cost { cpu: Duration::from_secs(6), wall: Duration::from_secs(9) };
/// `celery inspect ping`: 7-8 s.
pub(crate) const INSPECT: Cost =
    Cost { cpu: Duration::from_secs(5), wall: Duration::from_millis(7500) };
/// Next.js server.
pub(crate) const WEB: Cost = Cost { cpu: Duration::from_secs(2), wall: Duration::from_secs(4) };
/// Code sandbox.
pub(crate) const SANDBOX: Cost =
    Cost { cpu: Duration::from_millis(500), wall: Duration::from_millis(2500) };
/// Plugin daemon: a Go program; not measured, assumed like the sandbox.
pub(crate) const DAEMON: Cost =
    Cost { cpu: Duration::from_millis(500), wall: Duration::from_millis(2500) };
/// Squid; assumed.
pub(crate) const SQUID: Cost =
    Cost { cpu: Duration::from_millis(200), wall: Duration::from_secs(1) };
/// Agent services (uvicorn); assumed.
pub(crate) const AGENT: Cost = Cost { cpu: Duration::from_secs(4), wall: Duration::from_secs(8) };

const SLICES: u32 = 20;

/// Pays the cost. Honours the faults that concern a start.
pub(crate) async fn pay(baked: &Baked, cost: Cost) -> Result<(), Failure> {
    if baked.fault == Fault::ExitAtStart {
        return Err(Failure::new("standin: exit-at-start"));
    }
    let cpu = baked.scaled(cost.cpu) / SLICES;
    let idle = baked.scaled(cost.wall.saturating_sub(cost.cpu)) / SLICES;
    for _ in 0..SLICES {
        tokio::task::spawn_blocking(move || burn(cpu))
            .await
            .map_err(|e| Failure::new(e.to_string()))?;
        tokio::time::sleep(idle).await;
    }
    if baked.fault == Fault::NeverAnswers {
        std::future::pending::<()>().await;
    }
    if let Fault::CrashAfter(after) = baked.fault {
        tasks::spawn(async move {
            tokio::time::sleep(after).await;
            crate::log::line("standin: crash-after");
            crash();
        });
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    clippy::exit,
    reason = "the planted crash must not unwind or drain"
)]
fn crash() -> ! {
    std::process::exit(1)
}

/// Computes until this thread has used `cpu`.
fn burn(cpu: Duration) {
    let clock = ThreadClock::start();
    let mut value: u64 = 0x9e37_79b9_7f4a_7c15;
    while clock.used() < cpu {
        for _ in 0..20_000 {
            value =
                value.rotate_left(13).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ 0x94d0_49bb_1331_11eb;
        }
        std::hint::black_box(value);
    }
}

/// CPU time of the calling thread, from the kernel's scheduler statistics;
/// wall time where there are none.
struct ThreadClock {
    began: tokio::time::Instant,
    cpu: Option<Duration>,
}

impl ThreadClock {
    fn start() -> Self {
        Self { began: tokio::time::Instant::now(), cpu: Self::thread_cpu() }
    }

    fn used(&self) -> Duration {
        match (self.cpu, Self::thread_cpu()) {
            (Some(before), Some(now)) => now.saturating_sub(before),
            _ => self.began.elapsed(),
        }
    }

    fn thread_cpu() -> Option<Duration> {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        text.split(' ').next()?.parse().ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos)
    }
}
