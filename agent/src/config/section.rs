//! Reads one section of a document key by key. Every mistake is noted and
//! reading goes on, so that one start shows all of them; what was not asked
//! for in the end is an unknown key.

use std::cell::RefCell;
use std::collections::BTreeSet;

use dify_common::settings::Problems;

use super::document::Node;

/// A reader's refusal: what was expected. The class of what was found is put
/// before it.
pub(super) type Expected = String;

/// A value that cannot be had; the reason is among the problems already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted;

/// What reading gives.
pub(super) type Read<T> = Result<T, Noted>;

/// One section being read.
pub(super) struct Section<'a> {
    path: String,
    entries: &'a [(String, Node)],
    asked: BTreeSet<&'static str>,
    problems: &'a RefCell<Problems>,
}

impl<'a> Section<'a> {
    /// Reads `node`, which stands at `path`, with `read`; notes keys given
    /// twice before and keys nobody asked for afterwards. An empty node counts
    /// as a section without keys.
    pub(super) fn read<T>(
        path: &str,
        node: &'a Node,
        problems: &'a RefCell<Problems>,
        read: impl FnOnce(&mut Self) -> Read<T>,
    ) -> Read<T> {
        let entries: &[(String, Node)] = match node {
            Node::Section(entries) => entries,
            Node::Empty => &[],
            Node::Switch(_)
            | Node::Whole(_)
            | Node::Fraction
            | Node::Text(_)
            | Node::List
            | Node::Tagged => {
                let class = node.class();
                problems.borrow_mut().add(path, format!("{class}: expected a section of keys"));
                return Err(Noted);
            }
        };
        let mut section = Self { path: path.to_owned(), entries, asked: BTreeSet::new(), problems };
        section.note_duplicates();
        let value = read(&mut section);
        section.note_unknown();
        value
    }

    /// The section under `key`; one that is absent is read as empty.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'a>) -> Read<T>,
    ) -> Read<T> {
        let path = self.path_of(key);
        let node = self.find(key).unwrap_or(&Node::Empty);
        Section::read(&path, node, self.problems, read)
    }

    /// The value under `key`, which must be there.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        read: fn(&Node) -> Result<T, Expected>,
    ) -> Read<T> {
        if let Some(node) = self.find(key) {
            return self.judge(key, node, read);
        }
        // The reader's own words for what it wants, had from showing it nothing.
        let expected = read(&Node::Empty).err().unwrap_or_default();
        Err(self.note(key, format!("is missing: expected {expected}")))
    }

    /// The value under `key`, or `default`.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: fn(&Node) -> Result<T, Expected>,
    ) -> Read<T> {
        match self.find(key) {
            Some(node) => self.judge(key, node, read),
            None => Ok(default),
        }
    }

    /// The value under `key`, if there is one.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: fn(&Node) -> Result<T, Expected>,
    ) -> Read<Option<T>> {
        match self.find(key) {
            Some(node) => self.judge(key, node, read).map(Some),
            None => Ok(None),
        }
    }

    /// Every key of a section whose keys are the operator's own.
    pub(super) fn each<T>(
        &mut self,
        mut read: impl FnMut(&mut Self, &'a str, &'a Node) -> Read<T>,
    ) -> Vec<(String, T)> {
        let entries = std::mem::take(&mut self.entries);
        entries
            .iter()
            .filter_map(|(key, node)| Some((key.clone(), read(self, key, node).ok()?)))
            .collect()
    }

    /// Notes a mistake at `key` that is no matter of one value alone.
    pub(super) fn note(&self, key: &str, message: impl Into<String>) -> Noted {
        self.problems.borrow_mut().add(self.path_of(key), message);
        Noted
    }

    /// Path of `key` in the document.
    pub(super) fn path_of(&self, key: &str) -> String {
        let key: String = key.chars().take(64).collect();
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }

    /// Where mistakes go.
    pub(super) fn problems(&self) -> &'a RefCell<Problems> {
        self.problems
    }

    /// `null` is what Terraform's `yamlencode` writes for "not given".
    fn find(&mut self, key: &'static str) -> Option<&'a Node> {
        self.asked.insert(key);
        let (_, node) = self.entries.iter().find(|(found, _)| found == key)?;
        (*node != Node::Empty).then_some(node)
    }

    fn judge<T>(&self, key: &str, node: &Node, read: fn(&Node) -> Result<T, Expected>) -> Read<T> {
        read(node)
            .map_err(|expected| self.note(key, format!("{}: expected {expected}", node.class())))
    }

    fn note_duplicates(&self) {
        let mut seen = BTreeSet::new();
        for (key, _) in self.entries {
            if !seen.insert(key) {
                self.note(key, "is given twice: expected each key once");
            }
        }
    }

    fn note_unknown(&self) {
        let known = |key: &str| self.asked.contains(key);
        let mut noted = BTreeSet::new();
        for (key, _) in self.entries {
            if known(key) || !noted.insert(key) {
                continue;
            }
            let keys = self.asked.iter().copied();
            let message = match nearest(key, keys.clone()) {
                Some(meant) => format!("is not a known key: did you mean {meant}?"),
                None if self.asked.is_empty() => "is not a known key".to_owned(),
                None => format!(
                    "is not a known key: expected one of {}",
                    keys.collect::<Vec<_>>().join(", ")
                ),
            };
            self.note(key, message);
        }
    }
}

/// The candidate that `word` most likely stands for, if one is near: a third
/// of its letters may differ.
pub(super) fn nearest<'k>(
    word: &str,
    candidates: impl Iterator<Item = &'k str>,
) -> Option<&'k str> {
    // Long words are no typing mistakes, and the distance costs their square.
    let word: String = word.chars().take(64).collect::<String>().to_lowercase();
    candidates
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.chars().count().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance: letters put in, taken out or replaced.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_and_only_a_near_one() {
        let known = ["password", "port", "host", "tls"];
        for (word, meant) in [
            ("pasword", Some("password")),
            ("Port", Some("port")),
            ("hots", Some("host")),
            ("hostt", Some("host")),
            ("tsl", None),
            ("certificate", None),
        ] {
            assert_eq!(nearest(word, known.into_iter()), meant, "{word}");
        }
    }
}
