//! Which nodes a request means: from the words of a selector to a value that says yes or no. Pure.
//!
//! A selector is terms joined by commas, all of which must hold, or the word `all`:
//!
//! | term | holds for a node |
//! |---|---|
//! | `key=value` | whose label `key` is `value` |
//! | `key!=value` | whose label is another, or that has none |
//! | `key` | that has the label, whatever its value |
//!
//! Some keys are [`Fact`]s of the machine instead: `platform`, `arch`, `runtime`, `provider`, `state`
//! and `name`. They always are, also where a node has a label of the same name: that is meant by
//! `label:platform=…`. Nothing means every node but the word `all`, and a revoked node is never asked.

use std::fmt;
use std::str::FromStr;

use moltis_proto::Labels;
use moltis_proto::name::is_deceptive;
use moltis_proto::nearest::nearest;

/// Bytes of a selector, at the most.
pub const SELECTOR_BYTES_MAX: usize = 4096;

/// Terms of a selector, at the most: as many as a node has labels.
pub const TERMS_MAX: usize = 32;

/// Characters of a key, at the most: as of a label's.
const KEY_CHARS_MAX: usize = 63;

/// Before the key of a label that a fact or `all` would hide.
const LABEL: &str = "label:";

/// The word that means every node.
const ALL: &str = "all";

/// Which nodes a request means.
///
/// ```
/// use moltis_gateway::exec::Selector;
///
/// let select: Selector = "gpu=true, platform=linux".parse()?;
/// assert_eq!(select.to_string(), "gpu=true,platform=linux");
/// # Ok::<(), moltis_gateway::exec::SelectorError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Vec<Term>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    key: Key,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Fact(Fact),
    Label(String),
}

/// What a machine is, has or does, beside its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fact {
    /// Its operating system.
    Platform,
    /// Its processor.
    Arch,
    /// A language runtime that it has.
    Runtime,
    /// A provider of models that it has.
    Provider,
    /// Whether it is connected.
    State,
    /// Its display name.
    Name,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Present,
    Is(String),
    IsNot(String),
}

/// Whether a node is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It takes runs.
    Online,
    /// It does not.
    Offline,
}

/// What is known of a node, as far as a selector asks.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    /// Its display name.
    pub name: &'a str,
    /// Whether it is connected.
    pub standing: Standing,
    /// Its labels.
    pub labels: &'a Labels,
    /// `linux`, `macos`.
    pub os: &'a str,
    /// `x86_64`, `aarch64`.
    pub arch: &'a str,
    /// Names of its language runtimes, as its last sample says.
    pub runtimes: Vec<&'a str>,
    /// Names of its providers of models, as its last sample says.
    pub providers: Vec<&'a str>,
}

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectorError {
    /// It says nothing, which never means everything.
    #[error(
        "the selector is empty: expected `key=value`, `key!=value` or `key`, joined by commas, or `all`"
    )]
    Empty,
    /// It is longer than anybody means.
    #[error("the selector has {found} bytes: at most {SELECTOR_BYTES_MAX} are read")]
    TooLong {
        /// Its length in bytes.
        found: usize,
    },
    /// It has more terms than anybody means.
    #[error("the selector has {found} terms: at most {TERMS_MAX} are read")]
    TooManyTerms {
        /// How many it has.
        found: usize,
    },
    /// Something stands where something else was expected.
    #[error("the selector cannot be read at character {at}: found {found}, expected {expected}")]
    Syntax {
        /// The place: the first character is 1.
        at: usize,
        /// What stands there, escaped.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
}

impl Selector {
    /// Returns whether a key means something else than a label of this name, which then is written
    /// with `label:` before it.
    pub fn is_reserved(key: &str) -> bool {
        key == ALL || Fact::of_word(key).is_some()
    }

    /// Returns a key that it takes for a label's, and the fact that it may have been meant for: asked
    /// when no node matches.
    pub fn misspelt(&self) -> Option<(&str, &'static str)> {
        let facts = || Fact::ALL.map(Fact::word);
        self.0.iter().find_map(|term| match &term.key {
            Key::Label(key) if !Self::is_reserved(key) => {
                nearest(key, facts()).map(|fact| (key.as_str(), fact))
            }
            Key::Label(_) | Key::Fact(_) => None,
        })
    }

    /// Returns whether it means a node of which this is known.
    pub fn matches(&self, node: &Known<'_>) -> bool {
        self.0.iter().all(|term| term.holds(node))
    }
}

