//! What is objected to.

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {words}")]
pub(in super::super) struct Violation {
    pub(in super::super) invariant: &'static str,
    pub(in super::super) words: String,
}

/// Makes a violation.
macro_rules! violation {
    ($invariant:literal, $($words:tt)*) => {
        $crate::simulate::model::Violation {
            invariant: $invariant,
            words: format!($($words)*),
        }
    };
}
pub(in super::super) use violation;
