//! Strict chunked framing (RFC 9112, 7.1), read beside the HTTP engine: a loose
//! line end or an odd size is where two parsers part ways. Pure.

use crate::answer::Violation;
use crate::check::is_token;

/// Reads chunked framing beside the engine, byte-exact: where the message ends,
/// and whether every line end is CR LF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunks {
    state: Chunk,
    /// Bytes of the present line so far, to bound extensions and trailers.
    line: usize,
}

/// Longest chunk-size line or trailer section, in bytes.
const MAX_CHUNK_LINE: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size {
        value: u64,
        digits: u8,
    },
    Extension {
        value: u64,
    },
    SizeLf {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// In the trailer section; `blank` at the start of a line.
    Trailer {
        blank: bool,
    },
    TrailerLf {
        last: bool,
    },
    Done,
}

impl Chunks {
    /// At the first size line.
    pub(crate) const START: Self = Self { state: Chunk::Size { value: 0, digits: 0 }, line: 0 };

    /// The message has ended.
    pub(crate) fn done(&self) -> bool {
        self.state == Chunk::Done
    }

    /// Takes as much of `bytes` as belongs to this message; returns how much.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let mut at = 0;
        while at < bytes.len() && !self.done() {
            if let Chunk::Data { left } = self.state {
                let here =
                    usize::try_from(left).map_or(bytes.len() - at, |n| n.min(bytes.len() - at));
                at += here;
                let left = left - here as u64;
                self.state = if left == 0 { Chunk::DataCr } else { Chunk::Data { left } };
                continue;
            }
            self.state = self.step(bytes[at])?;
            at += 1;
            self.line += 1;
            if self.line > MAX_CHUNK_LINE {
                return Err(Violation::ChunkFraming);
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<Chunk, Violation> {
        let next = match (self.state, byte) {
            (Chunk::Size { value, digits }, _) if byte.is_ascii_hexdigit() && digits < 15 => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Chunk::Size { value: value * 16 + u64::from(digit), digits: digits + 1 }
            }
            (Chunk::Size { value, digits: 1.. } | Chunk::Extension { value }, b'\r') => {
                Chunk::SizeLf { value }
            }
            (Chunk::Size { value, digits: 1.. }, b';')
            | (Chunk::Extension { value }, b'\t' | b' '..=b'~') => Chunk::Extension { value },
            (Chunk::SizeLf { value: 0 }, b'\n') => {
                self.line = 0;
                Chunk::Trailer { blank: true }
            }
            (Chunk::SizeLf { value }, b'\n') => Chunk::Data { left: value },
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => {
                self.line = 0;
                Chunks::START.state
            }
            (Chunk::Trailer { blank }, b'\r') => Chunk::TrailerLf { last: blank },
            (Chunk::Trailer { blank }, b'\t' | b' '..=b'~' | 0x80..)
                if !blank || is_token(byte) =>
            {
                Chunk::Trailer { blank: false }
            }
            (Chunk::TrailerLf { last: true }, b'\n') => Chunk::Done,
            (Chunk::TrailerLf { last: false }, b'\n') => Chunk::Trailer { blank: true },
            _ => return Err(Violation::ChunkFraming),
        };
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_where_they_end_however_they_are_cut() {
        let message = b"4;ext=1\r\nWiki\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";
        let mut stream = message.to_vec();
        stream.extend_from_slice(b"GET / HTTP/1.1");
        for step in 1..stream.len() {
            let mut chunks = Chunks::START;
            let mut taken = 0;
            for part in stream.chunks(step) {
                taken += chunks.feed(part).expect("well-formed");
            }
            assert_eq!((taken, chunks.done()), (message.len(), true), "step {step}");
        }
    }

    #[test]
    fn loose_chunk_framing_is_refused() {
        for text in [
            "4\nWiki\r\n0\r\n\r\n",
            "4;a\nWiki\r\n0\r\n\r\n",
            "4\r\nWikix\r\n0\r\n\r\n",
            "4\r\nWiki\n0\r\n\r\n",
            "+4\r\nWiki\r\n",
            "0x4\r\nWiki\r\n",
            " 4\r\nWiki\r\n",
            "\r\n",
            "1234567890abcdef\r\n",
            "0\r\n\n",
            "0\r\n folded: x\r\n\r\n",
        ] {
            let mut chunks = Chunks::START;
            assert_eq!(chunks.feed(text.as_bytes()), Err(Violation::ChunkFraming), "{text:?}");
        }
        let endless = format!("4;{}", "x".repeat(2 * MAX_CHUNK_LINE));
        let mut chunks = Chunks::START;
        assert_eq!(chunks.feed(endless.as_bytes()), Err(Violation::ChunkFraming));
    }
}
