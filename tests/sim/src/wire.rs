//! HTTP as the simulated services see it: a request read to its end, an answer built in one piece.

use std::{convert::Infallible, future::ready, io};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use percent_encoding::percent_decode_str;
use serde_json::Value;

/// The largest request body taken, in bytes; a test bed's objects are far smaller.
const MAX_BODY: usize = 512 << 20;

/// A request, read to its end.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Path as sent, percent-encoded.
    pub(crate) path: String,
    /// Path and query as sent.
    pub(crate) target: String,
    /// Decoded path segments; empty ones are dropped, an encoded slash stays inside its segment.
    pub(crate) segments: Vec<String>,
    /// Decoded parameters. What a service does not know it ignores, as Google does (`$alt`, `prettyPrint`, ..).
    query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// A fault asks for a checksum that does not fit the data.
    pub(crate) spoil_checksum: bool,
}

/// An answer before it is put on the wire.
pub(crate) type Reply = Response<Bytes>;

/// The body type all answers are sent as.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

impl Call {
    pub(crate) async fn read(request: http::Request<Incoming>) -> io::Result<Self> {
        let (head, body) = request.into_parts();
        let body =
            Limited::new(body, MAX_BODY).collect().await.map_err(io::Error::other)?.to_bytes();
        let path = head.uri.path().to_owned();
        let target = head.uri.path_and_query().map_or_else(|| path.clone(), ToString::to_string);
        Ok(Self {
            method: head.method,
            segments: path.split('/').filter(|segment| !segment.is_empty()).map(decoded).collect(),
            query: pairs(head.uri.query().unwrap_or_default()),
            path,
            target,
            headers: head.headers,
            body,
            spoil_checksum: false,
        })
    }

    /// First value of a query parameter.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of a query parameter.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A query parameter that is present and not empty, parsed; what does not parse counts as absent.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.query(name).and_then(|value| value.parse().ok())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Borrowed segments, for slice patterns.
    pub(crate) fn parts(&self) -> Vec<&str> {
        self.segments.iter().map(String::as_str).collect()
    }

    /// The body as JSON; an empty body is an empty object, as Google takes it.
    pub(crate) fn json(&self) -> Option<Value> {
        if self.body.is_empty() {
            Some(Value::Object(serde_json::Map::new()))
        } else {
            serde_json::from_slice(&self.body).ok()
        }
    }

    /// `http://HOST` as the caller knows us, for links in answers: a container knows us by another address than the host does.
    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.header("host").unwrap_or("localhost"))
    }
}

/// `a=b&c=d` of a query or a form, decoded.
pub(crate) fn pairs(encoded: &str) -> Vec<(String, String)> {
    encoded
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(&key.replace('+', " ")), decoded(&value.replace('+', " ")))
        })
        .collect()
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// An answer of the given kind; headers are added by the caller.
pub(crate) fn reply(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(body.into());
    *reply.status_mut() = status;
    set(&mut reply, header::CONTENT_TYPE.as_str(), content_type);
    reply
}

/// JSON, indented by two as Google's REST front ends send it.
pub(crate) fn json(status: StatusCode, value: &Value) -> Reply {
    let text = serde_json::to_vec_pretty(value).expect("a JSON value always serialises");
    reply(status, "application/json; charset=UTF-8", text)
}

pub(crate) fn no_content() -> Reply {
    let mut reply = Response::new(Bytes::new());
    *reply.status_mut() = StatusCode::NO_CONTENT;
    reply
}

/// Sets a header; the value must be one (it comes from our own formatting).
pub(crate) fn set(reply: &mut Reply, name: &str, value: &str) {
    let name = header::HeaderName::from_bytes(name.as_bytes())
        .expect("header names in this crate are tokens");
    if let Ok(value) = header::HeaderValue::from_str(value) {
        reply.headers_mut().insert(name, value);
    }
}

/// The whole answer as it goes out.
pub(crate) fn whole(reply: Reply) -> Response<Body> {
    reply.map(|bytes| Full::new(bytes).map_err(|never: Infallible| match never {}).boxed())
}

/// The answer's head as if whole, its body cut by the connection after `keep` bytes.
pub(crate) fn cut(reply: Reply, keep: usize) -> Response<Body> {
    let length = reply.body().len().to_string();
    let mut reply = reply;
    set(&mut reply, header::CONTENT_LENGTH.as_str(), &length);
    reply.map(|bytes| {
        let kept = bytes.slice(..keep.min(bytes.len()));
        let part = stream::once(ready(Ok(Frame::data(kept))));
        // A pause between the two, in which head and data are put on the wire: an error right after them would discard
        // both.
        let end = stream::once(async {
            tokio::task::yield_now().await;
            Err(io::Error::other("cut by a fault"))
        });
        BodyExt::boxed(StreamBody::new(part.chain(end)))
    })
}

/// CRC-32C as Cloud Storage writes it: base64 of the big-endian bytes.
pub(crate) fn crc32c_base64(data: &[u8]) -> String {
    STANDARD.encode(crc32c::crc32c(data).to_be_bytes())
}

/// A google.rpc error, the shape of Secret Manager and its kin. `reason` is that of `google.rpc.ErrorInfo`.
pub(crate) fn rpc_error(
    status: StatusCode,
    name: &str,
    message: &str,
    reason: Option<(&str, Value)>,
) -> Reply {
    let mut error =
        serde_json::json!({ "code": status.as_u16(), "message": message, "status": name });
    if let Some((reason, metadata)) = reason {
        error["details"] = serde_json::json!([{
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason, "domain": "googleapis.com", "metadata": metadata,
        }]);
    }
    json(status, &serde_json::json!({ "error": error }))
}

/// A Cloud Storage JSON error: the older shape with an `errors` list.
pub(crate) fn storage_error(
    status: StatusCode,
    reason: &str,
    message: &str,
    location: Option<(&str, &str)>,
) -> Reply {
    let mut item = serde_json::json!({ "message": message, "domain": "global", "reason": reason });
    if let Some((kind, name)) = location {
        item["locationType"] = kind.into();
        item["location"] = name.into();
    }
    json(
        status,
        &serde_json::json!({ "error": { "code": status.as_u16(), "message": message, "errors": [item] } }),
    )
}
