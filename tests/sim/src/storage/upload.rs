//! `objects.insert`: `uploadType` media, multipart and resumable.

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use serde_json::{Map, Value};

use super::{
    Storage,
    access::{self, Access, Conditions},
    object,
    rest::{ok, put},
};
use crate::{
    locked,
    wire::{self, Call, Reply},
};

type Outcome = Result<Reply, Box<Reply>>;

/// All chunks of a resumable upload but the last are a multiple of this (Google's documentation).
const CHUNK: usize = 256 * 1024;

/// A resumable upload under way. Its id is what authorises it.
#[derive(Debug)]
pub(super) struct Upload {
    bucket: String,
    name: String,
    fields: Map<String, Value>,
    conditions: Conditions,
    data: BytesMut,
    /// The object, once complete: a repeated last chunk gets the same answer.
    done: Option<Value>,
}

pub(super) fn answer(storage: &Storage, call: &Call, access: &Access<'_>, bucket: &str) -> Outcome {
    if let Some(id) = call.query("upload_id") {
        return match call.method {
            Method::PUT | Method::POST => proceed(storage, call, access, id),
            Method::DELETE => cancel(storage, id),
            _ => Err(access::invalid("Invalid method for a resumable upload.")),
        };
    }
    if call.method != Method::POST {
        return Err(access::invalid("Uploads must be sent to the upload URL."));
    }
    access.require("storage.objects.create")?;
    match call.query("uploadType") {
        Some("media") => {
            let content_type = call.header("content-type").unwrap_or("application/octet-stream");
            store(storage, call, access, bucket, Map::new(), content_type, call.body.clone())
        }
        Some("multipart") => {
            let (fields, content_type, data) = multipart(call)
                .ok_or_else(|| access::invalid("Invalid multipart request with 0 mime parts."))?;
            store(storage, call, access, bucket, fields, &content_type, data)
        }
        Some("resumable") => begin(storage, call, access, bucket),
        _ => Err(access::invalid(
            "Invalid upload request: uploadType must be media, multipart or resumable.",
        )),
    }
}

fn store(
    storage: &Storage,
    call: &Call,
    access: &Access<'_>,
    bucket: &str,
    mut fields: Map<String, Value>,
    content_type: &str,
    data: Bytes,
) -> Outcome {
    let name = object_name(call, &fields)?;
    object::verify(&data, &fields, call.header("x-goog-hash"))?;
    fields.entry("contentType").or_insert_with(|| content_type.into());
    let mut state = locked(&storage.state);
    ok(&put(
        &mut state,
        storage,
        access,
        &Conditions::of(call),
        (bucket, &name),
        (data, fields),
        &call.origin(),
    )?)
}

fn begin(storage: &Storage, call: &Call, access: &Access<'_>, bucket: &str) -> Outcome {
    let mut fields = super::rest::body_fields(call)?;
    let name = object_name(call, &fields)?;
    if let Some(content_type) = call.header("x-upload-content-type") {
        fields.entry("contentType").or_insert_with(|| content_type.into());
    }
    let conditions = Conditions::of(call);
    let mut state = locked(&storage.state);
    let present = state.bucket(bucket)?.objects.get(&name);
    conditions.check(present)?;
    if present.is_some() {
        access.require("storage.objects.delete")?;
    }
    state.uploads_begun += 1;
    let id = format!("ABg5-Uz{:08}", state.uploads_begun);
    let upload = Upload {
        bucket: bucket.to_owned(),
        name,
        fields,
        conditions,
        data: BytesMut::new(),
        done: None,
    };
    state.uploads.insert(id.clone(), upload);
    let mut reply = wire::reply(StatusCode::OK, "text/plain; charset=utf-8", "");
    wire::set(&mut reply, "x-guploader-uploadid", &id);
    let query = call.target.split_once('?').map_or("", |(_, query)| query);
    wire::set(
        &mut reply,
        "location",
        &format!("{}{}?{query}&upload_id={id}", call.origin(), call.path),
    );
    Ok(reply)
}

