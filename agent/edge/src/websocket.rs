//! Follows WebSocket frames going by, only to know where one ends (RFC 6455,
//! 5.2). Reads lengths, never contents.

/// Where in the sequence of frames a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Frames {
    /// Header bytes of the present frame so far.
    header: [u8; 10],
    have: usize,
    /// Payload and mask bytes of the present frame still to come.
    left: u64,
}

impl Frames {
    /// The next byte would begin a frame.
    pub(crate) fn at_boundary(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// Takes the next bytes of the stream.
    pub(crate) fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let here = usize::try_from(self.left).map_or(bytes.len(), |n| n.min(bytes.len()));
                self.left -= here as u64;
                bytes = &bytes[here..];
                continue;
            }
            self.header[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if let Some(left) = self.length() {
                self.left = left;
                self.have = 0;
            }
        }
    }

    /// Mask and payload length, once the header has told it.
    fn length(&self) -> Option<u64> {
        let second = (self.have >= 2).then_some(self.header[1])?;
        let payload = match second & 0x7f {
            126 if self.have == 4 => {
                u64::from(u16::from_be_bytes([self.header[2], self.header[3]]))
            }
            127 if self.have == 10 => {
                let mut length = [0; 8];
                length.copy_from_slice(&self.header[2..10]);
                u64::from_be_bytes(length)
            }
            126 | 127 => return None,
            short => u64::from(short),
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        Some(payload.saturating_add(mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x82];
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short @ 0..126), _) => frame.push(mask | short),
            (_, Ok(medium)) => {
                frame.push(mask | 0x7e);
                frame.extend_from_slice(&medium.to_be_bytes());
            }
            _ => {
                frame.push(mask | 0x7f);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.resize(frame.len() + length + if masked { 4 } else { 0 }, 0x7f);
        frame
    }

    #[test]
    fn boundaries_are_found_however_the_stream_is_cut() {
        for (length, masked) in [
            (0, false),
            (0, true),
            (5, true),
            (125, false),
            (126, true),
            (65_535, false),
            (65_536, true),
        ] {
            let one = frame(length, masked);
            for step in [1, 2, 3, 9, 10, 11, 4096] {
                let mut frames = Frames::default();
                let two = [one.clone(), one.clone()].concat();
                let mut fed = 0;
                for part in two.chunks(step) {
                    frames.follow(part);
                    fed += part.len();
                    let at_boundary = fed == one.len() || fed == two.len();
                    assert_eq!(frames.at_boundary(), at_boundary, "{length} {masked} {step} {fed}");
                }
            }
        }
    }
}
