//! The last lines of what was printed, however much that is: a value to put lines into. Pure.

use std::collections::VecDeque;

/// Lines that are kept: the end of a failed test, and of what Schemathesis says of one failure.
pub(crate) const LINES_MAX: usize = 60;

/// Bytes of a line that are read as one: a longer line is kept in pieces, each of which counts.
pub(crate) const LINE_BYTES_MAX: u64 = 4096;

/// The newest lines.
#[derive(Debug)]
pub(crate) struct Tail(VecDeque<String>);

impl Tail {
    /// Returns one with no line.
    pub(crate) const fn new() -> Self {
        Self(VecDeque::new())
    }

    /// Takes one more line, or several with their ends between them, and lets the oldest go.
    pub(crate) fn push(&mut self, text: &str) {
        for line in text.lines() {
            if self.0.len() == LINES_MAX {
                self.0.pop_front();
            }
            self.0.push_back(line.to_owned());
        }
    }

    /// Returns the lines, the oldest first, and begins anew.
    pub(crate) fn take(&mut self) -> Vec<String> {
        self.0.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_lines_are_kept_and_only_once() {
        let mut tail = Tail::new();
        for line in 0..1000 {
            tail.push(&format!("line {line}\nits second half"));
        }
        let kept = tail.take();
        assert_eq!(kept.len(), LINES_MAX);
        assert_eq!(kept[LINES_MAX - 2..], ["line 999", "its second half"]);
        assert_eq!(kept[0], "line 970");
        assert!(tail.take().is_empty());
    }
}
