//! An object and its JSON resource.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use md5::{Digest as _, Md5};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::access;
use crate::{
    clock::rfc3339,
    wire::{self, Reply},
};

/// Fields of the resource that a client may set; others of its body are ignored.
const SETTABLE: [&str; 6] = [
    "contentType",
    "cacheControl",
    "contentDisposition",
    "contentEncoding",
    "contentLanguage",
    "metadata",
];

/// What an object's name keeps unescaped in links.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) data: Bytes,
    /// Settable fields, as the resource shows them.
    fields: Map<String, Value>,
    pub(super) generation: u64,
    pub(super) metageneration: u64,
    pub(super) created: Duration,
    pub(super) updated: Duration,
}

impl Object {
    pub(super) fn new(
        data: Bytes,
        fields: Map<String, Value>,
        generation: u64,
        now: Duration,
    ) -> Self {
        let fields =
            fields.into_iter().filter(|(key, _)| SETTABLE.contains(&key.as_str())).collect();
        Self { data, fields, generation, metageneration: 1, created: now, updated: now }
    }

    /// A JSON merge patch on the settable fields.
    pub(super) fn patch(&mut self, patch: &Map<String, Value>, now: Duration) {
        for (key, value) in patch.iter().filter(|(key, _)| SETTABLE.contains(&key.as_str())) {
            match (value, self.fields.get_mut(key)) {
                (Value::Null, _) => {
                    self.fields.remove(key);
                }
                (Value::Object(changes), Some(Value::Object(present))) => {
                    present.extend(changes.clone());
                    present.retain(|_, value| !value.is_null());
                }
                _ => {
                    self.fields.insert(key.clone(), value.clone());
                }
            }
        }
        self.metageneration += 1;
        self.updated = now;
    }

    pub(super) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    pub(super) fn content_type(&self) -> &str {
        self.fields.get("contentType").and_then(Value::as_str).unwrap_or("application/octet-stream")
    }

    pub(super) fn metadata(&self) -> BTreeMap<String, String> {
        let map = self.fields.get("metadata").and_then(Value::as_object).into_iter().flatten();
        map.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// A hash of generation and metageneration: the base64 of a protocol buffer of both, as Google's look.
    pub(super) fn etag(&self) -> String {
        let mut bytes = Vec::new();
        for (tag, number) in [(0x08, self.generation), (0x10, self.metageneration)] {
            bytes.push(tag);
            let mut rest = number;
            while rest >= 0x80 {
                bytes.push(u8::try_from(rest & 0x7f).expect("seven bits") | 0x80);
                rest >>= 7;
            }
            bytes.push(u8::try_from(rest).expect("seven bits"));
        }
        STANDARD.encode(bytes)
    }

    /// The resource. `origin` is the service as the caller knows it.
    pub(super) fn resource(&self, origin: &str, bucket: &str, name: &str) -> Value {
        let link = utf8_percent_encode(name, NAME);
        let generation = self.generation.to_string();
        let mut value = json!({
            "kind": "storage#object",
            "id": format!("{bucket}/{name}/{generation}"),
            "selfLink": format!("{origin}/storage/v1/b/{bucket}/o/{link}"),
            "mediaLink": format!("{origin}/download/storage/v1/b/{bucket}/o/{link}?generation={generation}&alt=media"),
            "name": name, "bucket": bucket,
            "generation": generation, "metageneration": self.metageneration.to_string(),
            "storageClass": "STANDARD", "size": self.data.len().to_string(),
            "md5Hash": md5_base64(&self.data), "crc32c": wire::crc32c_base64(&self.data), "etag": self.etag(),
            "timeCreated": rfc3339(self.created), "updated": rfc3339(self.updated),
            "timeStorageClassUpdated": rfc3339(self.created), "timeFinalized": rfc3339(self.created),
        });
        let fields = value.as_object_mut().expect("built as an object");
        fields.extend(self.fields.clone());
        value
    }
}

/// Refuses data that does not fit the checksums its sender gave, in the resource or in `X-Goog-Hash`.
pub(super) fn verify(
    data: &[u8],
    fields: &Map<String, Value>,
    goog_hash: Option<&str>,
) -> Result<(), Box<Reply>> {
    let header = goog_hash.into_iter().flat_map(|header| header.split(','));
    let header = header
        .filter_map(|pair| pair.trim().split_once('='))
        .map(|(kind, value)| (kind.to_owned(), value.to_owned()));
    let field = |key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
    let body = [("md5", field("md5Hash")), ("crc32c", field("crc32c"))];
    let body = body.into_iter().filter_map(|(kind, value)| Some((kind.to_owned(), value?)));
    for (kind, provided) in body.chain(header) {
        let (noun, calculated) = match kind.as_str() {
            "md5" => ("MD5 hash", md5_base64(data)),
            "crc32c" => ("CRC32C", wire::crc32c_base64(data)),
            _ => continue,
        };
        if provided != calculated {
            let text = format!(
                "Provided {noun} \"{provided}\" doesn't match calculated {noun} \"{calculated}\"."
            );
            return Err(access::invalid(&text));
        }
    }
    Ok(())
}

pub(super) fn md5_base64(data: &[u8]) -> String {
    STANDARD.encode(Md5::digest(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_etags_look_like_googles() {
        // Check values of RFC 3720 (CRC-32C) and RFC 1321 (MD5).
        assert_eq!(wire::crc32c_base64(b"123456789"), "4waSgw==");
        assert_eq!(md5_base64(b""), "1B2M2Y8AsgTpgAmY7PhCfg==");
        let object = Object::new(Bytes::new(), Map::new(), 1_521_045_920_000_000, Duration::ZERO);
        let etag = object.etag();
        assert!(etag.starts_with("CI") && etag.ends_with("EAE="), "{etag}");
    }
}
