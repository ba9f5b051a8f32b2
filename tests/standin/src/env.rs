//! The container's environment, read once.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A snapshot of the environment; its `Debug` shows names only.
#[derive(Clone, Default)]
pub(crate) struct Env(BTreeMap<String, String>);

impl Env {
    /// The environment of this process.
    pub(crate) fn of_process() -> Self {
        Self(std::env::vars().collect())
    }

    /// The value, if the name is set and not empty: the Python settings treat both alike.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value or a default.
    pub(crate) fn or<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.get(name).unwrap_or(default)
    }

    /// A number or a default; nonsense counts as unset.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> T {
        self.get(name).and_then(|value| value.trim().parse().ok()).unwrap_or(default)
    }

    /// A switch as pydantic reads it.
    pub(crate) fn flag(&self, name: &str, default: bool) -> bool {
        match self.get(name).map(str::to_ascii_lowercase).as_deref() {
            Some("true" | "1" | "yes" | "on" | "t" | "y") => true,
            Some(_) => false,
            None => default,
        }
    }

    /// A number of seconds or a default.
    pub(crate) fn seconds(&self, name: &str, default: u64) -> Duration {
        Duration::from_secs(self.number(name, default))
    }

    /// Adds what is missing (the plugin daemon's and tests' defaults).
    #[cfg(test)]
    pub(crate) fn with(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_is_an_unset_one() {
        let env = Env::with(&[("A", ""), ("B", "x"), ("N", " 7 "), ("T", "True")]);
        assert_eq!(env.or("A", "d"), "d");
        assert_eq!(env.or("B", "d"), "x");
        assert_eq!(env.number("N", 0), 7);
        assert_eq!(env.number("B", 3), 3);
        assert!(env.flag("T", false));
        assert!(!env.flag("B", true));
    }

    #[test]
    fn debug_shows_no_value() {
        assert_eq!(format!("{:?}", Env::with(&[("KEY", "s3cret")])), r#"{"KEY"}"#);
    }
}
