//! Reads the output of `flask db heads`.
//!
//! Source: Alembic's `heads` command prints one line per head,
//! `REVISION (head)`, with branch labels or `(effective head)` after it where
//! there are any. Dify logs to the same stream, so other lines are expected.

/// Why the output names no head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadsError {
    /// The command failed.
    #[error("it ended with exit code {exit_code}: {}", tail.join(" | "))]
    Exit {
        /// Exit code.
        exit_code: i64,
        /// Last lines, scrubbed.
        tail: Vec<String>,
    },
    /// No line looks like a head.
    #[error("its output names no head: {}", tail.join(" | "))]
    None {
        /// Last lines, scrubbed.
        tail: Vec<String>,
    },
    /// A schema with branches cannot be compared with one revision.
    #[error("it names {} heads ({}); expected one", .0.len(), .0.join(", "))]
    Several(Vec<String>),
}

/// The one head that `lines` name.
pub fn parse_heads<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<String, HeadsError> {
    let mut heads: Vec<String> = lines.into_iter().filter_map(head_of).collect();
    heads.dedup();
    match heads.len() {
        0 => Err(HeadsError::None { tail: Vec::new() }),
        1 => Ok(heads.remove(0)),
        _ => Err(HeadsError::Several(heads)),
    }
}

fn head_of(line: &str) -> Option<String> {
    let (revision, rest) = line.trim().split_once(' ')?;
    let is_revision = (4..=32).contains(&revision.len())
        && revision.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    (is_revision && rest.trim_start().starts_with('(') && rest.contains("head)"))
        .then(|| revision.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_head_is_found_in_the_noise() {
        for lines in [
            &["d1a2b3c4e5f6 (head)"][..],
            &[
                "2026-11-22 INFO [app] Loading (head) of queue",
                "Preparing environment...",
                "  d1a2b3c4e5f6 (head)  ",
                "",
            ],
            &["d1a2b3c4e5f6 (dify) (head)"],
            &["d1a2b3c4e5f6 (head)", "d1a2b3c4e5f6 (head)"],
        ] {
            assert_eq!(
                parse_heads(lines.iter().copied()).as_deref(),
                Ok("d1a2b3c4e5f6"),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn none_and_several_are_errors() {
        assert!(matches!(parse_heads(["Traceback"]), Err(HeadsError::None { .. })));
        assert_eq!(
            parse_heads(["aaaa1111 (head)", "bbbb2222 (head)"]),
            Err(HeadsError::Several(vec!["aaaa1111".into(), "bbbb2222".into()]))
        );
    }
}
