//! Lines on stdout in the form of Dify's own log.

use std::io::Write as _;
use std::time::UNIX_EPOCH;

/// Writes one line. A closed stdout is nobody's problem here.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _closed = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// `2026-01-31 12:00:00,123 INFO [file.py:1] text`, as the api image logs.
pub(crate) fn info(place: &str, text: &str) {
    line(&format!("{} INFO [{place}] {text}", timestamp()));
}

/// The same at level ERROR.
pub(crate) fn error(place: &str, text: &str) {
    line(&format!("{} ERROR [{place}] {text}", timestamp()));
}

/// Seconds since 1970 with fractions.
#[expect(
    clippy::disallowed_methods,
    reason = "the test bed shares no clock with the shipped programs"
)]
pub(crate) fn unix_now() -> f64 {
    std::time::SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

fn timestamp() -> String {
    #[expect(clippy::cast_possible_truncation, reason = "milliseconds since 1970 fit")]
    let millis = (unix_now() * 1000.0) as i64;
    let (days, rest) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02},{:03}", rest % 1000)
}

/// Days since 1970 to a date: Howard Hinnant's `civil_from_days`.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::civil;

    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_454), (2026, 1, 1));
    }
}
