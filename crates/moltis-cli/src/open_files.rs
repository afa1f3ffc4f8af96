//! How many files this process may hold open. Every connection is one.
//!
//! Systems begin with a soft limit of 1,024 for the sake of programs that use select(2), and let each
//! program raise it as far as the hard one. Who serves or follows many does. What it starts must get
//! the old limit back: see `keeper --open-files`.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limits, before and now. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenFiles {
    /// The soft limit that this process was started with.
    pub(crate) found: Option<u64>,
    /// The soft limit that it has now.
    pub(crate) now: Option<u64>,
}

/// Raises the soft limit to the hard one. Where the system does not let us, it stays as it is.
pub(crate) fn raise() -> OpenFiles {
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: found.maximum,
        maximum: found.maximum,
    };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised,
        Err(_) => found,
    };
    OpenFiles {
        found: found.current,
        now: now.current,
    }
}

/// Sets the soft limit back to what whoever started us was started with.
pub(crate) fn lower_to(soft: u64) {
    let found = getrlimit(Resource::Nofile);
    let lowered = Rlimit {
        current: Some(found.maximum.map_or(soft, |hard| hard.min(soft))),
        maximum: found.maximum,
    };
    // Below the soft limit there is always a lower one.
    setrlimit(Resource::Nofile, lowered).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_limit_is_the_hard_one_and_can_be_lowered_again() {
        let hard = getrlimit(Resource::Nofile).maximum;
        let files = raise();
        assert_eq!(files.now, hard);
        lower_to(200);
        assert_eq!(getrlimit(Resource::Nofile).current, Some(200));
        assert_eq!(getrlimit(Resource::Nofile).maximum, hard);
        assert_eq!(raise().found, Some(200));
    }
}
