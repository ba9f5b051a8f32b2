//! Lines out of chunks: Docker hands on whatever a container wrote at once.

use std::collections::VecDeque;

/// A longer line is cut here, and the rest is a line of its own.
const LONGEST: usize = 16 * 1024;

/// Cuts one stream of bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes a chunk, gives the lines it completes, without their ends.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in chunk {
            if *byte == b'\n' || self.rest.len() >= LONGEST {
                lines.push(self.take());
            }
            if *byte != b'\n' {
                self.rest.push(*byte);
            }
        }
        lines
    }

    /// What came after the last line end.
    pub fn finish(&mut self) -> Option<String> {
        (!self.rest.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let line = std::mem::take(&mut self.rest);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        String::from_utf8_lossy(line).into_owned()
    }
}

/// The last lines of something, bounded in number.
#[derive(Debug)]
pub struct Tail {
    lines: VecDeque<String>,
    most: usize,
}

impl Tail {
    /// Keeps the last `most`.
    pub fn new(most: usize) -> Self {
        Self { lines: VecDeque::with_capacity(most), most }
    }

    /// Adds one.
    pub fn push(&mut self, line: String) {
        if self.lines.len() == self.most {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// What was kept, oldest first.
    pub fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_become_lines() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"a\nb"), ["a"]);
        assert_eq!(lines.push(b"c\r\n\n"), ["bc", ""]);
        assert_eq!(lines.finish(), None);
        assert_eq!(lines.push(&[0xff, b'x']), Vec::<String>::new());
        assert_eq!(lines.finish().expect("a rest"), "\u{fffd}x");
        let long = lines.push(&vec![b'y'; LONGEST + 1]);
        assert_eq!((long.len(), long[0].len()), (1, LONGEST));
        assert_eq!(lines.finish().as_deref(), Some("y"));
    }

    #[test]
    fn a_tail_keeps_the_last() {
        let mut tail = Tail::new(2);
        for line in ["a", "b", "c"] {
            tail.push(line.to_owned());
        }
        assert_eq!(tail.into_lines(), ["b", "c"]);
    }
}
