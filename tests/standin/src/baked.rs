//! What the image itself knows: release, schema revisions, time scale, planted fault.

use std::time::Duration;

use crate::env::Env;

/// Read from `ENV` lines of the image, never wired by whoever starts the container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Baked {
    /// `STANDIN_RELEASE`, for example `1.14.2`.
    pub(crate) release: String,
    /// `STANDIN_HEAD`: the newest schema revision this image knows.
    pub(crate) head: String,
    /// `STANDIN_REVISIONS`: oldest to head.
    pub(crate) revisions: Vec<String>,
    /// `STANDIN_SCALE`: factor on every start-up time; 1 is as slow as the real image.
    pub(crate) scale: f64,
    /// `STANDIN_FAULT`.
    pub(crate) fault: Fault,
}

/// How this image is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// It is not.
    None,
    /// The schema migration fails half-way; the transaction is rolled back, exit 1.
    MigrationFails,
    /// The schema migration takes the lock and never ends.
    MigrationHangs,
    /// Exit 1 before anything else.
    ExitAtStart,
    /// Accepts connections for ever and answers none.
    NeverAnswers,
    /// Start-up takes ten times as long.
    SlowStart,
    /// Exit 1 this long after it became ready.
    CrashAfter(Duration),
}

impl Baked {
    /// Reads the baked variables; the error names the first one that makes no sense.
    pub(crate) fn read(env: &Env) -> Result<Self, String> {
        let head = env.or("STANDIN_HEAD", "").to_owned();
        let mut revisions: Vec<String> = env
            .or("STANDIN_REVISIONS", &head)
            .split(',')
            .map(str::trim)
            .filter(|r| !r.is_empty())
            .map(str::to_owned)
            .collect();
        if !head.is_empty() && revisions.last() != Some(&head) {
            if revisions.contains(&head) {
                return Err("STANDIN_HEAD must be the last of STANDIN_REVISIONS".to_owned());
            }
            revisions.push(head.clone());
        }
        let scale = env.number("STANDIN_SCALE", 1.0);
        if !(0.0..=10.0).contains(&scale) {
            return Err(format!("STANDIN_SCALE is {scale}; expected 0 to 10"));
        }
        Ok(Self {
            release: env.or("STANDIN_RELEASE", "0.0.0").to_owned(),
            head,
            revisions,
            scale,
            fault: Fault::parse(env.or("STANDIN_FAULT", ""))?,
        })
    }

    /// A time of the real image, at this image's scale.
    pub(crate) fn scaled(&self, real: Duration) -> Duration {
        let slow = if self.fault == Fault::SlowStart { 10.0 } else { 1.0 };
        real.mul_f64(self.scale * slow)
    }

    /// Whether a release of this image is at least `major.minor`.
    pub(crate) fn at_least(&self, major: u32, minor: u32) -> bool {
        let mut parts = self.release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }
}

impl Fault {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text.split_once(':').unwrap_or((text, "")) {
            ("", "") => Self::None,
            ("migration-fails", "") => Self::MigrationFails,
            ("migration-hangs", "") => Self::MigrationHangs,
            ("exit-at-start", "") => Self::ExitAtStart,
            ("never-answers", "") => Self::NeverAnswers,
            ("slow-start", "") => Self::SlowStart,
            ("crash-after", seconds) => {
                let seconds: f64 = seconds.parse().map_err(|_| {
                    format!("STANDIN_FAULT crash-after wants seconds, found \"{seconds}\"")
                })?;
                Self::CrashAfter(
                    Duration::try_from_secs_f64(seconds)
                        .map_err(|e| format!("STANDIN_FAULT crash-after: {e}"))?,
                )
            }
            _ => return Err(format!("STANDIN_FAULT \"{text}\" is not known")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_closes_the_chain() {
        let baked =
            Baked::read(&Env::with(&[("STANDIN_HEAD", "c"), ("STANDIN_REVISIONS", "a, b")]))
                .unwrap();
        assert_eq!(baked.revisions, ["a", "b", "c"]);
        assert!(
            Baked::read(&Env::with(&[("STANDIN_HEAD", "a"), ("STANDIN_REVISIONS", "a,b")]))
                .is_err()
        );
    }

    #[test]
    fn faults_are_strict() {
        assert_eq!(
            Fault::parse("crash-after:1.5"),
            Ok(Fault::CrashAfter(Duration::from_millis(1500)))
        );
        assert!(Fault::parse("crash-after").is_err());
        assert!(Fault::parse("migration-fail").is_err());
    }

    #[test]
    fn releases_compare_by_number() {
        let baked = Baked::read(&Env::with(&[("STANDIN_RELEASE", "1.9.2")])).unwrap();
        assert!(baked.at_least(1, 9) && !baked.at_least(1, 14));
    }
}
