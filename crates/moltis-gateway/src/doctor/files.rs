//! Modes and owners of everything in a home: what was found, and how it stands.
//!
//! [`Files::scan`] looks and follows no link; [`check`] judges. Nothing is changed.

use std::collections::VecDeque;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::words::{list, quoted};
use super::{Diagnosis, Level};

/// Entries that are looked at, at most: the output of some thousands of runs. What lies near the
/// top comes first.
const ENTRIES_MAX: usize = 50_000;

/// Files that hold a private key.
const KEYS: [&str; 3] = ["node_key", "gateway_key", "gateway_tls_key.pem"];

/// The directory of stored output.
pub(super) const OUTPUTS: &str = "outputs";

/// What was found in a home.
#[derive(Debug)]
pub(super) struct Files {
    home: PathBuf,
    /// Whom all of it should belong to.
    user: u32,
    /// How many were looked at.
    count: usize,
    /// There are more.
    cut: bool,
    /// Those that are not their owner's alone.
    loose: Vec<Entry>,
    /// Where `outputs` leads, where it is a link.
    outputs_link: Option<PathBuf>,
    /// What could not be looked at, and why.
    unseen: Vec<String>,
}

/// Something that is not its owner's alone.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    path: PathBuf,
    mode: u32,
    owner: u32,
    is_dir: bool,
}

impl Files {
    /// Looks at a home, and at all below it but for what links lead to. Blocks.
    pub(super) fn scan(home: &Path) -> Self {
        let mut found = Self {
            home: home.to_owned(),
            user: rustix::process::geteuid().as_raw(),
            count: 0,
            cut: false,
            loose: Vec::new(),
            outputs_link: None,
            unseen: Vec::new(),
        };
        // The home itself may be a link: its owner's decision.
        match fs::metadata(home) {
            Ok(metadata) => found.note(home, &metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return found,
            Err(error) => found.unseen(home, &error),
        }
        let mut dirs = VecDeque::from([home.to_owned()]);
        while let Some(dir) = dirs.pop_front() {
            if let Err(error) = found.scan_dir(&dir, &mut dirs) {
                found.unseen(&dir, &error);
            }
            if found.cut {
                break;
            }
        }
        found
    }

    fn scan_dir(&mut self, dir: &Path, dirs: &mut VecDeque<PathBuf>) -> io::Result<()> {
        let entries = match fs::read_dir(dir) {
            // It went while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            if self.count >= ENTRIES_MAX {
                self.cut = true;
                return Ok(());
            }
            let path = entry?.path();
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    self.unseen(&path, &error);
                    continue;
                }
            };
            if metadata.is_symlink() {
                self.count += 1;
                if path == self.home.join(OUTPUTS) {
                    self.outputs_link = Some(fs::read_link(&path).unwrap_or_default());
                }
                continue;
            }
            self.note(&path, &metadata);
            if metadata.is_dir() {
                dirs.push_back(path);
            }
        }
        Ok(())
    }

    fn note(&mut self, path: &Path, metadata: &Metadata) {
        self.count += 1;
        let entry = Entry {
            path: path.to_owned(),
            mode: metadata.permissions().mode() & 0o7777,
            owner: metadata.uid(),
            is_dir: metadata.is_dir(),
        };
        if entry.mode & 0o077 != 0 || entry.owner != self.user {
            self.loose.push(entry);
        }
    }

    fn unseen(&mut self, path: &Path, error: &io::Error) {
        let shown = format!("`{}` cannot be looked at: {error}", path.display());
        self.unseen.push(shown);
    }
}

impl Entry {
    fn expected(&self) -> u32 {
        if self.is_dir { 0o700 } else { 0o600 }
    }

    fn is_open(&self) -> bool {
        self.mode & 0o077 != 0
    }

    /// Others can do harm with it, and not only read along.
    fn does_harm(&self) -> bool {
        let is_key = self
            .path
            .file_name()
            .is_some_and(|name| KEYS.iter().any(|key| *key == name));
        self.mode & 0o022 != 0 || (is_key && self.is_open())
    }

