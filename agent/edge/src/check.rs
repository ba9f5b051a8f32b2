//! Strict reading of request heads, before the HTTP engine sees them.
//!
//! hyper is lenient where two parsers in a row must not be: it drops
//! `Content-Length` beside `Transfer-Encoding`, accepts doubled framing headers,
//! and knows nothing of `Host`. Each of those shapes can mean one request to us
//! and another to the container (request smuggling; RFC 9112 sections 6.3 and
//! 11.2), so all of them are refused here. Pure functions over bytes: no I/O, no
//! clock; the same functions are meant for fuzzing.

use crate::answer::Violation;

/// Longest head taken, in bytes: what Dify's nginx takes at its defaults
/// (four buffers of 8 KiB).
pub(crate) const MAX_HEAD: usize = 32 * 1024;
/// Most header fields taken; hyper's own limit.
const MAX_FIELDS: usize = 100;
/// Longest request target, in bytes.
const MAX_TARGET: usize = 16 * 1024;

/// How long the body after a head is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Exactly so many bytes.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
}

/// What a run of bytes that begins with a head turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scan {
    /// The head has not ended yet.
    Partial,
    /// A head of `len` bytes, its blank line included.
    Head { len: usize, framing: Framing },
    /// Not to be forwarded.
    Refused(Violation),
}

/// Looks for one request head at the start of `bytes`. The first `seen` bytes
/// were looked at before, so that a dribbled head costs linear time.
pub(crate) fn scan(bytes: &[u8], seen: usize) -> Scan {
    for at in seen..bytes.len().min(MAX_HEAD) {
        if bytes[at] != b'\n' {
            continue;
        }
        if at == 0 || bytes[at - 1] != b'\r' {
            return Scan::Refused(Violation::LineEnd);
        }
        if at < 3 {
            return Scan::Refused(Violation::RequestLine);
        }
        if bytes[at - 3] == b'\r' && bytes[at - 2] == b'\n' {
            return match check(&bytes[..at - 3]) {
                Ok(framing) => Scan::Head { len: at + 1, framing },
                Err(violation) => Scan::Refused(violation),
            };
        }
    }
    if bytes.len() >= MAX_HEAD {
        return Scan::Refused(Violation::HeadTooLarge);
    }
    Scan::Partial
}

/// Checks a whole head, without the two line ends that close it.
fn check(head: &[u8]) -> Result<Framing, Violation> {
    let mut lines = Lines(Some(head));
    let (target, http_10) = request_line(lines.next().unwrap_or_default())?;
    let (mut host, mut length, mut coding) = (None, None, None);
    for (index, line) in lines.enumerate() {
        if index == MAX_FIELDS {
            return Err(Violation::HeadTooLarge);
        }
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            once(&mut host, value, Violation::Host)?;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            once(&mut length, value, Violation::ContentLength)?;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            once(&mut coding, value, Violation::TransferEncoding)?;
        } else if name.eq_ignore_ascii_case(b"expect")
            && !value.eq_ignore_ascii_case(b"100-continue")
        {
            return Err(Violation::Expectation);
        }
    }
    let host = host.ok_or(Violation::Host)?;
    if !is_authority(host) {
        return Err(Violation::Host);
    }
    if target[0] != b'/' {
        absolute_form(target, host)?;
    }
    match (length, coding) {
        (None, None) => Ok(Framing::Length(0)),
        (Some(length), None) => content_length(length).map(Framing::Length),
        (None, Some(coding)) if !http_10 && coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(Framing::Chunked)
        }
        (_, Some(_)) => Err(Violation::TransferEncoding),
    }
}

/// Lines between CR LF. A CR elsewhere stays in the line and is refused there.
struct Lines<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.0?;
        if let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
            self.0 = Some(&rest[at + 2..]);
            return Some(&rest[..at]);
        }
        self.0 = None;
        Some(rest)
    }
}

fn request_line(line: &[u8]) -> Result<(&[u8], bool), Violation> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Violation::RequestLine);
    };
    if method.is_empty() || !method.iter().copied().all(is_token) {
        return Err(Violation::RequestLine);
    }
    if matches!(method, b"CONNECT" | b"TRACE" | b"TRACK") {
        return Err(Violation::Method);
    }
    if target.len() > MAX_TARGET {
        return Err(Violation::TargetTooLong);
    }
    // A raw byte outside visible ASCII, or a fragment, is never part of a target.
    if target.is_empty() || !target.iter().all(|b| (0x21..=0x7e).contains(b) && *b != b'#') {
        return Err(Violation::RequestLine);
    }
    match version {
        b"HTTP/1.1" => Ok((target, false)),
        b"HTTP/1.0" => Ok((target, true)),
        _ => Err(Violation::Version),
    }
}

/// Splits a header line; refuses folds, blanks before the colon and control bytes.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, value) = line.split_at(colon.ok_or(Violation::Field)?);
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Violation::Field);
    }
    let value = value[1..].trim_ascii();
    if value.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f) {
        return Err(Violation::Field);
    }
    Ok((name, value))
}

fn once<'a>(
    slot: &mut Option<&'a [u8]>,
    value: &'a [u8],
    twice: Violation,
) -> Result<(), Violation> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(twice),
    }
}

