//! Our terminal while a command on another machine has one: raw, and restored on every way out.

use std::io;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Keeps the terminal raw; dropping it puts everything back.
#[derive(Debug)]
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Makes the terminal behind stdin raw.
    pub(crate) fn enter() -> io::Result<Self> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done where the terminal is gone.
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before).ok();
    }
}

/// Returns columns and rows of our terminal; `None` where there is none.
pub(crate) fn size() -> Option<(u16, u16)> {
    [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ]
    .into_iter()
    .filter_map(|fd| tcgetwinsize(fd).ok())
    .map(|size| (size.ws_col, size.ws_row))
    .find(|(cols, rows)| *cols > 0 && *rows > 0)
}
