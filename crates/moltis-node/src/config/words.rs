//! Small things that `node.json` says in its own way, and the words about what is wrong with it.

/// A fingerprint as people read it: `SHA256:…`.
pub(super) mod fingerprint {
    use moltis_identity::Fingerprint;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "serde hands in a reference to the field")]
    pub(in super::super) fn serialize<S: Serializer>(
        fingerprint: &Option<Fingerprint>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match fingerprint {
            Some(fingerprint) => serializer.collect_str(fingerprint),
            None => serializer.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Fingerprint>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| text.parse().map_err(D::Error::custom))
            .transpose()
    }
}

/// Returns the key whose value ends at or before `column` of `line`: serde says where, not what.
pub(super) fn key_at(text: &str, line: usize, column: usize) -> Option<&str> {
    let line = text.lines().nth(line.checked_sub(1)?)?;
    let end = line
        .char_indices()
        .nth(column)
        .map_or(line.len(), |(at, _)| at);
    let before = line[..end]
        .rmatch_indices(':')
        .find_map(|(colon, _)| line[..colon].trim_end().strip_suffix('"'))?;
    let start = before.rfind('"')? + 1;
    Some(&before[start..])
}

/// Returns the line on which `"key"` stands first, counted from 1.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let quoted = format!("\"{key}\"");
    text.lines()
        .position(|line| line.contains(&quoted))
        .map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_before_a_position_is_found() {
        let text = "{\n  \"name\": \"ssh:x\",\n  \"timeout_seconds\": \"abc\" }";
        assert_eq!(key_at(text, 2, 17), Some("name"));
        assert_eq!(key_at(text, 3, 26), Some("timeout_seconds"));
        assert_eq!(key_at(text, 1, 1), None);
        assert_eq!(key_at(text, 9, 1), None);
        assert_eq!(line_of(text, "timeout_seconds"), Some(3));
    }
}