impl Term {
    fn holds(&self, node: &Known<'_>) -> bool {
        let has = |wanted: Option<&str>| match &self.key {
            Key::Label(key) => node
                .labels
                .get(key)
                .is_some_and(|value| wanted.is_none_or(|wanted| wanted == value)),
            Key::Fact(fact) => fact
                .of(node)
                .iter()
                .any(|found| wanted.is_none_or(|wanted| fact.is_same(found, wanted))),
        };
        match &self.test {
            Test::Present => has(None),
            Test::Is(value) => has(Some(value)),
            Test::IsNot(value) => !has(Some(value)),
        }
    }
}

impl Fact {
    const ALL: [Self; 6] = [
        Self::Platform,
        Self::Arch,
        Self::Runtime,
        Self::Provider,
        Self::State,
        Self::Name,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Arch => "arch",
            Self::Runtime => "runtime",
            Self::Provider => "provider",
            Self::State => "state",
            Self::Name => "name",
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fact| fact.word() == word)
    }

    fn of<'a>(self, node: &Known<'a>) -> Vec<&'a str> {
        match self {
            Self::Platform => vec![node.os],
            Self::Arch => vec![node.arch],
            Self::Runtime => node.runtimes.clone(),
            Self::Provider => node.providers.clone(),
            Self::State => vec![node.standing.word()],
            Self::Name => vec![node.name],
        }
    }

    /// People name their machines in letters that differ; what a machine says of itself is one word
    /// in any case.
    fn is_same(self, found: &str, wanted: &str) -> bool {
        match self {
            Self::Name => found == wanted,
            _ => found.eq_ignore_ascii_case(wanted),
        }
    }
}

impl Standing {
    fn word(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
        }
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    /// Parses a selector. Spaces around keys, values and commas mean nothing.
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(SelectorError::TooLong { found: text.len() });
        }
        match text.trim() {
            "" => return Err(SelectorError::Empty),
            ALL => return Ok(Self(Vec::new())),
            _ => {}
        }
        let found = text.split(',').count();
        if found > TERMS_MAX {
            return Err(SelectorError::TooManyTerms { found });
        }
        let mut at = 0;
        let mut terms = Vec::with_capacity(found);
        for piece in text.split(',') {
            terms.push(Piece { text, at }.term(piece)?);
            at += piece.len() + 1;
        }
        Ok(Self(terms))
    }
}

/// A part of a selector, to be read from the left.
struct Piece<'a> {
    text: &'a str,
    /// Offset in bytes of what comes next.
    at: usize,
}

impl Piece<'_> {
    fn term(mut self, piece: &str) -> Result<Term, SelectorError> {
        let key_and_rest = self.skip_spaces(piece);
        let after_prefix = key_and_rest.strip_prefix(LABEL);
        let rest = after_prefix.unwrap_or(key_and_rest);
        self.at += key_and_rest.len() - rest.len();
        let word = &rest[..rest.find(|c| !is_of_a_key(c)).unwrap_or(rest.len())];
        if word.is_empty() {
            return Err(self.unexpected("a key of letters, digits, `.`, `_`, `-` and `/`"));
        }
        if word.len() > KEY_CHARS_MAX {
            return Err(self.unexpected("a key of at most 63 characters"));
        }
        let key = match Fact::of_word(word) {
            _ if after_prefix.is_some() => Key::Label(word.to_owned()),
            Some(fact) => Key::Fact(fact),
            None if word == ALL => {
                return Err(self.unexpected("`all` alone, or `label:all` for a label of that name"));
            }
            None => Key::Label(word.to_owned()),
        };
        self.at += word.len();
        let rest = self.skip_spaces(&rest[word.len()..]);
        let test = if rest.is_empty() {
            Test::Present
        } else if let Some(value) = rest.strip_prefix("!=") {
            self.at += 2;
            let value = self.value(&key, value)?;
            if value.is_empty() {
                // What a shell makes of a variable that is not set would mean nearly every node.
                return Err(self.unexpected("a value after `!=`"));
            }
            Test::IsNot(value)
        } else if let Some(value) = rest.strip_prefix('=') {
            self.at += 1;
            Test::Is(self.value(&key, value)?)
        } else {
            return Err(self.unexpected("`=`, `!=`, a comma or the end"));
        };
        Ok(Term { key, test })
    }

    fn value(&mut self, key: &Key, text: &str) -> Result<String, SelectorError> {
        let value = self.skip_spaces(text).trim_end();
        let bad = value
            .char_indices()
            .find(|(_, c)| *c == '=' || is_deceptive(*c));
        if let Some((before, _)) = bad {
            self.at += before;
            return Err(self.unexpected("a value of visible characters without `=`"));
        }
        let is_standing = [Standing::Online, Standing::Offline]
            .iter()
            .any(|standing| value.eq_ignore_ascii_case(standing.word()));
        if *key == Key::Fact(Fact::State) && !is_standing {
            return Err(self.unexpected("`online` or `offline`"));
        }
        Ok(value.to_owned())
    }

    fn skip_spaces<'t>(&mut self, text: &'t str) -> &'t str {
        let rest = text.trim_start();
        self.at += text.len() - rest.len();
        rest
    }

    fn unexpected(&self, expected: &'static str) -> SelectorError {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let word: String = rest.chars().take_while(|c| *c != ',').take(20).collect();
        let found = match rest.chars().next() {
            None => "the end".to_owned(),
            Some(',') => "a comma".to_owned(),
            Some(_) => format!("`{}`", word.trim_end().escape_debug()),
        };
        SelectorError::Syntax {
            at: self
                .text
                .get(..self.at)
                .map_or(0, |before| before.chars().count())
                + 1,
            found,
            expected,
        }
    }
}

