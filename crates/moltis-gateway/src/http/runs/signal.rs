//! Names of signals and their numbers on the wire: those of signal(7) for x86 and ARM. A node whose
//! system counts otherwise translates.

const NAMES: [(&str, i32); 20] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("WINCH", 28),
    ("SYS", 31),
];

/// Returns the number of `INT` or `SIGINT`, in any case.
pub(crate) fn number(name: &str) -> Option<i32> {
    let upper = name.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = NAMES.iter().find(|(known, _)| *known == name);
    known.map(|(_, number)| *number)
}

/// Returns all names, for an error.
pub(crate) fn names() -> String {
    NAMES.map(|(name, _)| name).join(", ")
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
