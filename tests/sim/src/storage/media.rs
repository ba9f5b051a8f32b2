//! An object's bytes: whole or a range of them, by the JSON API (`alt=media`) and by the XML API (`/BUCKET/OBJECT`),
//! which Google's Go client reads through.

use std::ops::Range;

use http::StatusCode;

use super::object::{Object, md5_base64};
use crate::wire::{self, Call, Reply};

pub(super) fn reply(call: &Call, object: &Object) -> Reply {
    let size = object.data.len();
    let mut reply = match call.header("range").map(|header| range(header, size)) {
        // A header we do not understand is ignored (RFC 9110, 14.2).
        None | Some(Asked::Unclear) => {
            wire::reply(StatusCode::OK, object.content_type(), object.data.clone())
        }
        Some(Asked::Part(part)) => {
            let shown = format!("bytes {}-{}/{size}", part.start, part.end - 1);
            let mut reply = wire::reply(
                StatusCode::PARTIAL_CONTENT,
                object.content_type(),
                object.data.slice(part),
            );
            wire::set(&mut reply, "content-range", &shown);
            reply
        }
        Some(Asked::Beyond) => {
            let text = "Request range not satisfiable";
            let mut reply = wire::storage_error(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "requestedRangeNotSatisfiable",
                text,
                None,
            );
            wire::set(&mut reply, "content-range", &format!("bytes */{size}"));
            return reply;
        }
    };
    let checksum =
        if call.spoil_checksum { "AAAAAA==".to_owned() } else { wire::crc32c_base64(&object.data) };
    for (name, value) in [
        ("accept-ranges", "bytes".to_owned()),
        ("etag", object.etag()),
        ("x-goog-generation", object.generation.to_string()),
        ("x-goog-hash", format!("crc32c={checksum},md5={}", md5_base64(&object.data))),
        ("x-goog-metageneration", object.metageneration.to_string()),
        ("x-goog-storage-class", "STANDARD".to_owned()),
        ("x-goog-stored-content-encoding", "identity".to_owned()),
        ("x-goog-stored-content-length", size.to_string()),
    ] {
        wire::set(&mut reply, name, &value);
    }
    for (field, header) in
        [("cacheControl", "cache-control"), ("contentDisposition", "content-disposition")]
    {
        if let Some(value) = object.fields().get(field).and_then(serde_json::Value::as_str) {
            wire::set(&mut reply, header, value);
        }
    }
    reply
}

enum Asked {
    Part(Range<usize>),
    Beyond,
    Unclear,
}

/// One range of a `Range` header; Cloud Storage serves no more than one.
fn range(header: &str, size: usize) -> Asked {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Asked::Unclear;
    };
    let part = match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
        (Ok(first), Ok(last)) if first <= last => first..(last + 1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(count)) if first.is_empty() => size.saturating_sub(count)..size,
        _ => return Asked::Unclear,
    };
    if part.start < part.end { Asked::Part(part) } else { Asked::Beyond }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_inclusive_and_clipped() {
        let part = |header| match range(header, 10) {
            Asked::Part(part) => Some((part.start, part.end)),
            Asked::Beyond | Asked::Unclear => None,
        };
        assert_eq!(part("bytes=0-3"), Some((0, 4)));
        assert_eq!(part("bytes=4-"), Some((4, 10)));
        assert_eq!(part("bytes=-3"), Some((7, 10)));
        assert_eq!(part("bytes=8-99"), Some((8, 10)));
        assert!(matches!(range("bytes=10-", 10), Asked::Beyond));
        assert!(matches!(range("bytes=5-2", 10), Asked::Unclear));
        assert!(matches!(range("lines=1-2", 10), Asked::Unclear));
    }
}
