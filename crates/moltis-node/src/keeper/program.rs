//! From the command of a request to a file that can be executed, or the reason why there is none.
//!
//! The program is looked up here and not by the child, so that the owner's list is compared with
//! the file that will really run, and so that "not found", "not executable" and "no such
//! directory" are told apart.

use std::io;
use std::path::{Path, PathBuf};

use moltis_proto::run::{Command, Reason};

use super::config::Policy;
use super::spawn::Look;

/// Why a command does not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StartFailure {
    pub(super) reason: Option<Reason>,
    pub(super) detail: String,
}

impl StartFailure {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason: Some(reason),
            detail: detail.into(),
        }
    }

    /// One that no reason of the protocol stands for.
    pub(super) fn in_words(detail: impl Into<String>) -> Self {
        Self {
            reason: None,
            detail: detail.into(),
        }
    }
}

/// A file to execute, and the argument vector that it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// Absolute path.
    pub(super) file: PathBuf,
    /// The whole vector, the word that was asked for first. Never empty.
    pub(super) argv: Vec<String>,
}

/// Where programs are looked for.
#[derive(Debug)]
pub(super) struct Search<'a> {
    pub(super) look: &'a Look,
    /// PATH.
    pub(super) path: &'a str,
    /// The directory of the command.
    pub(super) cwd: &'a Path,
}

/// Returns whether the owner lets this command run. `program` is what it was found to be.
pub(super) fn is_allowed(
    policy: &Policy,
    command: &Command,
    program: Option<&Program>,
    search: &Search<'_>,
) -> bool {
    match (policy, command) {
        (Policy::Full, _) => true,
        (Policy::AllowList(rules), Command::Argv(argv)) => rules.iter().any(|rule| {
            program.is_some_and(|program| rule_matches(rule, argv, &program.file, search))
        }),
        (Policy::Off, _) | (Policy::AllowList(_), Command::Shell(_)) => false,
    }
}

fn rule_matches(rule: &[String], argv: &[String], file: &Path, search: &Search<'_>) -> bool {
    let (Some((word, rest)), Some((_, given))) = (rule.split_first(), argv.split_first()) else {
        return false;
    };
    let arguments_match = match rest.split_last() {
        Some((last, fixed)) if last == "..." => given.starts_with(fixed),
        _ => rest == given,
    };
    arguments_match && search.look_up(word).is_ok_and(|allowed| allowed == file)
}

impl Search<'_> {
    /// Finds the program of a command.
    pub(super) fn find(&self, command: &Command) -> Result<Program, StartFailure> {
        match command {
            Command::Shell(line) => Ok(Program {
                file: PathBuf::from("/bin/sh"),
                argv: vec!["sh".to_owned(), "-c".to_owned(), line.clone()],
            }),
            Command::Argv(argv) => Ok(Program {
                file: self.look_up(argv.first().map_or("", String::as_str))?,
                argv: argv.clone(),
            }),
        }
    }

    /// Finds the file of a word: a path as it stands, a name in the directories of PATH.
    fn look_up(&self, word: &str) -> Result<PathBuf, StartFailure> {
        let not_found = |detail: String| StartFailure::new(Reason::NotFound, detail);
        if word.is_empty() {
            return Err(not_found("the name of the program is empty".to_owned()));
        }
        if word.contains('/') {
            let file = self.cwd.join(word);
            return match self.check(&file) {
                Ok(()) => Ok(file),
                Err(Unusable::Absent) => {
                    Err(not_found(format!("`{}` does not exist", file.display())))
                }
                Err(Unusable::Because(why)) => Err(not_executable(&file, why)),
            };
        }
        let mut refused = None;
        for directory in self.path.split(':') {
            let file = self.cwd.join(directory).join(word);
            match self.check(&file) {
                Ok(()) => return Ok(file),
                Err(Unusable::Absent) => {}
                Err(Unusable::Because(why)) => {
                    refused.get_or_insert_with(|| not_executable(&file, why));
                }
            }
        }
        let nowhere = || {
            let path = self.path;
            not_found(format!("`{word}` is in no directory of PATH={path}"))
        };
        Err(refused.unwrap_or_else(nowhere))
    }

    fn check(&self, file: &Path) -> Result<(), Unusable> {
        match self.look.at(file) {
            Ok(found) if found.is_dir => Err(Unusable::Because("is a directory")),
            Ok(found) if !found.may_execute => Err(Unusable::Because("may not be executed")),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(
                Unusable::Because("is in a directory that may not be searched"),
            ),
            Err(_) => Err(Unusable::Absent),
        }
    }
}

