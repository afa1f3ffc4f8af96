//! Where a program can be killed: before each call of the system that changes a file of its home, or
//! that says something to another process. Pure.

use std::collections::BTreeMap;

/// The program that is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Gateway,
    Link,
    Keeper,
}

impl Who {
    pub(super) const ALL: [Self; 3] = [Self::Gateway, Self::Link, Self::Keeper];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Link => "link",
            Self::Keeper => "keeper",
        }
    }
}

/// Calls that change files.
const FILE_CALLS: [&str; 21] = [
    "openat",
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fallocate",
    "rename",
    "renameat2",
    "renameat",
    "unlink",
    "unlinkat",
    "rmdir",
    "copy_file_range",
    "link",
    "mkdir",
    "chmod",
    "fchmod",
];

/// The call by which the gateway answers and commands.
const SEND: &str = "sendto";

/// Returns the calls that are looked at, as strace takes them.
pub(super) fn calls() -> String {
    format!("{},{SEND}", FILE_CALLS.join(","))
}

/// One call of one program, counted on one file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Point {
    pub(super) who: Who,
    pub(super) call: String,
    /// Below the home; `None` is a call that no path tells apart: what is sent, and files with a
    /// random name.
    pub(super) path: Option<String>,
    /// The first of these is 1.
    pub(super) number: usize,
}

impl Point {
    /// Returns what strace is told to kill there.
    pub(super) fn inject(&self) -> String {
        format!("inject={}:signal=KILL:when={}", self.call, self.number)
    }

    /// Returns it in words.
    pub(super) fn shown(&self) -> String {
        let Self {
            who,
            call,
            path,
            number,
        } = self;
        let on = path.as_deref().unwrap_or("whatever it is");
        format!("{} before {call} {number} on {on}", who.word())
    }
}

/// Returns every point that this log of strace shows, for a program whose home is here.
pub(super) fn of(who: Who, home: &str, log: &str) -> Vec<Point> {
    // By thread, as strace counts.
    let mut counts: BTreeMap<(String, Option<String>), BTreeMap<&str, usize>> = BTreeMap::new();
    for line in log.lines() {
        let Some((call, path)) = read(home, line) else {
            continue;
        };
        let thread = line.split(' ').next().unwrap_or_default();
        let times = counts.entry((call, path)).or_default();
        *times.entry(thread).or_default() += 1;
    }
    let mut points = Vec::new();
    for ((call, path), times) in counts {
        let most = times.values().copied().max().unwrap_or_default();
        points.extend((1..=most).map(|number| Point {
            who,
            call: call.clone(),
            path: path.clone(),
            number,
        }));
    }
    points
}

/// Reads a call and the file that it is about.
fn read(home: &str, line: &str) -> Option<(String, Option<String>)> {
    let (_, rest) = line.split_once(char::is_whitespace)?;
    let (call, words) = rest.trim_start().split_once('(')?;
    if call == SEND {
        return Some((call.to_owned(), None));
    }
    if !FILE_CALLS.contains(&call) || (call == "openat" && !words.contains("O_CREAT")) {
        return None;
    }
    let from = words.find(home)?;
    let below = words[from + home.len()..].strip_prefix('/').unwrap_or("");
    let path = below.split(['"', '>', ',']).next().unwrap_or_default();
    if is_random(path) {
        // The journal is told apart by its call, and by nothing else.
        return matches!(
            call,
            "pwrite64" | "rename" | "renameat2" | "fsync" | "mkdir" | "unlink"
        )
        .then(|| (call.to_owned(), None));
    }
    Some((call.to_owned(), Some(path.to_owned())))
}

/// Returns whether another run would give this file another name.
fn is_random(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let is_draft = name.starts_with('.') || name.contains(".new.");
    is_draft
        || [".journal", ".journal-new", ".sock"]
            .iter()
            .any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"
7  mkdir("/h/g", 0700)          = -1 EEXIST (File exists)
7  openat(AT_FDCWD</tmp>, "/h/g/gateway.db", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 13</h/g/gateway.db>
7  openat(AT_FDCWD</tmp>, "/h/g/gateway.db", O_RDONLY|O_CLOEXEC) = 13</h/g/gateway.db>
8  pwrite64(14</h/g/gateway.db-wal>, "\0", 4096, 0) = 4096
8  pwrite64(14</h/g/gateway.db-wal>, "\0", 4096, 4096) = 4096
9  pwrite64(14</h/g/gateway.db-wal>, "\0", 4096, 8192) = 4096
7  renameat2(AT_FDCWD</tmp>, "/h/g/.gateway_key.fa99", AT_FDCWD</tmp>, "/h/g/gateway_key", RENAME_NOREPLACE) = 0
7  sendto(9<socket:[1]>, "x", 1, MSG_NOSIGNAL, NULL, 0) = 1
7  write(2</dev/pts/0>, "warning", 7) = 7
"#;

    #[test]
    fn calls_are_counted_by_file_and_by_thread() {
        let points = of(Who::Gateway, "/h/g", LOG);
        let shown: Vec<_> = points.iter().map(Point::shown).collect();
        let wanted = [
            "gateway before mkdir 1 on ",
            "gateway before openat 1 on gateway.db",
            "gateway before pwrite64 1 on gateway.db-wal",
            "gateway before pwrite64 2 on gateway.db-wal",
            "gateway before renameat2 1 on whatever it is",
            "gateway before sendto 1 on whatever it is",
        ];
        assert_eq!(shown, wanted);
        assert_eq!(points[3].inject(), "inject=pwrite64:signal=KILL:when=2");
    }
}
