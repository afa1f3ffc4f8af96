//! The table: what is asked of a node, in the order of `docs/protocol.md`.

mod command;
mod cuts;
mod door;
mod ending;
mod life;
mod output;
mod pairing;
mod story;

use futures_util::future::LocalBoxFuture;

use super::stage::Stage;
use super::trouble::Played;

/// Whether a node may do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// A node has to pass.
    Must,
    /// A node may say that it does not do this; what it does has to be right.
    May,
}

impl Need {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Must => "must",
            Self::May => "may",
        }
    }
}

/// One line of the table.
#[derive(Debug)]
pub(super) struct Row {
    /// For `--only`, and for whoever talks about it.
    pub(super) name: &'static str,
    pub(super) need: Need,
    /// The section of `docs/protocol.md` behind it.
    pub(super) section: &'static str,
    /// What the node does when it passes.
    pub(super) about: &'static str,
    pub(super) play: for<'a> fn(&'a mut Stage) -> LocalBoxFuture<'a, Played>,
}

/// Makes a row; its last word is the function that plays it.
macro_rules! row {
    ($need:ident, $name:literal, $section:literal, $about:literal, $play:path) => {
        crate::conformance::rows::Row {
            name: $name,
            need: crate::conformance::rows::Need::$need,
            section: $section,
            about: $about,
            play: |stage| Box::pin($play(stage)),
        }
    };
}
use row;

/// Rows that take long by their nature: they are begun first.
const SLOW: [&str; 3] = ["pending-silence", "story-cuts", "reconnect"];

impl Row {
    pub(super) fn is_slow(&self) -> bool {
        SLOW.contains(&self.name)
    }
}

/// Returns every row.
pub(super) fn all() -> impl Iterator<Item = &'static Row> {
    [
        door::ROWS,
        pairing::ROWS,
        life::ROWS,
        command::ROWS,
        ending::ROWS,
        output::ROWS,
        cuts::ROWS,
        story::ROWS,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_said_to_be_slow_is_a_row() {
        for name in SLOW {
            assert!(all().any(|row| row.name == name), "{name}");
        }
    }

    #[test]
    fn every_row_has_a_name_of_its_own_and_a_section_that_exists() {
        let page = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/protocol.md"
        ));
        let mut names = BTreeSet::new();
        for row in all() {
            assert!(names.insert(row.name), "`{}` is there twice", row.name);
            let (number, title) = row.section.split_once(' ').unwrap();
            let there = page.contains(&format!("## {number}. {title}"))
                || page.contains(&format!("### {title}\n"))
                || page.contains(&format!("**{title}"));
            assert!(there, "{}: no section `{}`", row.name, row.section);
        }
    }
}
