//! The head and the tail of what is too long to be shown whole.

use std::borrow::Cow;

/// Returns the text where it has at most `bytes_max` bytes; else its beginning and its end, as whole
/// lines where these are not too long, and between them the line `… 123456 bytes left out …`.
/// The parts and that line together have at most `bytes_max` bytes, but where `bytes_max` is less
/// than the line itself.
pub fn excerpt(text: &str, bytes_max: usize) -> Cow<'_, str> {
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    // With the largest number that it can hold.
    let room = bytes_max.saturating_sub(gap(text.len()).len());
    let head = head_of(text, room - room / 2);
    let tail = tail_of(text, room / 2);
    let between = gap(text.len() - head.len() - tail.len());
    Cow::Owned([head, &between, tail].concat())
}

/// The line between head and tail. It begins on a line of its own, wherever the head ends.
fn gap(bytes: usize) -> String {
    format!("\n… {bytes} bytes left out …\n")
}

/// At most half of a part is given up for the sake of a whole line.
fn head_of(text: &str, bytes_max: usize) -> &str {
    let head = &text[..text.floor_char_boundary(bytes_max)];
    match head.rfind('\n') {
        Some(at) if at >= bytes_max / 2 => &head[..at],
        _ => head,
    }
}

fn tail_of(text: &str, bytes_max: usize) -> &str {
    let tail = &text[text.ceil_char_boundary(text.len() - bytes_max)..];
    match tail.find('\n') {
        Some(at) if at < bytes_max / 2 => &tail[at + 1..],
        _ => tail,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_stay_whole_where_they_can() {
        let lines: Vec<_> = (1..=100).map(|number| format!("line {number}\n")).collect();
        let text = lines.concat();
        let shown = excerpt(&text, 100);
        assert_eq!(
            shown,
            "line 1\nline 2\nline 3\nline 4\nline 5\n… 725 bytes left out …\nline 97\nline 98\nline 99\nline 100\n"
        );
        assert_eq!(excerpt("short", 5), "short");
    }

    proptest! {
        #[test]
        fn no_byte_is_unaccounted_for(text in "(?s).{0,400}", bytes_max in 0..400usize) {
            let shown = excerpt(&text, bytes_max);
            if text.len() <= bytes_max {
                prop_assert_eq!(&*shown, &*text);
                return Ok(());
            }
            prop_assert!(shown.len() <= bytes_max.max(gap(text.len()).len()));
            // Head and tail are of the text, and what is between them is counted.
            let all = shown.match_indices("\n… ").map(|(at, _)| at);
            let is_right = |at: usize| {
                let (head, rest) = shown.split_at(at);
                let rest = rest.strip_prefix("\n… ").unwrap();
                let Some((number, tail)) = rest.split_once(" bytes left out …\n") else {
                    return false;
                };
                let Ok(number) = number.parse::<usize>() else {
                    return false;
                };
                head.len() + number + tail.len() == text.len()
                    && text.starts_with(head)
                    && text.ends_with(tail)
            };
            prop_assert!(all.into_iter().any(is_right), "{shown:?}");
        }
    }
}
