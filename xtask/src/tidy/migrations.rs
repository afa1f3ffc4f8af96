//! Migrations are only ever appended.
//!
//! Every release seals the migrations it ships (`cargo xtask seal`): a line with name and SHA-256 in
//! `migrations/sealed`. From then on a sealed one never changes, moves or goes, because somebody's
//! database has run it; what comes after may still be written.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use crate::workspace::ROOT;

fn folder() -> PathBuf {
    ROOT.join("crates/moltis-gateway/migrations")
}

/// A migration: the name of its file, and the hash of its text.
type Migration = (String, String);

/// Returns a complaint for every migration that breaks the rule.
pub(super) fn complaints() -> anyhow::Result<Vec<String>> {
    let told = judge(&present()?, &sealed()?);
    Ok(told
        .into_iter()
        .map(|words| format!("migrations: {words}"))
        .collect())
}

/// Seals what is not sealed yet and returns the names.
///
/// # Errors
///
/// When a sealed one was changed: that cannot be sealed away.
pub(super) fn seal() -> anyhow::Result<Vec<String>> {
    let (present, sealed) = (present()?, sealed()?);
    let complaints = judge(&present, &sealed);
    if !complaints.is_empty() {
        bail!("{}", complaints.join("; "));
    }
    let mut lines = String::new();
    for (name, hash) in &present {
        writeln!(lines, "{hash}  {name}")?;
    }
    let file = folder().join("sealed");
    fs::write(&file, lines).with_context(|| format!("writing {}", file.display()))?;
    Ok(present
        .into_iter()
        .skip(sealed.len())
        .map(|(name, _)| name)
        .collect())
}

/// Returns the migrations that lie there, in order.
fn present() -> anyhow::Result<Vec<Migration>> {
    let Ok(entries) = fs::read_dir(folder()) else {
        return Ok(Vec::new()); // no store yet
    };
    let mut migrations = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            migrations.push((name, hex(&text)));
        }
    }
    migrations.sort_unstable();
    Ok(migrations)
}

fn sealed() -> anyhow::Result<Vec<Migration>> {
    let text = fs::read_to_string(folder().join("sealed")).unwrap_or_default();
    let line = |line: &str| {
        let (hash, name) = line
            .split_once("  ")
            .with_context(|| format!("sealed: `{line}`"))?;
        Ok((name.to_owned(), hash.to_owned()))
    };
    text.lines().map(line).collect()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").ok(); // a String takes everything
            text
        })
}

fn judge(present: &[Migration], sealed: &[Migration]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, hash) in sealed {
        match present.iter().find(|(there, _)| there == name) {
            None => complaints.push(format!("`{name}` is sealed and gone")),
            Some((_, now)) if now != hash => complaints.push(format!(
                "`{name}` is sealed and changed: databases have run it; write the next one"
            )),
            Some(_) => {}
        }
    }
    for (index, (name, _)) in present.iter().enumerate() {
        let number = format!("{:04}_", index + 1);
        if !name.starts_with(&number) {
            complaints.push(format!(
                "`{name}` should begin with `{number}`: no number is left out or used twice"
            ));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[(&str, &str)]) -> Vec<Migration> {
        names
            .iter()
            .map(|(name, hash)| ((*name).to_owned(), (*hash).to_owned()))
            .collect()
    }

    #[test]
    fn what_comes_after_the_seal_is_free() {
        let sealed = set(&[("0001_initial.sql", "a")]);
        let present = set(&[("0001_initial.sql", "a"), ("0002_more.sql", "b")]);
        assert!(judge(&present, &sealed).is_empty());
    }

    #[test]
    fn a_sealed_migration_neither_changes_nor_goes() {
        let sealed = set(&[("0001_initial.sql", "a")]);
        let changed = judge(&set(&[("0001_initial.sql", "b")]), &sealed);
        assert!(changed[0].contains("sealed and changed"), "{changed:?}");
        assert_eq!(
            judge(&[], &sealed),
            ["`0001_initial.sql` is sealed and gone"]
        );
    }

    #[test]
    fn numbers_have_no_holes() {
        let holed = judge(
            &set(&[("0001_initial.sql", "a"), ("0003_more.sql", "b")]),
            &[],
        );
        assert!(
            holed[0].starts_with("`0003_more.sql` should begin with `0002_`"),
            "{holed:?}"
        );
    }
}
