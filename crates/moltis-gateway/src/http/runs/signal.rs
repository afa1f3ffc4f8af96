//! From the name of a signal to its number on the wire.

use crate::api::runs::SIGNALS;

/// Returns the number of `INT` or `SIGINT`, in any case.
pub(crate) fn number(name: &str) -> Option<i32> {
    let upper = name.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = SIGNALS.iter().find(|(known, _)| *known == name);
    known.map(|(_, number)| *number)
}

/// Returns all names, for an error.
pub(crate) fn names() -> String {
    SIGNALS.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_known_by_either_name() {
        for name in ["INT", "SIGINT", "int", "SigInt"] {
            assert_eq!(number(name), Some(2), "{name}");
        }
        for name in ["", "SIG", "2", "INTERRUPT", "SIGSIGINT", "RTMIN"] {
            assert_eq!(number(name), None, "{name}");
        }
    }
}
