//! The output of one of many nodes: cut into lines, each behind the node's name. Pure.
//!
//! Bytes stay as they are where nobody looks. A terminal gets them made visible, line by line, so
//! that nothing of one node's output acts on the next line, which may be another's.

use crate::visible::Visible;

/// Bytes of a line, at the most; a longer one is shown as several. All that waits for the end of a
/// line is kept: of a thousand nodes with two outputs each that is 16 MiB at the worst.
pub(super) const LINE_BYTES_MAX: usize = 8 * 1024;

/// How lines are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Bytes as they are: they go to a file or a program.
    Plain,
    /// Made visible, for a terminal.
    Visible,
}

/// Whether names are told apart by colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    /// They are not.
    None,
    /// Each node has its colour, which is the same every time.
    ByNode,
}

/// Colours that are read on dark and on light: no red, which means an error elsewhere.
const COLOURS: [u8; 10] = [36, 33, 32, 35, 34, 96, 93, 92, 95, 94];

/// Returns what goes in front of each line of a node: its name, as long as the others'.
pub(super) fn prefix(node_id: &str, label: &str, width: usize, paint: Paint) -> String {
    match paint {
        Paint::None => format!("{label:width$} | "),
        Paint::ByNode => {
            let sum = node_id.bytes().fold(0_usize, |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(byte.into())
            });
            let colour = COLOURS[sum % COLOURS.len()];
            format!("\x1b[{colour}m{label:width$}\x1b[0m | ")
        }
    }
}

/// One output of one node, as it comes.
#[derive(Debug)]
pub(super) struct Lines {
    prefix: String,
    look: Look,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
}

impl Lines {
    /// Every line begins with `prefix`.
    pub(super) fn new(prefix: String, look: Look) -> Self {
        Self {
            prefix,
            look,
            begun: Vec::new(),
        }
    }

    /// Takes what the command wrote next, and appends to `out` the lines that are whole.
    pub(super) fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (line, is_whole) = match piece.strip_suffix(b"\n") {
                Some(line) => (line, true),
                None => (piece, false),
            };
            self.begun.extend_from_slice(line);
            while self.begun.len() > LINE_BYTES_MAX {
                let end = whole_characters(&self.begun[..LINE_BYTES_MAX]);
                let rest = self.begun.split_off(end);
                self.line(out);
                self.begun = rest;
            }
            if is_whole {
                self.line(out);
            }
        }
    }

    /// Appends the line that has not ended: nothing follows.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.begun.is_empty() {
            self.line(out);
        }
    }

    fn line(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix.as_bytes());
        match self.look {
            Look::Plain => out.extend_from_slice(&self.begun),
            Look::Visible => {
                let line = self.begun.strip_suffix(b"\r").unwrap_or(&self.begun);
                let (mut visible, mut shown) = (Visible::default(), String::new());
                visible.feed(line, &mut shown);
                visible.finish(&mut shown);
                out.extend_from_slice(shown.as_bytes());
            }
        }
        out.push(b'\n');
        self.begun.clear();
    }
}

/// Returns the length without a character that is cut at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    let begins = |at: &usize| bytes[*at] >= 0xc0;
    match (tail..bytes.len()).rev().find(begins) {
        Some(at) if std::str::from_utf8(&bytes[at..]).is_err_and(|e| e.error_len().is_none()) => at,
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(look: Look, pieces: &[&[u8]]) -> Vec<u8> {
        let mut lines = Lines::new("a | ".to_owned(), look);
        let mut out = Vec::new();
        for piece in pieces {
            lines.feed(piece, &mut out);
        }
        lines.finish(&mut out);
        out
    }

    #[test]
    fn every_line_begins_with_the_name_and_ends() {
        for (pieces, expected) in [
            (&[&b"one\ntwo\n"[..]][..], "a | one\na | two\n"),
            (&[b"one", b"\nt", b"wo"], "a | one\na | two\n"),
            (&[b"\n\n"], "a | \na | \n"),
            (&[b""], ""),
        ] {
            let shown = shown(Look::Plain, pieces);
            assert_eq!(String::from_utf8(shown).unwrap(), expected);
        }
    }

    #[test]
    fn names_are_equally_long_and_a_node_keeps_its_colour() {
        assert_eq!(prefix("id", "a", 3, Paint::None), "a   | ");
        assert_eq!(prefix("id", "grün", 3, Paint::None), "grün | ");
        let painted = prefix("id", "a", 3, Paint::ByNode);
        assert!(painted.starts_with("\x1b[") && painted.ends_with("ma  \x1b[0m | "));
        assert_eq!(
            prefix("id", "b", 3, Paint::ByNode),
            painted.replace('a', "b")
        );
    }

    #[test]
    fn a_line_is_shown_when_it_has_ended() {
        let mut lines = Lines::new("a | ".to_owned(), Look::Plain);
        let mut out = Vec::new();
        lines.feed(b"begun", &mut out);
        assert!(out.is_empty());
        lines.feed(b" and ended\nnext", &mut out);
        assert_eq!(out, b"a | begun and ended\n");
    }

    #[test]
    fn bytes_stay_as_they_are_where_nobody_looks() {
        let bytes = b"\x1b[31m\x00\xff\r\n50%\r100%\n";
        let expected = b"a | \x1b[31m\x00\xff\r\na | 50%\r100%\n";
        assert_eq!(shown(Look::Plain, &[bytes]), expected);
    }

    #[test]
    fn a_terminal_is_not_acted_upon() {
        let bytes = b"\x1b[31mred\xc3\r\n50%\r100%\n";
        let shown = shown(Look::Visible, &[bytes]);
        let expected = "a | ␛[31mred\\xc3\na | 50%␍100%\n";
        assert_eq!(String::from_utf8(shown).unwrap(), expected);
    }

    #[test]
    fn a_line_without_an_end_is_cut_between_characters() {
        let line = "ä".repeat(LINE_BYTES_MAX);
        let shown = shown(Look::Plain, &[b"x", line.as_bytes()]);
        let text = String::from_utf8(shown).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().all(|line| line.len() <= LINE_BYTES_MAX + 4));
        assert_eq!(
            text.replace("a | ", "").replace('\n', ""),
            format!("x{line}")
        );
        let bytes = vec![0xff; 2 * LINE_BYTES_MAX];
        let shown = self::shown(Look::Plain, &[&bytes]);
        assert_eq!(shown.len(), bytes.len() + 2 * 5);
    }

    #[test]
    fn lines_are_the_same_wherever_the_output_is_cut() {
        let bytes = "one\r\ntwo ä\n\n\u{1b}[0m🦀".as_bytes();
        for look in [Look::Plain, Look::Visible] {
            let whole = shown(look, &[bytes]);
            for size in 1..bytes.len() {
                let pieces: Vec<_> = bytes.chunks(size).collect();
                assert_eq!(shown(look, &pieces), whole, "{look:?} in pieces of {size}");
            }
        }
    }
}
