//! A YAML document as a tree that keeps what a strict reader must see and
//! `serde_yaml::Value` does not: keys given twice. Nothing here prints a
//! value: a text in the wrong place may be a secret.

use std::fmt;

use serde::de::{
    Deserialize, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// The longest document: Compute Engine's limit for one metadata value, 256 KiB.
const MAX_BYTES: usize = 256 * 1024;

/// One value of the document.
#[derive(Clone, PartialEq)]
pub(super) enum Node {
    /// Nothing, or `null`.
    Empty,
    /// `true` or `false`.
    Switch(bool),
    /// A whole number.
    Whole(i128),
    /// A number with a fraction; its value never matters here.
    Fraction,
    /// Text.
    Text(String),
    /// A list; its items never matter here.
    List,
    /// Keys and values as written, duplicates included.
    Section(Vec<(String, Node)>),
    /// A value with a YAML tag of its own, which nothing here takes.
    Tagged,
}

impl Node {
    /// What it is, without saying what it holds.
    pub(super) fn class(&self) -> String {
        match self {
            Self::Empty => "is empty".to_owned(),
            Self::Switch(_) => "is true or false".to_owned(),
            Self::Whole(_) => "is a number".to_owned(),
            Self::Fraction => "is a number with a fraction".to_owned(),
            Self::Text(text) => match text.chars().count() {
                0 => "is an empty text".to_owned(),
                1 => "is a text of 1 character".to_owned(),
                count => format!("is a text of {count} characters"),
            },
            Self::List => "is a list".to_owned(),
            Self::Section(_) => "is a section".to_owned(),
            Self::Tagged => "has a YAML tag".to_owned(),
        }
    }
}

/// Only the class: a tree may hold a secret written by mistake.
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.class())
    }
}

/// The tree of `yaml`, or why it is no YAML document.
pub(super) fn parse(yaml: &str) -> Result<Node, String> {
    if yaml.len() > MAX_BYTES {
        return Err(format!("is {} bytes long: expected at most {MAX_BYTES}", yaml.len()));
    }
    serde_yaml::from_str(yaml).map_err(|error| {
        let message = error.to_string();
        // Messages on grammar name a place and no content; a value that does
        // not fit its tag (`!!int x`) would be quoted.
        if !message.contains("invalid") && !message.contains('"') {
            return format!("is not YAML: {message}");
        }
        let line = error.location().map_or(0, |at| at.line());
        format!("is not YAML: the value in line {line} does not fit its tag")
    })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

/// Takes every kind of value, so that no error of serde ever quotes one.
struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Empty)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Empty)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Node, D::Error> {
        Node::deserialize(inner)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Switch(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Whole(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Whole(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Whole(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        // Beyond i128 no range below holds it either.
        Ok(Node::Whole(i128::try_from(value).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Fraction)
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        while items.next_element::<Node>()?.is_some() {}
        Ok(Node::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<Node, Node>()? {
            let key = match key {
                Node::Text(text) => text,
                Node::Whole(number) => number.to_string(),
                Node::Switch(value) => value.to_string(),
                Node::Empty | Node::Fraction | Node::List | Node::Section(_) | Node::Tagged => {
                    return Err(A::Error::custom("a key is not a plain text"));
                }
            };
            entries.push((key, value));
        }
        Ok(Node::Section(entries))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Node, A::Error> {
        let (_, content) = data.variant::<Node>()?;
        content.newtype_variant::<Node>()?;
        Ok(Node::Tagged)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[test]
    fn every_kind_of_value_is_taken_and_duplicates_are_kept() {
        let yaml = "a: 1\na: 2\nb: 1.5\nc: [x]\nd: !secret x\ne:\nf: yes\ng: true\n\
                    h: 340282366920938463463374607431768211455\ni: {j: k}\n7: x";
        let Ok(Node::Section(entries)) = parse(yaml) else {
            panic!("no section");
        };
        let classes: Vec<String> =
            entries.iter().map(|(key, node)| format!("{key} {}", node.class())).collect();
        assert_eq!(
            classes,
            [
                "a is a number",
                "a is a number",
                "b is a number with a fraction",
                "c is a list",
                "d has a YAML tag",
                "e is empty",
                "f is a text of 3 characters",
                "g is true or false",
                "h is a number",
                "i is a section",
                "7 is a text of 1 character",
            ]
        );
    }

    #[test]
    fn errors_name_the_place_not_the_content() {
        for yaml in [
            "a: \"hunter2",
            "hunter2: [",
            "a: *hunter2",
            "? [hunter2]\n: 1",
            "a: b: hunter2",
            "\thunter2",
            "a: \"\\hunter2\"",
            "%hunter2",
            "--- a\n--- hunter2",
            "a: !!int hunter2",
            "a: !!float hunter2",
            "a: !!bool hunter2",
            "a: !!null hunter2",
        ] {
            match parse(yaml) {
                Err(message) => assert!(!message.contains("hunter2"), "{message}"),
                Ok(node) => assert!(!format!("{node:?}").contains("hunter2")),
            }
        }
    }

    #[test]
    fn a_document_that_unfolds_without_end_is_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(9);
            writeln!(bomb, "a{level}: &a{level} [{below}]").expect("text grows");
        }
        assert!(parse(&bomb).is_err());
        assert!(parse(&"x".repeat(MAX_BYTES + 1)).is_err());
    }
}
