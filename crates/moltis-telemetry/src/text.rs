//! What other programs print becomes text that is safe to carry and to show.

/// Characters of one name or version, at the most.
const CHARS_MAX: usize = 128;

/// Returns the text without characters that could change how it is shown, trimmed and cut;
/// `None` when nothing is left.
pub(crate) fn clean(text: &str) -> Option<String> {
    let kept: String = text
        .trim()
        .chars()
        .filter(|c| !moltis_proto::name::is_deceptive(*c))
        .take(CHARS_MAX)
        .collect();
    let kept = kept.trim();
    (!kept.is_empty()).then(|| kept.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_deceives_is_left_out_and_what_is_long_is_cut() {
        assert_eq!(clean(" a\u{1b}[31mb\n"), Some("a[31mb".to_owned()));
        assert_eq!(clean("\u{202e}\0"), None);
        assert_eq!(clean(&"é".repeat(500)).unwrap().chars().count(), CHARS_MAX);
    }
}