fn is_of_a_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/')
}

impl fmt::Display for Selector {
    /// Writes it so that parsing gives the same again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(ALL);
        }
        for (number, Term { key, test }) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str(",")?;
            }
            match key {
                Key::Fact(fact) => f.write_str(fact.word())?,
                Key::Label(key) if Self::is_reserved(key) => {
                    write!(f, "{LABEL}{key}")?;
                }
                Key::Label(key) => f.write_str(key)?,
            }
            match test {
                Test::Present => {}
                Test::Is(value) => write!(f, "={value}")?,
                Test::IsNot(value) => write!(f, "!={value}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A node, as a test says it in few words.
    #[derive(Debug, Clone)]
    struct Machine {
        name: &'static str,
        standing: Standing,
        labels: BTreeMap<String, String>,
        runtimes: Vec<&'static str>,
    }

    impl Machine {
        fn with(labels: &[(&str, &str)]) -> Self {
            let labels = labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            Self {
                name: "Build Server",
                standing: Standing::Online,
                labels: labels.collect(),
                runtimes: vec!["python", "node"],
            }
        }

        fn is_meant_by(&self, select: &Selector) -> bool {
            let labels = Labels::new(self.labels.clone()).unwrap();
            select.matches(&Known {
                name: self.name,
                standing: self.standing,
                labels: &labels,
                os: "linux",
                arch: "x86_64",
                runtimes: self.runtimes.clone(),
                providers: vec!["ollama"],
            })
        }
    }

    fn parse(text: &str) -> Selector {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str) -> String {
        text.parse::<Selector>().unwrap_err().to_string()
    }

    #[track_caller]
    fn check(text: &str, expected: bool) {
        let machine = Machine::with(&[("gpu", "true"), ("room", ""), ("platform", "shop")]);
        assert_eq!(machine.is_meant_by(&parse(text)), expected, "{text}");
    }

    #[test]
    fn labels_are_compared_as_they_are_written() {
        check("gpu=true", true);
        check("gpu=True", false);
        check("gpu", true);
        check("gpu!=false", true);
        check("gpu!=true", false);
        check("room=", true);
        check("gpu=", false);
        check("nobody", false);
        check("nobody=has", false);
        check(" gpu = true , room ", true);
        check("gpu=true,nobody", false);
    }

    #[test]
    fn a_label_that_a_node_lacks_is_another_than_any() {
        check("nobody!=has", true);
        check("gpu=true,nobody!=has", true);
    }

    #[test]
    fn facts_are_those_of_the_machine() {
        check("platform=linux", true);
        check("platform=Linux", true);
        check("platform=macos", false);
        check("platform!=macos", true);
        check("arch=x86_64", true);
        check("runtime=python", true);
        check("runtime=node,runtime=python", true);
        check("runtime!=python", false);
        check("runtime!=java", true);
        check("provider=ollama", true);
        check("name=Build Server", true);
        check("name=build server", false);
        check("state=online", true);
        check("state!=online", false);
        check("all", true);
        check(" all ", true);
    }

    #[test]
    fn a_fact_hides_a_label_of_its_name_until_it_is_called_one() {
        check("platform=shop", false);
        check("label:platform=shop", true);
        check("label:all", false);
        check("label:gpu=true", true);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_place() {
        assert!(refused("").contains("empty"));
        assert!(refused(" \t").contains("empty"));
        for (text, at, found, expected) in [
            ("gpu=true,", 10, "the end", "a key"),
            (",gpu", 1, "a comma", "a key"),
            ("a,,b", 3, "a comma", "a key"),
            ("=true", 1, "`=true`", "a key"),
            ("!gpu", 1, "`!gpu`", "a key"),
            ("gpu==true", 5, "`=true`", "without `=`"),
            ("gpu=a=b", 6, "`=b`", "without `=`"),
            ("gpu true", 5, "`true`", "`=`, `!=`"),
            ("gpu!true", 4, "`!true`", "`=`, `!=`"),
            ("gpu>3", 4, "`>3`", "`=`, `!=`"),
            ("role!=", 7, "the end", "a value"),
            ("role!= ,a", 8, "a comma", "a value"),
            ("ä=b", 1, "`ä=b`", "a key"),
            ("gpu=true,ä", 10, "`ä`", "a key"),
            ("gpu=\u{202e}x", 5, "`\\u{202e}x`", "visible"),
            ("gpu=a\nb", 6, "`\\nb`", "visible"),
            ("state=revoked", 7, "`revoked`", "`online` or `offline`"),
            ("gpu=1,all", 7, "`all`", "`all` alone"),
            ("all=1", 1, "`all=1`", "`all` alone"),
            ("label:", 7, "the end", "a key"),
            ("(a)", 1, "`(a)`", "a key"),
        ] {
            let words = refused(text);
            let place = format!("at character {at}: found {found}, expected ");
            assert!(words.contains(&place), "{text}: {words}");
            assert!(words.contains(expected), "{text}: {words}");
        }
        let long = "k".repeat(64);
        assert!(refused(&long).contains("at most 63"));
    }

    #[test]
    fn a_label_that_looks_like_a_fact_is_asked_about() {
        for (text, expected) in [
            ("platfrom=linux", Some(("platfrom", "platform"))),
            ("gpu=true,Arch!=x86_64", Some(("Arch", "arch"))),
            ("providers", Some(("providers", "provider"))),
            ("platform=linux", None),
            ("label:platform=linux", None),
            ("gpu=true,role=web", None),
            ("all", None),
        ] {
            assert_eq!(parse(text).misspelt(), expected, "{text}");
        }
    }

    #[test]
    fn a_selector_is_bounded() {
        let words = refused(&"a".repeat(SELECTOR_BYTES_MAX + 1));
        assert!(words.contains("4097 bytes"), "{words}");
        parse(&vec!["a"; TERMS_MAX].join(","));
        let words = refused(&vec!["a"; TERMS_MAX + 1].join(","));
        assert!(words.contains("33 terms"), "{words}");
    }

    /// What a selector of labels means, told another way: by a list of what must be and what must
    /// not.
    fn naive(terms: &[(String, Option<bool>, String)], labels: &BTreeMap<String, String>) -> bool {
        terms
            .iter()
            .all(|(key, is, value)| match (labels.get(key), is) {
                (found, None) => found.is_some(),
                (Some(found), Some(is)) => (found == value) == *is,
                (None, Some(is)) => !is,
            })
    }

    fn key() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-c]",
            "[A-Za-z0-9._/-]{1,12}",
            Just("platform".to_owned()),
            Just("all".to_owned())
        ]
    }

    fn value() -> impl Strategy<Value = String> {
        prop_oneof!["[xy]", "[!-+.-<>-~ä-ü]{1,10}"]
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed_as_the_same(
            terms in proptest::collection::vec((key(), any::<Option<bool>>(), value()), 1..6),
        ) {
            let text = spoken(&terms);
            let select = parse(&text);
            prop_assert_eq!(parse(&select.to_string()), select);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            if let Ok(select) = text.parse::<Selector>() {
                prop_assert_eq!(parse(&select.to_string()), select);
            }
        }

        #[test]
        fn labels_match_as_a_naive_list_says(
            terms in proptest::collection::vec((key(), any::<Option<bool>>(), value()), 1..4),
            labels in proptest::collection::btree_map(key(), "[xy]", 0..4),
        ) {
            let select = parse(&spoken(&terms));
            let machine = Machine { labels: labels.clone(), ..Machine::with(&[]) };
            prop_assert_eq!(machine.is_meant_by(&select), naive(&terms, &labels), "{}", select);
        }
    }

    fn spoken(terms: &[(String, Option<bool>, String)]) -> String {
        let terms: Vec<_> = terms
            .iter()
            .map(|(key, is, value)| match is {
                None => format!("label:{key}"),
                Some(true) => format!("label:{key}={value}"),
                Some(false) => format!("label:{key}!={value}"),
            })
            .collect();
        terms.join(",")
    }
}