    fn words(&self, user: u32) -> String {
        let path = self.path.display();
        if self.is_open() {
            let expected = self.expected();
            return format!(
                "`{path}` has mode {:04o}, expected {expected:04o}",
                self.mode
            );
        }
        format!(
            "`{path}` belongs to the user {}, and this is the home of {user}",
            self.owner
        )
    }
}

/// Is everything its owner's alone?
pub(super) fn check(files: &Files) -> Diagnosis {
    let Files {
        home,
        user,
        count,
        cut,
        loose,
        outputs_link,
        unseen,
    } = files;
    let of_all = if *cut {
        format!(" (of the first {count} that were looked at)")
    } else {
        String::new()
    };
    let mut worst_first: Vec<&Entry> = loose.iter().collect();
    worst_first.sort_by_key(|entry| !entry.does_harm());
    let mut found = Vec::new();
    if !loose.is_empty() {
        found.push(list(worst_first.iter().map(|entry| entry.words(*user))));
    }
    if let Some(target) = outputs_link {
        found.push(format!(
            "`{}` is a link to `{}`: what lies there is not looked at here",
            home.join(OUTPUTS).display(),
            target.display()
        ));
    }
    if !unseen.is_empty() {
        found.push(list(unseen.iter().cloned()));
    }
    if found.is_empty() {
        return match count {
            0 => Diagnosis::ok(format!("there is no `{}` yet", home.display())),
            _ => Diagnosis::ok(format!(
                "all {count} files and directories in `{}` are their owner's alone{of_all}",
                home.display()
            )),
        };
    }
    let level = if loose.iter().any(Entry::does_harm) {
        Level::Error
    } else {
        Level::Warning
    };
    let diagnosis = Diagnosis::new(level, found.join("; ") + &of_all);
    match mending(home, *user, &worst_first) {
        Some(hint) => diagnosis.hint(hint),
        None if outputs_link.is_some() => diagnosis.hint(format!(
            "see that nobody else can read it: ls -ld {}/",
            quoted(&home.join(OUTPUTS))
        )),
        None => diagnosis,
    }
}

