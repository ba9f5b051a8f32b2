//! `instance/guest-attributes/`: the one part of the metadata a VM writes itself.
//!
//! Off unless the metadata item `enable-guest-attributes` is true on the VM or, if the VM has none, on the project.
//! Google allows ten queries a minute and bursts of three a second, and says that beyond it data may be lost. We
//! always lose it, silently (our pick of what the document allows; the worst case for a caller).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Queries a minute, and a second.
const PER_MINUTE: usize = 10;
const PER_SECOND: usize = 3;

/// Attributes by namespace and key, and the queries of the last minute.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    pub(crate) values: BTreeMap<String, BTreeMap<String, String>>,
    queries: VecDeque<Duration>,
}

impl Guest {
    /// Counts a query at `now`; false when it is beyond what Google promises to keep.
    pub(crate) fn within_rate(&mut self, now: Duration) -> bool {
        let since = |span: u64| now.saturating_sub(Duration::from_secs(span));
        while self
            .queries
            .front()
            .is_some_and(|at| *at <= since(60) && now >= Duration::from_mins(1))
        {
            self.queries.pop_front();
        }
        let last_second = self.queries.iter().rev().take_while(|at| **at > since(1)).count();
        let within = self.queries.len() < PER_MINUTE && last_second < PER_SECOND;
        if within {
            self.queries.push_back(now);
        }
        within
    }

    pub(crate) fn set(&mut self, namespace: &str, key: &str, value: String) {
        self.values.entry(namespace.to_owned()).or_default().insert(key.to_owned(), value);
    }

    /// False when there was nothing to remove.
    pub(crate) fn remove(&mut self, namespace: &str, key: &str) -> bool {
        let Some(keys) = self.values.get_mut(namespace) else {
            return false;
        };
        let removed = keys.remove(key).is_some();
        if keys.is_empty() {
            self.values.remove(namespace);
        }
        removed
    }
}

/// Namespaces and keys: letters, digits, `_` and `-`, at most 128 of them.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_minute_three_a_second() {
        let mut guest = Guest::default();
        let at = |seconds: u64| Duration::from_secs(1_000 + seconds);
        assert_eq!([(); 4].map(|()| guest.within_rate(at(0))), [true, true, true, false]);
        assert_eq!([(); 4].map(|()| guest.within_rate(at(10))), [true, true, true, false]);
        assert_eq!([(); 4].map(|()| guest.within_rate(at(20))), [true, true, true, false]);
        assert_eq!([(); 2].map(|()| guest.within_rate(at(30))), [true, false]);
        assert!(guest.within_rate(at(61)));
    }
}
