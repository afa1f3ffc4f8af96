//! Secrets that are known, taken out of what a model or a log is given.
//!
//! A [`Redactor`] knows the values themselves and the forms in which programs print them: base64 in
//! both alphabets and at each of its three alignments, hexadecimal, and percent-encoding. What it does
//! not know it cannot find: it is a net below policy, not policy.

use std::fmt::Write as _;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Shorter values are not looked for: they would be found everywhere.
pub const SECRET_BYTES_MIN: usize = 8;

/// Longer values are looked for by their beginning.
pub const SECRET_BYTES_MAX: usize = 4096;

/// What stands in the place of a secret.
const REDACTED: &str = "[redacted]";

/// Finds the secrets that it was made with.
#[derive(Debug, Clone)]
pub struct Redactor {
    /// `None` where there is nothing to look for.
    forms: Option<AhoCorasick>,
    /// Bytes of the longest form.
    longest: usize,
}

/// Why no redactor can be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedactError {
    /// There are too many secrets to look for at once.
    #[error("{count} secrets are too many to look for")]
    TooMany {
        /// So many were given.
        count: usize,
        /// What the search says of it.
        #[source]
        source: aho_corasick::BuildError,
    },
}

impl Redactor {
    /// Looks for these. Those below [`SECRET_BYTES_MIN`] are left out.
    ///
    /// # Errors
    /// [`RedactError::TooMany`].
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Result<Self, RedactError> {
        let secrets = secrets.into_iter().map(str::trim);
        let secrets: Vec<_> = secrets
            .filter(|secret| secret.len() >= SECRET_BYTES_MIN)
            .map(|secret| &secret[..secret.floor_char_boundary(SECRET_BYTES_MAX)])
            .collect();
        let mut forms: Vec<_> = secrets.iter().flat_map(|secret| forms_of(secret)).collect();
        forms.sort_unstable();
        forms.dedup();
        let longest = forms.iter().map(String::len).max().unwrap_or(0);
        let search = || {
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(&forms)
        };
        let forms = (!forms.is_empty()).then(search).transpose();
        let forms = forms.map_err(|source| RedactError::TooMany {
            count: secrets.len(),
            source,
        })?;
        Ok(Self { forms, longest })
    }

    /// Returns the text without the secrets.
    pub fn redact(&self, text: &str) -> String {
        let mut stream = self.stream();
        let mut clean = stream.push(text);
        clean.push_str(&stream.finish());
        clean
    }

    /// Begins with a text that comes in pieces.
    pub fn stream(&self) -> RedactStream<'_> {
        RedactStream {
            redactor: self,
            held: String::new(),
        }
    }
}

/// A text that comes in pieces, whose end is held back until no secret can begin in it.
#[derive(Debug)]
pub struct RedactStream<'a> {
    redactor: &'a Redactor,
    held: String,
}

impl RedactStream<'_> {
    /// Takes the next piece, and returns what is certain by now.
    pub fn push(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        // A match that begins before this cannot become a longer one.
        let certain = (self.held.len() + 1).saturating_sub(self.redactor.longest.max(1));
        self.take(certain)
    }

    /// Returns the rest.
    pub fn finish(mut self) -> String {
        self.take(usize::MAX)
    }

    /// Takes what begins before `certain`, and a secret that begins there to its end.
    fn take(&mut self, certain: usize) -> String {
        let Some(forms) = &self.redactor.forms else {
            return std::mem::take(&mut self.held);
        };
        let mut clean = String::new();
        let mut from = 0;
        for found in forms.find_iter(&self.held) {
            if found.start() >= certain {
                break;
            }
            clean.push_str(&self.held[from..found.start()]);
            clean.push_str(REDACTED);
            from = found.end();
        }
        let to = self.held.floor_char_boundary(certain).max(from);
        clean.push_str(&self.held[from..to]);
        self.held.drain(..to);
        clean
    }
}

/// Returns a secret and what programs make of it.
fn forms_of(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let mut forms = vec![secret.to_owned()];
    for lead in 0..3 {
        let mut led = vec![0; lead];
        led.extend_from_slice(bytes);
        // The first and the last signs are of its neighbours too.
        let from = [0, 2, 3][lead];
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let mut coded = engine.encode(&led);
            if led.len() % 3 != 0 {
                coded.pop();
            }
            forms.push(coded.split_off(from));
        }
    }
    let (mut lower, mut upper) = (String::new(), String::new());
    let (mut percent, mut small) = (String::new(), String::new());
    for byte in bytes {
        // Writing to a string cannot fail.
        write!(lower, "{byte:02x}").ok();
        write!(upper, "{byte:02X}").ok();
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                percent.push(char::from(*byte));
                small.push(char::from(*byte));
            }
            _ => {
                write!(percent, "%{byte:02X}").ok();
                write!(small, "%{byte:02x}").ok();
            }
        }
    }
    forms.extend([lower, upper, percent, small]);
    forms
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "sk-ant/p+ssw ord?1";

    fn redactor() -> Redactor {
        Redactor::new([SECRET, "short", "another-secret"]).unwrap()
    }

    #[test]
    fn a_secret_is_found_in_each_of_its_forms() {
        let all = [
            SECRET.to_owned(),
            STANDARD.encode(SECRET),
            URL_SAFE.encode(SECRET),
            STANDARD.encode(format!("user:{SECRET}")),
            STANDARD.encode(format!("user1:{SECRET}@host")),
            STANDARD.encode(format!("user12:{SECRET}!")),
            "736b2d616e742f702b737377206f72643f31".to_owned(),
            "sk-ant%2Fp%2Bssw%20ord%3F1".to_owned(),
            "sk-ant%2fp%2bssw%20ord%3f1".to_owned(),
        ];
        for form in all {
            let clean = redactor().redact(&format!("before {form} behind"));
            assert!(
                clean.starts_with("before ") && clean.ends_with(" behind"),
                "{clean}"
            );
            assert!(clean.contains(REDACTED), "{form}: {clean}");
        }
        assert_eq!(redactor().redact("short ones stay"), "short ones stay");
        let nothing = Redactor::new([]).unwrap();
        assert_eq!(nothing.redact(SECRET), SECRET);
    }

    #[test]
    fn nothing_is_held_that_cannot_be_a_secret() {
        let redactor = Redactor::new(["12345678"]).unwrap();
        let mut stream = redactor.stream();
        let long = "x".repeat(100);
        assert_eq!(stream.push(&long).len(), 101 - redactor.longest);
        assert_eq!(stream.finish().len(), redactor.longest - 1);
    }

    proptest! {
        #[test]
        fn the_pieces_in_which_a_text_comes_make_no_difference(
            words in prop::collection::vec(
                prop_oneof![
                    3 => "[a-zé ]{0,12}",
                    1 => Just(SECRET.to_owned()),
                    1 => Just(SECRET[..9].to_owned()),
                    1 => Just("another-secret".to_owned()),
                ],
                0..12,
            ),
            sizes in prop::collection::vec(1..30usize, 1..20),
        ) {
            let redactor = redactor();
            let text = words.concat();
            let whole = redactor.redact(&text);
            prop_assert!(!whole.contains(SECRET));
            let (mut stream, mut clean, mut rest) = (redactor.stream(), String::new(), &text[..]);
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, behind) = rest.split_at(rest.ceil_char_boundary((*size).min(rest.len())));
                clean.push_str(&stream.push(piece));
                rest = behind;
            }
            clean.push_str(&stream.finish());
            prop_assert_eq!(clean, whole);
        }
    }
}
