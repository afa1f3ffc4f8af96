//! Output as text for JSON: whole when it is short, else its beginning and its end. Pure.

/// Which bytes of an output of `total` go into a result: all, or two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parts {
    /// All of them.
    Whole,
    /// From 0 to the first offset, and from the second to the end.
    HeadAndTail(u64, u64),
}

/// Decides which bytes of an output go into a result: at most `part` at its beginning and as many at
/// its end.
pub(crate) fn parts(total: u64, part: u64) -> Parts {
    if total <= 2 * part {
        Parts::Whole
    } else {
        Parts::HeadAndTail(part, total - part)
    }
}

/// Gathers pieces of one output, in order, and what is missing between them.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    text: String,
    /// Bytes of a character whose rest is in the next piece.
    bytes: Vec<u8>,
    truncated: bool,
}

impl Gathered {
    /// Adds bytes that follow what is there.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds the line that stands for `count` bytes. A character that is cut there becomes U+FFFD.
    pub(crate) fn leave_out(&mut self, count: u64) {
        self.flush();
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push('\n');
        }
        self.text.push_str("… ");
        self.text.push_str(&count.to_string());
        self.text.push_str(" bytes left out …\n");
        self.truncated = true;
    }

    /// Returns the text, and whether something was left out.
    pub(crate) fn finish(mut self) -> (String, bool) {
        self.flush();
        (self.text, self.truncated)
    }

    fn flush(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if self.text.is_empty() {
            // The common case takes the bytes as they are.
            self.text = String::from_utf8(bytes)
                .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        } else {
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_output_is_whole_and_long_output_has_two_ends() {
        let half = 1000;
        assert_eq!(parts(0, half), Parts::Whole);
        assert_eq!(parts(2 * half, half), Parts::Whole);
        assert_eq!(
            parts(2 * half + 1, half),
            Parts::HeadAndTail(half, half + 1)
        );
    }

    #[test]
    fn what_is_left_out_is_said_on_a_line_of_its_own() {
        let mut gathered = Gathered::default();
        gathered.push(b"head");
        gathered.leave_out(123_456);
        gathered.push(b"tail");
        assert_eq!(
            gathered.finish(),
            ("head\n… 123456 bytes left out …\ntail".to_owned(), true)
        );
    }

    #[test]
    fn a_character_in_two_pieces_is_one_and_bad_bytes_are_marked() {
        let mut gathered = Gathered::default();
        gathered.push(b"gr\xc3");
        gathered.push(b"\xbcn \xff");
        assert_eq!(gathered.finish(), ("grün \u{fffd}".to_owned(), false));
    }
}
