//! Answers the edge gives itself: every failure knows whose side it is on, and
//! one total function makes it a status. Such an answer always carries
//! [`ERROR_HEADER`], so that nobody takes it for Dify's.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

/// Names the kind of failure on every answer that is the edge's own.
pub const ERROR_HEADER: HeaderName = HeaderName::from_static("x-dify-edge-error");

/// A request that must not be forwarded, by what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A line ends in LF without CR.
    LineEnd,
    /// The request line is not three words of the right alphabet.
    RequestLine,
    /// CONNECT, TRACE and TRACK have no business here.
    Method,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// `Host` missing, doubled, malformed, or another than the target's.
    Host,
    /// A folded, nameless or otherwise malformed header line.
    Field,
    /// `Content-Length` doubled or not a plain number.
    ContentLength,
    /// `Transfer-Encoding` other than one `chunked`, or beside a length.
    TransferEncoding,
    /// `Expect` other than `100-continue`.
    Expectation,
    /// Chunked framing that two parsers could read differently.
    ChunkFraming,
    /// The path changes its route when decoded or normalised.
    Path,
    /// The request target is too long.
    TargetTooLong,
    /// The head has too many bytes or fields.
    HeadTooLarge,
    /// The head was begun and not finished in time.
    HeadTimeout,
}

/// Why the edge answers instead of Dify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The request itself.
    Refused(Violation),
    /// The client's body broke off, was malformed or came too slowly.
    ClientBody,
    /// The upstream did not take a connection.
    Connect,
    /// The upstream did not take a connection in time.
    ConnectTimeout,
    /// The upstream closed before its answer began.
    Closed,
    /// The upstream's answer is not HTTP.
    Protocol,
    /// The upstream's answer did not begin in time.
    HeadTimeout,
    /// No orders yet: nothing to route by.
    NoOrders,
    /// No route takes this path.
    NoRoute,
    /// The route names an upstream the orders do not have.
    NoUpstream,
    /// Every slot of the upstream is taken and the queue is full or too slow.
    Overloaded,
    /// More connections than this instance takes.
    Connections,
    /// The node or this instance is leaving.
    Draining,
}

/// Whose failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who asked.
    Client,
    /// The container.
    Upstream,
    /// The edge.
    Us,
}

impl Violation {
    /// Short and stable.
    pub fn kind(self) -> &'static str {
        match self {
            Self::LineEnd => "bad-line-end",
            Self::RequestLine => "bad-request-line",
            Self::Method => "method-refused",
            Self::Version => "bad-version",
            Self::Host => "bad-host",
            Self::Field => "bad-header",
            Self::ContentLength => "bad-content-length",
            Self::TransferEncoding => "bad-transfer-encoding",
            Self::Expectation => "bad-expectation",
            Self::ChunkFraming => "bad-chunk-framing",
            Self::Path => "ambiguous-path",
            Self::TargetTooLong => "target-too-long",
            Self::HeadTooLarge => "head-too-large",
            Self::HeadTimeout => "head-timeout",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::LineEnd
            | Self::RequestLine
            | Self::Method
            | Self::Host
            | Self::Field
            | Self::ContentLength
            | Self::TransferEncoding
            | Self::ChunkFraming
            | Self::Path => StatusCode::BAD_REQUEST,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
        }
    }
}

