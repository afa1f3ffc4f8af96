//! Text from other machines, made safe for a terminal: what would act on the terminal, or change
//! how the text around it reads, is shown instead of sent.
//!
//! Kept are letters, spaces, line feeds and tabs. C0 controls become their pictures (`␛`), the rest
//! (C1, bidi, zero-width, tag characters) `\u{…}`, and bytes that are not UTF-8 `\x…`. A pure
//! machine for streams that are cut anywhere; [`crate::output`] decides when it is needed.

use std::borrow::Cow;
use std::fmt::Write as _;

use moltis_proto::name::is_deceptive;

/// Makes a stream visible, piece by piece. Bytes of a character that is cut at the end of a piece
/// wait for the next.
#[derive(Debug, Default)]
pub(crate) struct Visible {
    waiting: Vec<u8>,
}

impl Visible {
    /// Takes a piece and appends what to show of it.
    pub(crate) fn feed(&mut self, bytes: &[u8], shown: &mut String) {
        let joined;
        let mut rest = if self.waiting.is_empty() {
            bytes
        } else {
            self.waiting.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.waiting);
            joined.as_slice()
        };
        while !rest.is_empty() {
            let (valid, after) = split_valid(rest);
            let kept = self.show(valid, after.is_empty(), shown);
            if kept > 0 {
                return;
            }
            match after {
                Invalid::Nothing => return,
                Invalid::Bytes(bad, next) => {
                    for byte in bad {
                        write!(shown, "\\x{byte:02x}").expect("a string takes everything");
                    }
                    rest = next;
                }
                Invalid::Cut(bytes) => {
                    self.waiting.extend_from_slice(bytes);
                    return;
                }
            }
        }
    }

    /// Shows what still waited; the stream is over.
    pub(crate) fn finish(&mut self, shown: &mut String) {
        for byte in std::mem::take(&mut self.waiting) {
            match byte {
                b'\r' => shown.push('␍'),
                byte => write!(shown, "\\x{byte:02x}").expect("a string takes everything"),
            }
        }
    }

    /// Shows valid text; a carriage return at the very end waits, since a line feed may follow.
    fn show(&mut self, text: &str, at_end: bool, shown: &mut String) -> usize {
        let (text, waits) = match text.strip_suffix('\r') {
            Some(text) if at_end => (text, true),
            _ => (text, false),
        };
        push_visible(text, shown);
        if waits {
            self.waiting.push(b'\r');
        }
        usize::from(waits)
    }
}

/// Returns a short text, made visible; line feeds and tabs too, since it stands inside a line.
pub(crate) fn inline(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_deceptive) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    text.chars().for_each(|c| push_escaped(c, &mut shown));
    Cow::Owned(shown)
}

enum Invalid<'a> {
    Nothing,
    Bytes(&'a [u8], &'a [u8]),
    Cut(&'a [u8]),
}

impl Invalid<'_> {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

fn split_valid(bytes: &[u8]) -> (&str, Invalid<'_>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text, Invalid::Nothing),
        Err(error) => {
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            let text = std::str::from_utf8(valid).unwrap_or_default();
            let after = match error.error_len() {
                Some(length) => {
                    let (bad, next) = rest.split_at(length);
                    Invalid::Bytes(bad, next)
                }
                None => Invalid::Cut(rest),
            };
            (text, after)
        }
    }
}

fn push_visible(text: &str, shown: &mut String) {
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => shown.push(c),
            '\r' if chars.peek() == Some(&'\n') => {}
            c => push_escaped(c, shown),
        }
    }
}

fn push_escaped(c: char, shown: &mut String) {
    match c {
        '\u{7f}' => shown.push('␡'),
        c if (c as u32) < 0x20 => {
            shown.push(char::from_u32(0x2400 + c as u32).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        c if is_deceptive(c) => shown.extend(c.escape_unicode()),
        c => shown.push(c),
    }
}

/// Quotes a word where a shell would need it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> String {
        let mut visible = Visible::default();
        let mut shown = String::new();
        visible.feed(bytes, &mut shown);
        visible.finish(&mut shown);
        shown
    }

    #[test]
    fn what_would_act_on_a_terminal_is_shown_instead() {
        for (bytes, expected) in [
            (&b"plain text\n\tindented\n"[..], "plain text\n\tindented\n"),
            (b"line\r\nline\r\n", "line\nline\n"),
            (b"50%\r100%\r", "50%␍100%␍"),
            (b"\x1b]0;title\x07", "␛]0;title␇"),
            (b"\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
            ("\u{202e}gnp.exe".as_bytes(), "\\u{202e}gnp.exe"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
            (b"\x9b31m", "\\x9b31m"),
            (b"\xff\xfe\0", "\\xff\\xfe␀"),
            ("grüße 日本 🦀".as_bytes(), "grüße 日本 🦀"),
            (b"\x7f\x08", "␡␈"),
            (b"\xe2\x82", "\\xe2\\x82"),
        ] {
            assert_eq!(whole(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_stream_reads_the_same_wherever_it_is_cut() {
        let stream = "grüße\r\n\r50%\r\u{202e}日\u{1b}[0m🦀"
            .bytes()
            .chain([0xff, b'x', 0xe2, 0x82])
            .collect::<Vec<_>>();
        let expected = whole(&stream);
        for size in 1..stream.len() {
            let mut visible = Visible::default();
            let mut shown = String::new();
            for piece in stream.chunks(size) {
                visible.feed(piece, &mut shown);
            }
            visible.finish(&mut shown);
            assert_eq!(shown, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_name_inside_a_line_cannot_break_it() {
        assert_eq!(inline("Build Server"), "Build Server");
        assert_eq!(inline("a\nb\u{202e}c\x1b[2J"), "a␊b\\u{202e}c␛[2J");
    }

    #[test]
    fn words_are_quoted_as_a_shell_would_read_them() {
        assert_eq!(quoted("make"), "make");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("$HOME"), "'$HOME'");
    }
}
