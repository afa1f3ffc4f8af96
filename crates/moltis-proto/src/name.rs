//! Names that people give: node ids, display names, labels. Parsed once, at the border.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::map::Unique;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Nothing, or only white space.
    #[error("a {what} must not be empty")]
    Empty {
        /// What was to be named.
        what: &'static str,
    },
    /// More characters than allowed.
    #[error("a {what} of {found} characters is too long: at most {max}")]
    TooLong {
        /// What was to be named.
        what: &'static str,
        /// Characters found.
        found: usize,
        /// Characters allowed.
        max: usize,
    },
    /// A character that is not allowed there.
    #[error("a {what} must not hold {found}: {allowed}")]
    Character {
        /// What was to be named.
        what: &'static str,
        /// The character, escaped.
        found: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A name that means something else in a route.
    #[error(
        "`{found}` cannot be a {what}: `local`, and names that begin with `node:` or `ssh:`, are routes"
    )]
    Reserved {
        /// What was to be named.
        what: &'static str,
        /// The name.
        found: String,
    },
    /// Too many labels.
    #[error("{found} labels are too many: at most {max}")]
    TooManyLabels {
        /// Labels found.
        found: usize,
        /// Labels allowed.
        max: usize,
    },
}

/// Characters of a display name, at the most.
pub const NAME_CHARS_MAX: usize = 64;
/// Labels of one node, at the most.
pub const LABELS_MAX: usize = 32;

/// A node's id as people and scripts write it: 1 to 64 of `A–Z a–z 0–9 . _ -`, beginning with a
/// letter or digit. Unique on a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

/// A node's display name: 1 to 64 characters of UTF-8 without control or direction-changing ones,
/// trimmed. Not unique.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// Labels of a node: at most 32 of `key=value`, a key of 1 to 63 of `A–Z a–z 0–9 . _ - /`, a value
/// of 0 to 63 characters without control characters, `,` and `=`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unique", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

impl NodeId {
    /// Parses a node id.
    ///
    /// # Errors
    /// Says which rule the text breaks.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        let what = "node id";
        check_length(what, &text, NAME_CHARS_MAX)?;
        check_reserved(what, &text)?;
        let bad = text.chars().enumerate().find(|(at, c)| {
            !(c.is_ascii_alphanumeric() || (*at > 0 && matches!(c, '.' | '_' | '-')))
        });
        match bad {
            Some((_, c)) => Err(NameError::Character {
                what,
                found: escaped(c),
                allowed: "letters, digits, `.`, `_` and `-`, a letter or digit first",
            }),
            None => Ok(Self(text)),
        }
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl NodeName {
    /// Parses a display name.
    ///
    /// # Errors
    /// Says which rule the text breaks.
    pub fn new(text: impl AsRef<str>) -> Result<Self, NameError> {
        let text = text.as_ref().trim();
        let what = "name";
        check_length(what, text, NAME_CHARS_MAX)?;
        check_reserved(what, text)?;
        check_visible(what, text)?;
        Ok(Self(text.to_owned()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Labels {
    /// Parses labels.
    ///
    /// # Errors
    /// Says which rule a key or value breaks.
    pub fn new(labels: BTreeMap<String, String>) -> Result<Self, NameError> {
        if labels.len() > LABELS_MAX {
            return Err(NameError::TooManyLabels {
                found: labels.len(),
                max: LABELS_MAX,
            });
        }
        for (key, value) in &labels {
            check_length("label's key", key, 63)?;
            if let Some(c) = key
                .chars()
                .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/')))
            {
                return Err(NameError::Character {
                    what: "label's key",
                    found: escaped(c),
                    allowed: "it is made of letters, digits, `.`, `_`, `-` and `/`",
                });
            }
            if value.chars().count() > 63 {
                return Err(NameError::TooLong {
                    what: "label value",
                    found: value.chars().count(),
                    max: 63,
                });
            }
            check_visible("label value", value)?;
            if let Some(c) = value.chars().find(|c| matches!(c, ',' | '=')) {
                return Err(NameError::Character {
                    what: "label value",
                    found: escaped(c),
                    allowed: "anything visible but `,` and `=`",
                });
            }
        }
        Ok(Self(labels))
    }

    /// Returns key and value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns the value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Returns whether a character could change how the text around it is shown: controls, line and
/// paragraph separators, direction overrides, zero-width and tag characters.
pub fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

fn check_length(what: &'static str, text: &str, max: usize) -> Result<(), NameError> {
    if text.trim().is_empty() {
        return Err(NameError::Empty { what });
    }
    let found = text.chars().count();
    if found > max {
        return Err(NameError::TooLong { what, found, max });
    }
    Ok(())
}

fn check_reserved(what: &'static str, text: &str) -> Result<(), NameError> {
    let lower = text.to_ascii_lowercase();
    if lower == "local" || lower.starts_with("node:") || lower.starts_with("ssh:") {
        return Err(NameError::Reserved {
            what,
            found: text.to_owned(),
        });
    }
    Ok(())
}

fn check_visible(what: &'static str, text: &str) -> Result<(), NameError> {
    match text.chars().find(|c| is_deceptive(*c)) {
        Some(c) => Err(NameError::Character {
            what,
            found: escaped(c),
            allowed: "visible characters and spaces",
        }),
        None => Ok(()),
    }
}

fn escaped(c: char) -> String {
    match c {
        ' ' => "a space".to_owned(),
        c if c.is_ascii_graphic() => format!("`{c}`"),
        c => format!("`{}`", c.escape_unicode()),
    }
}

macro_rules! text_conversions {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_conversions!(NodeId);
text_conversions!(NodeName);

impl TryFrom<Unique> for Labels {
    type Error = NameError;

    fn try_from(Unique(labels): Unique) -> Result<Self, NameError> {
        Self::new(labels)
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = NameError;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, NameError> {
        Self::new(labels)
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_deceive_are_refused() {
        for bad in [
            "",
            "   ",
            "a\nb",
            "a\u{1b}[31m",
            "x\u{202e}y",
            "z\u{200b}",
            "local",
            "Local",
            "ssh:x",
            "node:y",
            "\u{e0041}",
            &"n".repeat(65),
        ] {
            assert!(NodeName::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(NodeName::new(" Büro 2 ").unwrap().as_str(), "Büro 2");
    }

    #[test]
    fn node_ids_are_plain_words() {
        for bad in ["", "a b", "a/b", "-a", ".a", "é", "local", &"n".repeat(65)] {
            assert!(NodeId::new(bad).is_err(), "{bad:?}");
        }
        assert!(NodeId::new("3f9c0a1e-0000-4000-8000-000000000000").is_ok());
    }

    #[test]
    fn labels_hold_no_separators() {
        let one = |key: &str, value: &str| {
            Labels::new([(key.to_owned(), value.to_owned())].into_iter().collect())
        };
        assert!(one("gpu", "true").is_ok());
        assert!(one("zone/rack", "").is_ok());
        for (key, value) in [
            ("", "x"),
            ("a b", "x"),
            ("a", "x,y"),
            ("a", "x=y"),
            ("a", "\n"),
        ] {
            assert!(one(key, value).is_err(), "{key:?}={value:?}");
        }
    }
}
