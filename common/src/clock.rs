//! The one place that asks what time it is. Durations and deadlines use
//! `tokio::time::Instant`, which a test can pause; this is wall time, for
//! people and for records.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Wall time now.
#[expect(clippy::disallowed_methods, reason = "this is the module the ban names")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Seconds since 1970, UTC. A clock before 1970 reads as 0.
pub fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// RFC 3339 in UTC with milliseconds, as Cloud Logging and Docker write it.
pub fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// [`now`] as [`rfc3339`].
pub fn now_rfc3339() -> String {
    rfc3339(now())
}
