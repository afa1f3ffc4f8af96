//! `cargo xtask tidy`: rules that no compiler checks, as a command and as tests.
//!
//! Each rule is a function that returns complaints, so that one run shows them all. A complaint names
//! the file and says what to do. Rules about who imports whom are in `floors`, rules about links in
//! the documents in `links`, the seal on the migrations in `migrations`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::workspace::ROOT;
use crate::{floors, say};

mod links;
mod migrations;

/// A file longer than this, without the tests at its bottom, states on its front page why
/// (`//! Long because …`).
const LINES_MAX: usize = 600;

/// How a front page states why its file is longer than others.
const LONG_BECAUSE: &str = "//! Long because ";

/// `cargo xtask tidy`.
pub(crate) fn run(_words: &[String]) -> anyhow::Result<()> {
    check()?;
    say::line("tidy");
    Ok(())
}

/// `cargo xtask seal`.
pub(crate) fn seal(_words: &[String]) -> anyhow::Result<()> {
    for name in migrations::seal()? {
        say::line(&format!("sealed {name}"));
    }
    Ok(())
}

/// Runs every rule.
///
/// # Errors
///
/// With all complaints, when there are any.
pub(crate) fn check() -> anyhow::Result<()> {
    let files = files()?;
    let mut complaints = floors::complaints()?;
    complaints.extend(floors::unused_dependencies()?);
    complaints.extend(floors::impurities()?);
    complaints.extend(migrations::complaints()?);
    for file in &files {
        complaints.extend(links::complaints(file));
        complaints.extend(file_complaints(file));
    }
    if complaints.is_empty() {
        return Ok(());
    }
    bail!(
        "{} untidy:\n  {}",
        complaints.len(),
        complaints.join("\n  ")
    )
}

/// A text file of the repository.
#[derive(Debug)]
struct File {
    /// Relative to the root.
    path: PathBuf,
    text: String,
}

/// Returns the text files of the repository, without what is built.
fn files() -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    let mut folders = vec![ROOT.clone()];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?
        {
            let entry = entry?;
            let kind = entry.file_type()?;
            let is_built = matches!(
                entry.file_name().to_str(),
                Some("target" | ".git" | "node_modules")
            );
            if kind.is_dir() && !is_built {
                folders.push(entry.path());
            } else if kind.is_file()
                && !is_built
                && let Ok(text) = fs::read_to_string(entry.path())
            {
                let path = entry.path();
                let path = path.strip_prefix(&*ROOT).unwrap_or(&path).to_path_buf();
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

/// The rules about one file.
fn file_complaints(file: &File) -> Vec<String> {
    let mut complaints = machine_paths(file);
    if file
        .path
        .extension()
        .is_some_and(|extension| extension == "rs")
    {
        complaints.extend(front_page(file));
        complaints.extend(length(file));
        complaints.extend(no_mod_rs(&file.path));
        complaints.extend(ignored_tests(file));
    }
    complaints
}

fn complaint(file: &Path, words: &str) -> String {
    format!("{}: {words}", file.display())
}

/// Every file opens with its front page.
fn front_page(file: &File) -> Option<String> {
    let opens = file.text.starts_with("//! ");
    (!opens).then(|| {
        complaint(
            &file.path,
            "opens without `//!`: say what is here, what is not, who calls it",
        )
    })
}

/// A long file says why it is one room. The tests at its bottom do not count.
fn length(file: &File) -> Option<String> {
    let tests = file.text.rfind("\n#[cfg(test)]\n");
    let opens_tests = |at: &usize| {
        file.text[*at..]
            .lines()
            .take(4)
            .any(|line| line.contains("mod "))
    };
    let end = tests.filter(opens_tests).unwrap_or(file.text.len());
    let lines = file.text[..end].lines().count();
    let mut front = file.text.lines().take_while(|line| line.starts_with("//!"));
    let is_stated = front.any(|line| line.starts_with(LONG_BECAUSE));
    (lines > LINES_MAX && !is_stated).then(|| {
        let words = format!(
            "{lines} lines before its tests: what second thing lives here? Else its front page says `{LONG_BECAUSE}…`"
        );
        complaint(&file.path, &words)
    })
}

/// `foo.rs` lies beside `foo/`; what several test programs share may be `tests/<name>/mod.rs`, the
/// only way to keep cargo from making a test of it.
fn no_mod_rs(path: &Path) -> Option<String> {
    let is_mod = path.file_name().is_some_and(|name| name == "mod.rs");
    let in_tests = path.components().any(|part| part.as_os_str() == "tests");
    (is_mod && !in_tests).then(|| complaint(path, "name it after its folder, beside it"))
}

/// A test is left out for a reason, or not at all.
fn ignored_tests(file: &File) -> Vec<String> {
    let bare = concat!("#[", "ignore]");
    let found = file
        .text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.trim() == bare);
    let words = "give the reason, `= \"…\"`, or run the test";
    found
        .map(|(index, _)| format!("{}:{}: {words}", file.path.display(), index + 1))
        .collect()
}

/// No file names the folder in which somebody happens to work.
fn machine_paths(file: &File) -> Vec<String> {
    let here = ROOT.display().to_string();
    if here.matches('/').count() < 2 {
        return Vec::new(); // a root so short is also an ordinary word
    }
    let found = file
        .text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains(&here));
    found
        .map(|(index, _)| {
            format!(
                "{}:{}: a path of this machine",
                file.path.display(),
                index + 1
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File {
            path: path.into(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn the_repository_is_tidy() {
        check().unwrap();
    }

    #[test]
    fn a_file_without_a_front_page_is_told() {
        assert!(front_page(&file("a.rs", "use std::fs;\n")).is_some());
        assert!(front_page(&file("a.rs", "//! What is here.\n")).is_none());
    }

    #[test]
    fn a_long_file_needs_a_reason() {
        let long = "fn a() {}\n".repeat(LINES_MAX + 1);
        assert!(length(&file("a.rs", &long)).is_some());
        let reason = format!("//! All.\n{LONG_BECAUSE}it is one table.\n{long}");
        assert!(length(&file("a.rs", &reason)).is_none());
        let tested = format!("//! All.\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
        assert!(length(&file("a.rs", &tested)).is_none());
    }

    #[test]
    fn a_mod_rs_is_only_for_what_tests_share() {
        assert!(no_mod_rs(Path::new("crates/a/src/b/mod.rs")).is_some());
        assert!(no_mod_rs(Path::new("crates/a/tests/common/mod.rs")).is_none());
    }

    #[test]
    fn a_test_left_out_gives_its_reason() {
        let bare = format!("    #[{}]\n", "ignore");
        assert_eq!(ignored_tests(&file("a.rs", &bare)).len(), 1);
        let reasoned = format!("    #[{} = \"needs a GPU\"]\n", "ignore");
        assert!(ignored_tests(&file("a.rs", &reasoned)).is_empty());
    }

    #[test]
    fn the_folder_of_this_checkout_is_named_nowhere() {
        let text = format!("see {}/docs\n", ROOT.display());
        assert_eq!(machine_paths(&file("a.md", &text)).len(), 1);
    }
}
