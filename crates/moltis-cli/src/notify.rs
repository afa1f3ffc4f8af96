//! What a process tells the service manager that started it, by `sd_notify(3)`. Where there is
//! none, nothing happens.

use sd_notify::NotifyState;

/// Characters of a status, at the most.
const STATUS_CHARS_MAX: usize = 200;

/// Says that this process is ready.
pub(crate) fn ready() {
    // Who started us and does not listen has nothing to miss.
    sd_notify::notify(&[NotifyState::Ready]).ok();
}

/// Says that this process is about to end.
pub(crate) fn stopping() {
    sd_notify::notify(&[NotifyState::Stopping]).ok(); // as above
}

/// Says how this process stands, in one line.
pub(crate) fn status(text: &str) {
    let line: String = text
        .chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .take(STATUS_CHARS_MAX)
        .collect();
    sd_notify::notify(&[NotifyState::Status(&line)]).ok(); // as above
}
