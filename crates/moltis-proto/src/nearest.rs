//! What somebody who mistyped a word may have meant. Pure, and never more than a hint.

/// Characters of a word that are compared: no word of ours is longer.
const CHARS_MAX: usize = 200;

/// Returns the known word that is most like `found`, if one is like it at all.
pub fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|known| (distance(found, known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len() / 3 + 1)
        .map(|(_, known)| known)
}

/// Returns Levenshtein's distance: how many characters to add, drop or change.
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(CHARS_MAX).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().take(CHARS_MAX).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_counts_what_is_added_dropped_or_changed() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("arch", "arch", 0),
            ("platfrom", "platform", 2),
            ("stat", "state", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn a_word_that_is_like_none_has_no_nearest() {
        let known = ["platform", "arch", "name"];
        assert_eq!(nearest("platfrom", known), Some("platform"));
        assert_eq!(nearest("gpu", known), None);
        assert_eq!(nearest("", known), None);
    }
}