/// Digits only: `+2`, `2, 2` and the empty text are how parsers come to differ.
fn content_length(value: &[u8]) -> Result<u64, Violation> {
    let plausible = (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value)
        .ok()
        .filter(|_| plausible)
        .and_then(|text| text.parse().ok())
        .ok_or(Violation::ContentLength)
}

/// `http://authority/path` is allowed when it names the same host as `Host`.
fn absolute_form(target: &[u8], host: &[u8]) -> Result<(), Violation> {
    let rest = [&b"http://"[..], b"https://"]
        .iter()
        .find_map(|scheme| target.strip_prefix(*scheme))
        .ok_or(Violation::RequestLine)?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?'));
    let authority = &rest[..end.unwrap_or(rest.len())];
    if is_authority(authority) && authority.eq_ignore_ascii_case(host) {
        Ok(())
    } else {
        Err(Violation::Host)
    }
}

/// `uri-host [":" port]` without user information.
fn is_authority(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|b| b.is_ascii_alphanumeric() || b".-_~:[]%".contains(b))
        && text.first() != Some(&b':')
}

/// A byte of an RFC 9110 token.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Scan {
        scan(text.as_bytes(), 0)
    }

    #[test]
    fn ordinary_heads_pass_with_their_framing() {
        for (text, framing) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::Length(0)),
            ("GET / HTTP/1.0\r\nhost: a:80\r\n\r\n", Framing::Length(0)),
            (
                "POST /v1 HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 12\r\n\r\n",
                Framing::Length(12),
            ),
            (
                "POST /v1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
                Framing::Chunked,
            ),
            ("GET http://A.b/x HTTP/1.1\r\nHost: a.B\r\n\r\n", Framing::Length(0)),
        ] {
            assert_eq!(head(text), Scan::Head { len: text.len(), framing }, "{text:?}");
        }
        let pipelined = "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2";
        assert_eq!(
            head(pipelined),
            Scan::Head { len: pipelined.len() - 6, framing: Framing::Length(0) }
        );
    }

    #[test]
    fn a_dribbled_head_is_found_wherever_it_was_cut() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(scan(&text[..cut], 0), Scan::Partial, "cut at {cut}");
            assert_eq!(scan(text, cut), scan(text, 0), "cut at {cut}");
        }
    }

    #[test]
    fn shapes_two_parsers_could_read_differently_are_refused() {
        use Violation as V;
        let line = "GET / HTTP/1.1\r\nHost: a\r\n";
        for (fields, violation) in [
            ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", V::TransferEncoding),
            ("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", V::TransferEncoding),
            ("Content-Length: 2\r\nContent-Length: 2\r\n", V::ContentLength),
            ("Content-Length: 2, 2\r\n", V::ContentLength),
            ("Content-Length: +2\r\n", V::ContentLength),
            ("Content-Length: -1\r\n", V::ContentLength),
            ("Content-Length:\r\n", V::ContentLength),
            ("Content-Length: 99999999999999999999\r\n", V::ContentLength),
            ("Transfer-Encoding: identity, chunked\r\n", V::TransferEncoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", V::TransferEncoding),
            ("Transfer-Encoding: xchunked\r\n", V::TransferEncoding),
            ("Host: b\r\n", V::Host),
            ("X: a\r\n folded\r\n", V::Field),
            ("X : a\r\n", V::Field),
            ("X: a\rb\r\n", V::Field),
            ("X: a\0b\r\n", V::Field),
            (": a\r\n", V::Field),
            ("no colon\r\n", V::Field),
            ("X: a\n", V::LineEnd),
            ("Expect: 200-maybe\r\n", V::Expectation),
        ] {
            assert_eq!(
                head(&format!("{line}{fields}\r\n")),
                Scan::Refused(violation),
                "{fields:?}"
            );
        }
    }

    #[test]
    fn bad_request_lines_and_hosts_are_refused() {
        use Violation as V;
        for (text, violation) in [
            ("GET / HTTP/1.1\r\n\r\n", V::Host),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", V::Host),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", V::Host),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", V::Host),
            ("GET http://other/ HTTP/1.1\r\nHost: a\r\n\r\n", V::Host),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", V::RequestLine),
            ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", V::RequestLine),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", V::RequestLine),
            ("GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", V::RequestLine),
            ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", V::RequestLine),
            ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", V::RequestLine),
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", V::RequestLine),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", V::Version),
            ("GET /\r\nHost: a\r\n\r\n", V::RequestLine),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", V::Method),
            ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", V::Method),
            (
                "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
                V::TransferEncoding,
            ),
            ("GET / HTTP/1.1\nHost: a\n\n", V::LineEnd),
        ] {
            assert_eq!(head(text), Scan::Refused(violation), "{text:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(MAX_TARGET));
        assert_eq!(head(&long), Scan::Refused(V::TargetTooLong));
        let wide = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(MAX_HEAD));
        assert_eq!(head(&wide), Scan::Refused(V::HeadTooLarge));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(MAX_FIELDS));
        assert_eq!(head(&many), Scan::Refused(V::HeadTooLarge));
    }
}