enum Unusable {
    Absent,
    Because(&'static str),
}

fn not_executable(file: &Path, why: &str) -> StartFailure {
    StartFailure::new(Reason::NotExecutable, format!("`{}` {why}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::keeper::kernel::Eyes;
    use crate::keeper::lookers::Place;

    fn look() -> Look {
        Look::new(Eyes::System, Place::default())
    }

    fn argv(words: &[&str]) -> Command {
        Command::Argv(words.iter().map(|&word| word.to_owned()).collect())
    }

    /// A directory with `good`, `flat` (not executable) and `folder`.
    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("good", 0o755), ("flat", 0o644)] {
            fs::write(dir.path().join(name), "#!/bin/sh\n").unwrap();
            fs::set_permissions(dir.path().join(name), PermissionsExt::from_mode(mode)).unwrap();
        }
        fs::create_dir(dir.path().join("folder")).unwrap();
        dir
    }

    #[test]
    fn what_cannot_run_says_why() {
        let (dir, look) = (directory(), look());
        let path = format!("/nowhere:{}", dir.path().display());
        let search = Search {
            look: &look,
            path: &path,
            cwd: dir.path(),
        };
        for (word, expected) in [
            ("good", None),
            ("./good", None),
            ("flat", Some(Reason::NotExecutable)),
            ("./flat", Some(Reason::NotExecutable)),
            ("./folder", Some(Reason::NotExecutable)),
            ("good/x", Some(Reason::NotFound)),
            ("absent", Some(Reason::NotFound)),
            ("./absent", Some(Reason::NotFound)),
            ("", Some(Reason::NotFound)),
        ] {
            let found = search.find(&argv(&[word]));
            assert_eq!(
                found.err().and_then(|error| error.reason),
                expected,
                "{word}"
            );
        }
    }

    #[test]
    fn a_list_names_whole_vectors_and_the_file_behind_the_word() {
        let (dir, look) = (directory(), look());
        let search = Search {
            look: &look,
            path: dir.path().to_str().unwrap(),
            cwd: dir.path(),
        };
        let list = |rule: &[&str]| {
            Policy::AllowList(vec![rule.iter().map(|&word| word.to_owned()).collect()])
        };
        let good = dir.path().join("good").display().to_string();
        for (rule, words, expected) in [
            (vec!["good", "-a"], vec!["good", "-a"], true),
            (vec![good.as_str(), "-a"], vec!["good", "-a"], true),
            (vec!["good", "-a"], vec![good.as_str(), "-a"], true),
            (vec!["good", "-a"], vec!["good"], false),
            (vec!["good"], vec!["good", "-a"], false),
            (vec!["good", "..."], vec!["good", "-a", "-b"], true),
            (vec!["good", "..."], vec!["good"], true),
            (vec!["good", "-a", "..."], vec!["good", "-b"], false),
            (vec!["good", "...", "-a"], vec!["good", "x", "-a"], false),
            (vec!["/usr/bin/good"], vec!["good"], false),
        ] {
            let command = argv(&words);
            let program = search.find(&command).ok();
            let allowed = is_allowed(&list(&rule), &command, program.as_ref(), &search);
            assert_eq!(allowed, expected, "{rule:?} {words:?}");
        }
        let line = Command::Shell("good".to_owned());
        let program = search.find(&line).ok();
        assert!(!is_allowed(
            &list(&["..."]),
            &line,
            program.as_ref(),
            &search
        ));
        assert!(is_allowed(&Policy::Full, &line, program.as_ref(), &search));
        assert!(!is_allowed(&Policy::Off, &line, program.as_ref(), &search));
    }
}
