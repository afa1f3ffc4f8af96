//! Links in the documents lead somewhere.
//!
//! Only links inside the repository are followed; nothing here talks to the network.

use std::path::Path;

use super::{File, complaint};
use crate::workspace::ROOT;

/// Returns a complaint for each relative link of a Markdown file that leads nowhere.
pub(super) fn complaints(file: &File) -> Vec<String> {
    if file
        .path
        .extension()
        .is_none_or(|extension| extension != "md")
    {
        return Vec::new();
    }
    let folder = file.path.parent().unwrap_or(Path::new(""));
    let leads_nowhere = |link: &&str| {
        let path = link.split('#').next().unwrap_or_default();
        !path.is_empty() && !ROOT.join(folder).join(path).exists()
    };
    links(&file.text)
        .filter(leads_nowhere)
        .map(|link| complaint(&file.path, &format!("the link to `{link}` leads nowhere")))
        .collect()
}

/// Returns the targets of `[words](target)` and of `src="target"` that are not addresses, outside code.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    let lines = text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence && !line.starts_with("    ")
    });
    lines.flat_map(line_links)
}

fn line_links(line: &str) -> impl Iterator<Item = &str> {
    let inline = line
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', ' ']).next());
    let images = line
        .split("src=\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next());
    inline
        .chain(images)
        .filter(|link| !link.contains("://") && !link.starts_with("mailto:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<&str> {
        links(text).collect()
    }

    #[test]
    fn links_are_found_and_addresses_are_not() {
        let text = "[a](docs/a.md) and [b](https://example.org) ![c](c.svg \"words\")";
        assert_eq!(found(text), ["docs/a.md", "c.svg"]);
        assert_eq!(found("<img src=\"docs/a.svg\" alt=\"\">"), ["docs/a.svg"]);
    }

    #[test]
    fn code_has_no_links() {
        assert!(found("```\n[a](nowhere.md)\n```\n    [b](nowhere.md)\n").is_empty());
    }

    #[test]
    fn a_link_that_leads_nowhere_is_told() {
        let text = "[a](nowhere.md) [b](Cargo.toml) [c](#here)".to_owned();
        let file = File {
            path: "README.md".into(),
            text,
        };
        assert_eq!(
            complaints(&file),
            ["README.md: the link to `nowhere.md` leads nowhere"]
        );
    }
}
