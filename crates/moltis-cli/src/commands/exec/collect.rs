//! An output as `--json` shows it: whole when it is short, else its head and its tail with a line
//! between that says how much was left out.

use std::collections::VecDeque;

use moltis_gateway::api::runs::RESULT_PART_BYTES_MAX;

/// Bytes of the head, and of the tail.
#[expect(clippy::cast_possible_truncation, reason = "512 KiB fit everywhere")]
const PART: usize = RESULT_PART_BYTES_MAX as usize;

/// One output as it comes.
#[derive(Debug)]
pub(super) struct Collected {
    /// Bytes of the head, and of the tail, at the most.
    part: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: u64,
}

impl Default for Collected {
    fn default() -> Self {
        Self::in_parts_of(PART)
    }
}

impl Collected {
    /// Keeps so many bytes of the head, and of the tail, and never more than of a single output.
    pub(super) fn in_parts_of(part: usize) -> Self {
        Self {
            part: part.min(PART),
            head: Vec::new(),
            tail: VecDeque::new(),
            left_out: 0,
        }
    }

    /// Takes what the command wrote next.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        if self.left_out == 0 && self.tail.is_empty() {
            let room = self.part - self.head.len();
            let (head, rest) = bytes.split_at(room.min(bytes.len()));
            self.head.extend_from_slice(head);
            bytes = rest;
        }
        self.tail.extend(bytes);
        let too_many = self.tail.len().saturating_sub(self.part);
        self.tail.drain(..too_many);
        self.left_out += too_many as u64;
    }

    /// Takes note of bytes that are gone. What stood before them and is not the head is left out
    /// too, so that there is one gap and not two.
    pub(super) fn gap(&mut self, bytes: u64) {
        self.left_out += bytes + self.tail.len() as u64;
        self.tail.clear();
    }

    /// Returns the text, and whether something was left out.
    pub(super) fn finish(mut self) -> (String, bool) {
        if self.left_out == 0 {
            // A character may lie across the border of the two.
            self.head.extend(self.tail);
            return (String::from_utf8_lossy(&self.head).into_owned(), false);
        }
        let mut text = String::from_utf8_lossy(&self.head).into_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let line = format!("… {} bytes left out …\n", self.left_out);
        text.push_str(&line);
        text.push_str(&String::from_utf8_lossy(self.tail.make_contiguous()));
        (text, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(pieces: &[&[u8]]) -> (String, bool) {
        let mut collected = Collected::default();
        for piece in pieces {
            collected.push(piece);
        }
        collected.finish()
    }

    #[test]
    fn a_short_output_is_whole() {
        assert_eq!(
            collected(&[b"a\n", b"b\xff"]),
            ("a\nb\u{fffd}".into(), false)
        );
    }

    #[test]
    fn a_megabyte_is_whole_and_one_byte_more_is_not() {
        let text = "ä".repeat(PART);
        let (whole, truncated) = collected(&[b"x", &text.as_bytes()[..2 * PART - 2]]);
        assert!(!truncated);
        assert!(whole.starts_with("xää") && !whole.contains('\u{fffd}'));
        let (cut, truncated) = collected(&[&vec![b'x'; 2 * PART + 7]]);
        assert!(truncated);
        assert!(cut.contains("\n… 7 bytes left out …\n"));
    }

    #[test]
    fn a_gap_is_counted_with_what_is_left_out_around_it() {
        let mut collected = Collected::default();
        collected.push(b"head");
        collected.gap(100);
        collected.push(b"middle");
        collected.gap(10);
        collected.push(b"tail");
        assert_eq!(
            collected.finish(),
            ("head\n… 116 bytes left out …\ntail".into(), true)
        );
    }
}
