//! Prints an error with its causes on one line. Error enums of this project
//! never repeat their source in `Display`, so the chain reads as one sentence.

use std::error::Error;
use std::fmt;

/// Display adapter: `outer: cause: cause of the cause`.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        let mut last = self.0.to_string();
        while let Some(error) = cause {
            // Some libraries do repeat their source; say it once.
            let text = error.to_string();
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("read settings")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn reads_as_one_sentence() {
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(Chain(&error).to_string(), "read settings: disk on fire");
    }
}
