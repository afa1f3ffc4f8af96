//! Pages: how many items, and from where on.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::{ApiError, ApiResult};
use crate::api::List;
use crate::api::problem::Code;

/// Returns how many items a page has: what is asked for, or `usual`.
///
/// # Errors
/// More than `max`, or none.
pub(super) fn limit(asked: Option<u32>, usual: u32, max: u32) -> ApiResult<u32> {
    let limit = asked.unwrap_or(usual);
    if !(1..=max).contains(&limit) {
        return Err(ApiError::invalid(format!(
            "`limit`: {limit} is not between 1 and {max}"
        )));
    }
    Ok(limit)
}

/// Cuts a page out of a whole list that is sorted by `key`, which no two items share. A cursor holds
/// the key of the last item of its page, so that items may come and go between two pages, and what
/// stays is seen once.
///
/// # Errors
/// The cursor is none of ours.
pub(super) fn cut<T>(
    mut items: Vec<T>,
    limit: u32,
    cursor: Option<&str>,
    key: impl Fn(&T) -> String,
) -> ApiResult<List<T>> {
    if let Some(cursor) = cursor {
        let last = decode(cursor).ok_or_else(|| no_cursor(cursor))?;
        items.drain(..items.partition_point(|item| key(item) <= last));
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    let last = items.last().filter(|_| more);
    let next = last.map(|last| URL_SAFE_NO_PAD.encode(key(last)));
    Ok(List { items, next })
}

/// Says that a cursor was made up.
pub(super) fn no_cursor(text: &str) -> ApiError {
    ApiError::new(Code::BadRequest, format!("`{text}` is no cursor"))
        .hint("send `next` of the page before, as it stands")
}

fn decode(cursor: &str) -> Option<String> {
    let key = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    (!key.is_empty()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(word: &&str) -> String {
        (*word).to_owned()
    }

    #[test]
    fn pages_hold_every_item_once_while_others_come_and_go() {
        let all = ["a", "b", "c", "d", "e"];
        let first = cut(all.to_vec(), 2, None, word).unwrap();
        assert_eq!(first.items, ["a", "b"]);
        // The last of the page is gone, and one has come before it and one behind.
        let now = vec!["a", "aa", "bb", "c", "d", "e"];
        let second = cut(now, 3, first.next.as_deref(), word).unwrap();
        assert_eq!(second.items, ["bb", "c", "d"]);
        let third = cut(all.to_vec(), 3, second.next.as_deref(), word).unwrap();
        assert_eq!((third.items, third.next), (vec!["e"], None));
    }

    #[test]
    fn a_page_that_is_just_full_is_the_last() {
        let page = cut(vec!["a", "b"], 2, None, word).unwrap();
        assert_eq!((page.items.len(), page.next), (2, None));
    }

    #[test]
    fn a_cursor_that_was_made_up_is_refused() {
        for cursor in ["", "a", "!", "_w"] {
            assert!(cut(vec!["a"], 1, Some(cursor), word).is_err(), "{cursor}");
        }
    }

    #[test]
    fn a_limit_has_bounds() {
        assert_eq!(limit(None, 50, 500).unwrap(), 50);
        assert_eq!(limit(Some(500), 50, 500).unwrap(), 500);
        assert!(limit(Some(0), 50, 500).is_err());
        assert!(limit(Some(501), 50, 500).is_err());
    }
}