impl Failure {
    /// Short and stable: header, metrics, logs.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Refused(violation) => violation.kind(),
            Self::ClientBody => "client-body",
            Self::Connect => "upstream-connect",
            Self::ConnectTimeout => "upstream-connect-timeout",
            Self::Closed => "upstream-closed",
            Self::Protocol => "upstream-protocol",
            Self::HeadTimeout => "upstream-head-timeout",
            Self::NoOrders => "no-orders",
            Self::NoRoute => "no-route",
            Self::NoUpstream => "no-upstream",
            Self::Overloaded => "overloaded",
            Self::Connections => "too-many-connections",
            Self::Draining => "draining",
        }
    }

    /// Whose failure it is.
    pub fn side(self) -> Side {
        match self {
            Self::Refused(_) | Self::ClientBody | Self::NoRoute => Side::Client,
            Self::Connect
            | Self::ConnectTimeout
            | Self::Closed
            | Self::Protocol
            | Self::HeadTimeout
            | Self::Overloaded => Side::Upstream,
            Self::NoOrders | Self::NoUpstream | Self::Connections | Self::Draining => Side::Us,
        }
    }

    /// The one map from failure to status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Refused(violation) => violation.status(),
            Self::ClientBody => StatusCode::BAD_REQUEST,
            Self::Connect | Self::Closed | Self::Protocol => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout | Self::HeadTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoOrders
            | Self::NoUpstream
            | Self::Overloaded
            | Self::Connections
            | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Seconds after which the same request may fare better.
    fn retry_after(self) -> Option<u16> {
        match self {
            Self::Overloaded | Self::Connections | Self::Draining => Some(1),
            Self::NoOrders | Self::NoUpstream => Some(5),
            Self::Refused(_)
            | Self::ClientBody
            | Self::Connect
            | Self::ConnectTimeout
            | Self::Closed
            | Self::Protocol
            | Self::HeadTimeout
            | Self::NoRoute => None,
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::Refused(_) => "the request is malformed or ambiguous and was not forwarded",
            Self::ClientBody => "the request body broke off or was malformed",
            Self::Connect | Self::ConnectTimeout => {
                "the service behind this path cannot be reached"
            }
            Self::Closed | Self::Protocol => "the service behind this path gave no valid answer",
            Self::HeadTimeout => "the service behind this path did not answer in time",
            Self::NoOrders => "this node is starting",
            Self::NoRoute => "nothing is served at this path",
            Self::NoUpstream => "the service behind this path is not running here",
            Self::Overloaded => "the service behind this path is busy, try again shortly",
            Self::Connections => "this node is busy, try again shortly",
            Self::Draining => "this node is leaving service, try again",
        }
    }

    /// The answer itself.
    pub(crate) fn answer(self) -> Response<Bytes> {
        own(self.status(), self.kind(), self.message(), self.retry_after())
    }
}

/// A path the orders refuse.
pub(crate) fn refusal(status: u16, message: &str) -> Response<Bytes> {
    let status = StatusCode::from_u16(status)
        .ok()
        .filter(|status| status.is_client_error() || status.is_server_error())
        .unwrap_or(StatusCode::FORBIDDEN);
    own(status, "refused", message, None)
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn own(
    status: StatusCode,
    kind: &'static str,
    message: &str,
    retry: Option<u16>,
) -> Response<Bytes> {
    let mut response = json(status, &serde_json::json!({ "kind": kind, "message": message }));
    let headers = response.headers_mut();
    headers.insert(ERROR_HEADER, HeaderValue::from_static(kind));
    if let Some(seconds) = retry {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_the_status_their_side_calls_for() {
        use Failure as F;
        for (failure, status) in [
            (F::Refused(Violation::TransferEncoding), 400),
            (F::Refused(Violation::HeadTimeout), 408),
            (F::Refused(Violation::TargetTooLong), 414),
            (F::Refused(Violation::HeadTooLarge), 431),
            (F::Refused(Violation::Expectation), 417),
            (F::Refused(Violation::Version), 505),
            (F::ClientBody, 400),
            (F::NoRoute, 404),
            (F::Connect, 502),
            (F::Closed, 502),
            (F::Protocol, 502),
            (F::ConnectTimeout, 504),
            (F::HeadTimeout, 504),
            (F::NoOrders, 503),
            (F::NoUpstream, 503),
            (F::Overloaded, 503),
            (F::Connections, 503),
            (F::Draining, 503),
        ] {
            let answer = failure.answer();
            assert_eq!(answer.status().as_u16(), status, "{failure:?}");
            assert_eq!(answer.headers()[ERROR_HEADER], failure.kind());
            assert_eq!(status == 503, answer.headers().contains_key(RETRY_AFTER), "{failure:?}");
            assert_eq!(
                failure.side() == Side::Client,
                (400..500).contains(&status) || failure == F::Refused(Violation::Version),
                "{failure:?}"
            );
        }
    }

    #[test]
    fn a_refusal_never_says_success() {
        assert_eq!(refusal(200, "no").status(), 403);
        assert_eq!(refusal(451, "no").status(), 451);
        assert_eq!(refusal(9, "no").status(), 403);
    }
}
