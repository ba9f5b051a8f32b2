//! `objects.list`: prefix, delimiter, offsets, pages.

use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use serde_json::{Value, json};

use super::{Bucket, object::Object};
use crate::wire::{Call, Reply};

/// Largest page, and the default.
const PAGE: u64 = 1_000;

/// An object, or all objects that share a name up to the delimiter.
enum Entry<'a> {
    Object(&'a str, &'a Object),
    Prefix(&'a str),
}

impl Entry<'_> {
    fn name(&self) -> &str {
        match self {
            Entry::Object(name, _) | Entry::Prefix(name) => name,
        }
    }
}

pub(super) fn objects(call: &Call, name: &str, bucket: &Bucket) -> Result<Value, Box<Reply>> {
    let given = |key: &str| call.query(key).filter(|value| !value.is_empty());
    let prefix = given("prefix").unwrap_or_default();
    let after = match given("pageToken") {
        Some(token) => {
            Some(page_end(token).ok_or_else(|| super::access::invalid("Invalid argument."))?)
        }
        None => None,
    };
    let mut entries: Vec<Entry<'_>> = Vec::new();
    let inside = bucket.objects.iter().filter(|(object, _)| {
        object.starts_with(prefix)
            && given("startOffset").is_none_or(|start| object.as_str() >= start)
            && given("endOffset").is_none_or(|end| object.as_str() < end)
    });
    for (object, stored) in inside {
        let group = given("delimiter").and_then(|delimiter| {
            let rest = &object[prefix.len()..];
            rest.find(delimiter).map(|at| &object[..prefix.len() + at + delimiter.len()])
        });
        match group {
            Some(group) if entries.last().is_some_and(|last| last.name() == group) => {}
            Some(group) => entries.push(Entry::Prefix(group)),
            None => entries.push(Entry::Object(object, stored)),
        }
    }
    entries.retain(|entry| after.as_deref().is_none_or(|after| entry.name() > after));
    let page = usize::try_from(call.number("maxResults").unwrap_or(PAGE).clamp(1, PAGE))
        .unwrap_or(usize::MAX);
    let more = entries.len() > page;
    entries.truncate(page);

    let mut answer = json!({ "kind": "storage#objects" });
    if let (true, Some(last)) = (more, entries.last()) {
        answer["nextPageToken"] = URL_SAFE.encode(last.name()).into();
    }
    let (mut items, mut prefixes) = (Vec::new(), Vec::new());
    for entry in &entries {
        match entry {
            Entry::Object(object, stored) => {
                items.push(stored.resource(&call.origin(), name, object));
            }
            Entry::Prefix(group) => prefixes.push(Value::from(*group)),
        }
    }
    // What is empty is absent, as in every answer of Google's.
    for (key, list) in [("prefixes", prefixes), ("items", items)] {
        if !list.is_empty() {
            answer[key] = list.into();
        }
    }
    Ok(answer)
}

fn page_end(token: &str) -> Option<String> {
    String::from_utf8(URL_SAFE.decode(token).ok()?).ok()
}
