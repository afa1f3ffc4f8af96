//! Server-sent events, as far as models use them (WHATWG HTML, 9.2.6): `event` and `data`.

/// Puts the lines of events together.
#[derive(Debug, Default)]
pub(in crate::provider) struct Events {
    event: String,
    data: String,
    has_data: bool,
}

/// One event: its kind, which may be empty, and its data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) event: String,
    pub(super) data: String,
}

impl Events {
    /// Takes a line without its end. Returns the event that it closes.
    pub(super) fn handle_line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            return self.take();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            _ => {} // a comment, an id, a time to try again
        }
        None
    }

    /// Returns the event that no empty line has closed. The standard drops it; some servers end so.
    pub(super) fn take(&mut self) -> Option<Event> {
        let Self {
            event,
            data,
            has_data,
        } = std::mem::take(self);
        has_data.then_some(Event { event, data })
    }
}