/// Returns what to type against open modes and foreign owners.
fn mending(home: &Path, user: u32, loose: &[&Entry]) -> Option<String> {
    const TYPED_MAX: usize = 4;
    let open: Vec<&&Entry> = loose.iter().filter(|entry| entry.is_open()).collect();
    let chmod = |mode: u32| {
        let same = open.iter().filter(|entry| entry.expected() == mode);
        let paths: Vec<_> = same.map(|entry| quoted(&entry.path)).collect();
        (!paths.is_empty()).then(|| format!("chmod {mode:o} {}", paths.join(" ")))
    };
    match open.len() {
        0 if loose.is_empty() => None,
        // The modes of what is somebody else's are theirs to change.
        _ if loose.iter().any(|entry| entry.owner != user) => {
            Some(format!("sudo chown -R \"$(id -u)\" {}", quoted(home)))
        }
        0 => None,
        1..=TYPED_MAX => {
            let lines: Vec<_> = [0o700, 0o600].into_iter().filter_map(chmod).collect();
            Some(lines.join(" && "))
        }
        _ => Some(format!("chmod -R go= {}", quoted(home))),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::Permissions;

    use super::*;

    /// A home with nothing in it.
    pub(in crate::doctor) fn none() -> Files {
        Files {
            home: "/m".into(),
            user: 1000,
            count: 1,
            cut: false,
            loose: Vec::new(),
            outputs_link: None,
            unseen: Vec::new(),
        }
    }

    fn file(path: &str, mode: u32) -> Entry {
        Entry {
            path: path.into(),
            mode,
            owner: 1000,
            is_dir: false,
        }
    }

    fn of(loose: Vec<Entry>) -> Files {
        Files { loose, ..none() }
    }

    #[track_caller]
    fn says(files: &Files, level: Level, message: &str, hint: Option<&str>) {
        let said = check(files);
        assert_eq!(
            said,
            Diagnosis {
                level,
                message: message.to_owned(),
                hint: hint.map(str::to_owned)
            }
        );
    }

    #[test]
    fn what_is_its_owners_alone_is_well() {
        let all = "all 1 files and directories in `/m` are their owner's alone";
        says(&none(), Level::Ok, all, None);
        let missing = Files { count: 0, ..none() };
        says(&missing, Level::Ok, "there is no `/m` yet", None);
        let cut = Files {
            cut: true,
            ..none()
        };
        let of_first = format!("{all} (of the first 1 that were looked at)");
        says(&cut, Level::Ok, &of_first, None);
    }

    #[test]
    fn what_others_may_read_is_a_warning_with_the_line_to_type() {
        says(
            &of(vec![file("/m/moltis.toml", 0o644)]),
            Level::Warning,
            "`/m/moltis.toml` has mode 0644, expected 0600",
            Some("chmod 600 /m/moltis.toml"),
        );
        let mut dir = file("/m/my runs", 0o750);
        dir.is_dir = true;
        says(
            &of(vec![file("/m/a", 0o604), file("/m/b", 0o640), dir]),
            Level::Warning,
            "`/m/a` has mode 0604, expected 0600, `/m/b` has mode 0640, expected 0600, \
             `/m/my runs` has mode 0750, expected 0700",
            Some("chmod 700 '/m/my runs' && chmod 600 /m/a /m/b"),
        );
        let many = (0..7).map(|n| file(&format!("/m/{n}"), 0o644)).collect();
        let said = check(&of(many));
        assert!(
            said.message.ends_with("expected 0600, and 2 more"),
            "{said:?}"
        );
        assert_eq!(said.hint.unwrap(), "chmod -R go= /m");
    }

    #[test]
    fn a_key_that_others_may_read_and_what_they_may_write_is_an_error_and_comes_first() {
        for (path, mode) in [
            ("/m/node_key", 0o640),
            ("/m/gateway_key", 0o604),
            ("/m/x", 0o620),
        ] {
            let said = check(&of(vec![file("/m/moltis.toml", 0o644), file(path, mode)]));
            assert_eq!(said.level, Level::Error, "{path}");
            assert!(
                said.message.starts_with(&format!("`{path}` has")),
                "{said:?}"
            );
        }
    }

    #[test]
    fn another_owner_a_link_and_what_cannot_be_seen_are_warnings() {
        let foreign = Entry {
            owner: 0,
            ..file("/m/gateway.db", 0o600)
        };
        says(
            &of(vec![foreign]),
            Level::Warning,
            "`/m/gateway.db` belongs to the user 0, and this is the home of 1000",
            Some("sudo chown -R \"$(id -u)\" /m"),
        );
        let link = Files {
            outputs_link: Some("/big/outputs".into()),
            ..none()
        };
        says(
            &link,
            Level::Warning,
            "`/m/outputs` is a link to `/big/outputs`: what lies there is not looked at here",
            Some("see that nobody else can read it: ls -ld /m/outputs/"),
        );
        let unseen = Files {
            unseen: vec!["`/m/x` cannot be looked at: no".to_owned()],
            ..none()
        };
        says(
            &unseen,
            Level::Warning,
            "`/m/x` cannot be looked at: no",
            None,
        );
    }

    #[test]
    fn a_home_is_looked_through_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        assert_eq!(Files::scan(&home).count, 0);
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        fs::create_dir(&home).unwrap();
        set(&home, 0o700).unwrap();
        let below = home.join("runs/deep");
        fs::create_dir_all(&below).unwrap();
        for path in [&home.join("runs"), &below] {
            set(path, 0o700).unwrap();
        }
        let (good, bad) = (home.join("good"), below.join("bad"));
        for (path, mode) in [(&good, 0o600), (&bad, 0o644)] {
            fs::write(path, "").unwrap();
            set(path, mode).unwrap();
        }
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("loose"), "").unwrap();
        std::os::unix::fs::symlink(&outside, home.join(OUTPUTS)).unwrap();
        let found = Files::scan(&home);
        assert_eq!(found.count, 6, "{found:?}");
        let loose: Vec<_> = found.loose.iter().map(|entry| &entry.path).collect();
        assert_eq!(loose, [&bad]);
        assert_eq!(found.outputs_link, Some(outside));
        let mode = fs::metadata(&bad).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }
}