fn proceed(storage: &Storage, call: &Call, access: &Access<'_>, id: &str) -> Outcome {
    let mut state = locked(&storage.state);
    let upload = state.uploads.get_mut(id).ok_or_else(gone)?;
    if let Some(done) = &upload.done {
        return ok(done);
    }
    let sent = ContentRange::of(call)?;
    if let Some(first) = sent.first {
        let have = upload.data.len();
        if first > have {
            let text = format!(
                "Invalid request.  According to the Content-Range header, the upload offset is {first} byte(s), \
                 which exceeds already uploaded size of {have} byte(s)."
            );
            return Err(access::invalid(&text));
        }
        // Bytes we have already are sent again after a lost answer; they are skipped.
        let new = call.body.get(have - first..).unwrap_or_default();
        let last = sent.total.is_some_and(|total| have + new.len() == total);
        if !last && !call.body.len().is_multiple_of(CHUNK) {
            let text = format!(
                "Invalid request.  The number of bytes uploaded is required to be equal or greater than {CHUNK}, except for the final request."
            );
            return Err(access::invalid(&text));
        }
        upload.data.extend_from_slice(new);
    }
    if sent.total != Some(upload.data.len()) {
        let mut reply = Reply::default();
        *reply.status_mut() = StatusCode::PERMANENT_REDIRECT;
        wire::set(&mut reply, "x-guploader-uploadid", id);
        if !upload.data.is_empty() {
            wire::set(&mut reply, "range", &format!("bytes=0-{}", upload.data.len() - 1));
        }
        return Ok(reply);
    }
    let (data, fields, conditions) =
        (upload.data.clone().freeze(), upload.fields.clone(), upload.conditions);
    let (bucket, name) = (upload.bucket.clone(), upload.name.clone());
    object::verify(&data, &fields, call.header("x-goog-hash"))?;
    let done = put(
        &mut state,
        storage,
        access,
        &conditions,
        (&bucket, &name),
        (data, fields),
        &call.origin(),
    )?;
    if let Some(upload) = state.uploads.get_mut(id) {
        upload.data = BytesMut::new();
        upload.done = Some(done.clone());
    }
    ok(&done)
}

fn cancel(storage: &Storage, id: &str) -> Outcome {
    locked(&storage.state).uploads.remove(id).ok_or_else(gone)?;
    // 499 is what Cloud Storage answers to a cancelled upload.
    let mut reply = Reply::default();
    *reply.status_mut() = StatusCode::from_u16(499).expect("a status of three digits");
    Ok(reply)
}

fn gone() -> Box<Reply> {
    Box::new(wire::storage_error(StatusCode::NOT_FOUND, "notFound", "Not Found", None))
}

fn object_name(call: &Call, fields: &Map<String, Value>) -> Result<String, Box<Reply>> {
    let name = call
        .query("name")
        .or_else(|| fields.get("name").and_then(Value::as_str))
        .filter(|name| !name.is_empty());
    name.map(str::to_owned).ok_or_else(|| {
        Box::new(wire::storage_error(StatusCode::BAD_REQUEST, "required", "Required", None))
    })
}

/// `Content-Range` of a chunk.
struct ContentRange {
    /// Offset of the first byte; absent when only the state is asked for.
    first: Option<usize>,
    /// Size of the whole, when known.
    total: Option<usize>,
}

impl ContentRange {
    fn of(call: &Call) -> Result<Self, Box<Reply>> {
        let Some(header) = call.header("content-range") else {
            return Ok(Self { first: Some(0), total: Some(call.body.len()) });
        };
        let unclear = || access::invalid("Failed to parse Content-Range header.");
        let (range, total) = header
            .strip_prefix("bytes ")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(unclear)?;
        let total = if total == "*" { None } else { Some(total.parse().map_err(|_| unclear())?) };
        if range == "*" {
            return Ok(Self { first: None, total });
        }
        let (first, last) = range.split_once('-').ok_or_else(unclear)?;
        let (first, last): (usize, usize) =
            (first.parse().map_err(|_| unclear())?, last.parse().map_err(|_| unclear())?);
        if last < first || last - first + 1 != call.body.len() {
            return Err(unclear());
        }
        Ok(Self { first: Some(first), total })
    }
}

/// The two parts of a `multipart/related` body: the resource, then the data with its type. Lines may end in a bare line
/// feed: googleapiclient for Python sends them so.
fn multipart(call: &Call) -> Option<(Map<String, Value>, String, Bytes)> {
    let content_type = call.header("content-type")?;
    let boundary =
        content_type.split(';').find_map(|part| part.trim().strip_prefix("boundary="))?;
    let delimiter = format!("--{}", boundary.trim_matches(['"', '\'']));
    let body = &call.body[..];
    let after = |from: usize| {
        find(&body[from..], delimiter.as_bytes()).map(|at| from + at + delimiter.len())
    };
    let first = after(0)?;
    let newline = if body[first..].starts_with(b"\r\n") { "\r\n" } else { "\n" };
    let second = after(first)?;
    let end = rfind(body, format!("{newline}{delimiter}--").as_bytes())?;
    let (_, resource) = part(&body[first..second - delimiter.len()], newline)?;
    let (headers, data) = part(body.get(second..end)?, newline)?;
    let fields = serde_json::from_slice(resource).ok()?;
    let content_type = headers.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-type").then(|| value.trim().to_owned())
    });
    let content_type = content_type.unwrap_or_else(|| "application/octet-stream".into());
    Some((fields, content_type, call.body.slice_ref(data)))
}

/// Headers and content of one part; a part without headers begins with its empty line.
fn part<'a>(bytes: &'a [u8], newline: &str) -> Option<(String, &'a [u8])> {
    let empty_line = newline.repeat(2);
    let at = find(bytes, empty_line.as_bytes())?;
    let headers = String::from_utf8_lossy(&bytes[..at]).into_owned();
    Some((headers, &bytes[at + empty_line.len()..]))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn rfind(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).rposition(|window| window == needle)
}
