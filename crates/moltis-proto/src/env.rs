//! Which environment variables may cross from a request to a child. Both ends call this.
//!
//! The list says what may pass, never what may not: a list of the forbidden is always one name
//! short. The node's owner may add names; some never pass, whoever asks.

use std::collections::BTreeMap;

/// Bytes of one value.
pub const VALUE_BYTES_MAX: usize = 4 * 1024;
/// Variables of one request.
pub const VARIABLES_MAX: usize = 64;

/// Why a variable may not cross.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvError {
    /// Not on the list.
    #[error(
        "the variable `{name}` may not be set by a request: allowed are TERM, LANG, LC_*, COLORTERM, NO_COLOR, FORCE_COLOR and what the node's owner added"
    )]
    NotAllowed {
        /// Its name, cut to 64 characters and escaped.
        name: String,
    },
    /// The value is too long, holds a control character, or names a path where none belongs.
    #[error("the value of the variable `{name}` {problem}")]
    Value {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Too many of them.
    #[error("{found} variables are too many for one request: at most {VARIABLES_MAX}")]
    TooMany {
        /// How many there were.
        found: usize,
    },
}

/// Checks every variable of a request against the standard list and the owner's additions.
///
/// # Errors
/// The first variable that may not cross, by name. Nothing is ever dropped in silence.
pub fn check(env: &BTreeMap<String, String>, owner_allows: &[String]) -> Result<(), EnvError> {
    if env.len() > VARIABLES_MAX {
        return Err(EnvError::TooMany { found: env.len() });
    }
    env.iter()
        .try_for_each(|(name, value)| check_one(name, value, owner_allows))
}

/// Returns whether an owner may add this name to the list: a shell identifier that is neither a
/// loader's variable nor looks like a secret.
pub fn may_be_allowed(name: &str) -> bool {
    is_identifier(name) && !is_never_allowed(name)
}

fn check_one(name: &str, value: &str, owner_allows: &[String]) -> Result<(), EnvError> {
    // `LC_` and any letters would be a way in for a secret, as it is where SSH accepts it.
    let standard = is_standard(name) && !is_never_allowed(name);
    let added = may_be_allowed(name) && owner_allows.iter().any(|allowed| allowed == name);
    if !standard && !added {
        return Err(EnvError::NotAllowed {
            name: name
                .chars()
                .take(64)
                .flat_map(char::escape_default)
                .collect(),
        });
    }
    let wrong = |problem| {
        Err(EnvError::Value {
            name: name.to_owned(),
            problem,
        })
    };
    if value.len() > VALUE_BYTES_MAX {
        return wrong("is longer than 4096 bytes");
    }
    if value.chars().any(char::is_control) {
        return wrong("holds a control character");
    }
    // terminfo(5) and locale(7) open a value with a slash as a file.
    if standard && value.contains('/') {
        return wrong("holds a `/`");
    }
    Ok(())
}

fn is_standard(name: &str) -> bool {
    matches!(
        name,
        "TERM" | "LANG" | "COLORTERM" | "NO_COLOR" | "FORCE_COLOR"
    ) || name.strip_prefix("LC_").is_some_and(|rest| {
        (1..=32).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_uppercase())
    })
}

fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 128
        && bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Names that load code into a child, or that look like a secret.
fn is_never_allowed(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let loads_code = upper.starts_with("LD_")
        || upper.starts_with("DYLD_")
        || upper.starts_with("MOLTIS_")
        || matches!(
            upper.as_str(),
            "BASH_ENV"
                | "ENV"
                | "SHELLOPTS"
                | "BASHOPTS"
                | "PS4"
                | "IFS"
                | "PROMPT_COMMAND"
                | "NODE_OPTIONS"
                | "PYTHONSTARTUP"
                | "PERL5OPT"
                | "RUBYOPT"
                | "GIT_SSH_COMMAND"
        );
    let secret = ["KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL"]
        .iter()
        .any(|word| upper.contains(word));
    loads_code || secret
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_pair(name: &str, value: &str, allowed: &[&str]) -> Result<(), EnvError> {
        let env = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let allowed: Vec<String> = allowed.iter().map(|&name| name.to_owned()).collect();
        check(&env, &allowed)
    }

    #[test]
    fn the_standard_list_passes() {
        for (name, value) in [
            ("TERM", "xterm-256color"),
            ("LANG", "de_DE.UTF-8"),
            ("LC_ALL", "C"),
            ("COLORTERM", "truecolor"),
            ("NO_COLOR", ""),
            ("FORCE_COLOR", "1"),
        ] {
            assert_eq!(check_pair(name, value, &[]), Ok(()), "{name}");
        }
    }

    #[test]
    fn everything_else_is_named_and_refused() {
        for name in [
            "",
            "PATH",
            "LD_PRELOAD",
            "LC_",
            "LC_all",
            "LC_A=B",
            "lang",
            "TERM\0",
            "SHELLOPTS",
            "PS4",
            "NODE_OPTIONS",
            "TERMINFO",
        ] {
            assert!(check_pair(name, "x", &[]).is_err(), "{name:?}");
        }
    }

    #[test]
    fn an_owner_may_add_names_but_never_a_loader_or_a_secret() {
        assert_eq!(check_pair("BUILD_ID", "7/a", &["BUILD_ID"]), Ok(()));
        for name in [
            "LD_PRELOAD",
            "DYLD_INSERT_LIBRARIES",
            "OPENAI_API_KEY",
            "MY_TOKEN",
            "BASH_ENV",
        ] {
            assert!(check_pair(name, "x", &[name]).is_err(), "{name}");
        }
    }

    #[test]
    fn no_secret_passes_as_a_locale() {
        for name in ["LC_KEY", "LC_AKEY", "LC_TOKEN", "LC_SECRETS"] {
            assert!(check_pair(name, "x", &[]).is_err(), "{name}");
            assert!(check_pair(name, "x", &[name]).is_err(), "{name}");
        }
    }

    #[test]
    fn values_are_plain_text() {
        assert!(check_pair("TERM", "../../etc", &[]).is_err());
        assert!(check_pair("LANG", "a\nb", &[]).is_err());
        assert!(check_pair("BUILD_ID", &"x".repeat(4097), &["BUILD_ID"]).is_err());
    }
}
