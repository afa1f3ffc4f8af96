//! How a service stands.

/// What the manager says of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether it runs.
    pub state: State,
    /// Whether it starts by itself when the user's manager does.
    pub enabled: bool,
    /// How often the manager has started it again since it was last started by hand; `None` where
    /// the manager does not count.
    pub restarts: Option<u32>,
    /// The file was changed since the manager read it.
    pub is_outdated: bool,
}

/// Whether a service runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is no such service.
    NotInstalled,
    /// The owner of the machine forbade it to start.
    Masked,
    /// It is there and does not run.
    Stopped {
        /// Why, where it did not end well: `exit code 1`, `signal 9`.
        because: Option<String>,
    },
    /// It was started and has not said that it is ready, or waits to be started again.
    Starting {
        /// How its last process ended, where it ended.
        because: Option<String>,
    },
    /// It runs.
    Running {
        /// Its process id.
        pid: u32,
    },
}

impl Status {
    /// Returns the process id of a service that runs.
    pub fn pid(&self) -> Option<u32> {
        match self.state {
            State::Running { pid } => Some(pid),
            State::NotInstalled
            | State::Masked
            | State::Stopped { .. }
            | State::Starting { .. } => None,
        }
    }
}
