//! Why a row does not pass: what was expected and what came, in words for the node's author.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// Lines of a row's story that are kept for its complaint.
const KEPT: usize = 12;
/// Characters of one line of it.
const LINE_MAX: usize = 220;

/// What a part of a row comes to.
pub(super) type Played<T = ()> = Result<T, Trouble>;

/// Why a row does not pass.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The node did something else than the protocol says.
    Failed {
        /// What it says.
        expected: String,
        /// What the node did.
        came: String,
    },
    /// The node said, as the protocol lets it, that it does not do this.
    NotOffered(String),
    /// This program could not do its part: no fault of the node.
    Stage(anyhow::Error),
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Stage(error)
    }
}

/// The node failed.
pub(super) fn failed(expected: impl Into<String>, came: impl Into<String>) -> Trouble {
    let on_one_line = |text: String| text.replace(char::is_control, " ");
    Trouble::Failed {
        expected: on_one_line(expected.into()),
        came: on_one_line(came.into()),
    }
}

/// Fails unless it is as expected.
pub(super) fn ensure(is_so: bool, expected: impl Into<String>, came: impl Into<String>) -> Played {
    if is_so {
        Ok(())
    } else {
        Err(failed(expected, came))
    }
}

/// The last lines of what passed between the two, shared by everything that plays a row.
#[derive(Debug, Clone, Default)]
pub(super) struct Story(Rc<RefCell<VecDeque<String>>>);

impl Story {
    pub(super) fn sent(&self, what: impl fmt::Display) {
        self.line(&format!("sent  {what}"));
    }

    pub(super) fn came(&self, what: impl fmt::Display) {
        self.line(&format!("came  {what}"));
    }

    pub(super) fn did(&self, what: impl fmt::Display) {
        self.line(&format!("      {what}"));
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.0.borrow().iter().cloned().collect()
    }

    fn line(&self, line: &str) {
        let mut lines = self.0.borrow_mut();
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(shortened(line));
    }
}

/// Returns the text on one line, cut to what a person reads.
pub(super) fn shortened(text: &str) -> String {
    let mut short: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LINE_MAX)
        .collect();
    if text.chars().nth(LINE_MAX).is_some() {
        short.push('…');
    }
    short
}

/// Returns bytes as a person reads them.
pub(super) fn shown(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(80)];
    let text = head.escape_ascii();
    if bytes.len() > head.len() {
        format!("\"{text}…\" ({} bytes)", bytes.len())
    } else {
        format!("\"{text}\"")
    }
}

/// Returns a time as a person reads it.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
