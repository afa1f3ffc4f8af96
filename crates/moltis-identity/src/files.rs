//! The files and directories of a home: regular ones and nothing else.
//!
//! Whoever opens a FIFO waits for the one at its other end, for ever, and cannot be asked to stop.
//! Both ends open what they keep through here, and the command line too.

use std::fs::{DirBuilder, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a regular file with these options, through links. Never waits for another process.
///
/// # Errors
/// As open(2), or it is something else: the words say what it is and what to do.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    open_with(path, options, OFlags::NONBLOCK)
}

/// As [`open`], but through no link: what is written there shall not land in somebody else's file.
///
/// # Errors
/// As [`open`]; a link is something else too.
pub fn open_here(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    open_with(path, options, OFlags::NONBLOCK | OFlags::NOFOLLOW)
}

/// Reads a regular file whole, through no link.
///
/// # Errors
/// As [`open_here`], and read(2).
pub fn read_here(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_here(path, File::options().read(true))?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Checks that what is at a path, through links, is a regular file, or that nothing is: for what
/// somebody else's code opens behind this.
///
/// # Errors
/// It is something else.
pub fn check(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) => expect_regular(&found),
        Err(_) => Ok(()), // whoever opens it will tell
    }
}

fn open_with(path: &Path, options: &mut OpenOptions, flags: OFlags) -> io::Result<File> {
    options.custom_flags(flags.bits().cast_signed());
    match options.open(path) {
        Ok(file) => {
            expect_regular(&file.metadata()?)?;
            Ok(file)
        }
        // A directory, a socket and a FIFO without a reader are told by numbers that say little.
        Err(error) => {
            let found = if flags.contains(OFlags::NOFOLLOW) {
                std::fs::symlink_metadata(path)
            } else {
                std::fs::metadata(path)
            };
            if let Ok(found) = found {
                expect_regular(&found)?;
            }
            Err(error)
        }
    }
}

fn expect_regular(found: &Metadata) -> io::Result<()> {
    if found.is_file() {
        return Ok(());
    }
    let what = kind(found.file_type());
    let words = format!("it is {what}, expected a regular file: move it away");
    Err(io::Error::new(io::ErrorKind::InvalidInput, words))
}

/// Makes a directory of this mode, with its parents, where it is missing.
///
/// # Errors
/// As mkdir(2), or something else is there: the words say what it is and what to do.
pub fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|error| match std::fs::symlink_metadata(path) {
        Ok(found) => {
            let what = kind(found.file_type());
            let words = format!("it is {what}, expected a directory: move it away");
            io::Error::new(io::ErrorKind::NotADirectory, words)
        }
        Err(_) => error,
    })
}

/// Returns what kind of thing this is, for people: "a FIFO".
pub fn kind(found: FileType) -> &'static str {
    if found.is_dir() {
        "a directory"
    } else if found.is_symlink() {
        "a symbolic link"
    } else if found.is_fifo() {
        "a FIFO"
    } else if found.is_socket() {
        "a socket"
    } else if found.is_file() {
        "a regular file"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_told_at_once_however_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let made = std::process::Command::new("mkfifo")
            .arg(at("fifo"))
            .status();
        assert!(made.unwrap().success());
        std::fs::create_dir(at("dir")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        symlink(at("file"), at("link")).unwrap();
        for (name, expected) in [
            ("fifo", "it is a FIFO, "),
            ("dir", "it is a directory, "),
            ("socket", "it is a socket, "),
        ] {
            let read = open(&at(name), File::options().read(true));
            let append = open(&at(name), File::options().append(true).create(true));
            let both = open_here(&at(name), File::options().read(true).write(true));
            let checked = check(&at(name)).map(|()| unreachable!("{name}"));
            for error in [read, append, both, checked] {
                let error = error.unwrap_err().to_string();
                assert!(error.starts_with(expected), "{error}");
            }
        }
        let link = open_here(&at("link"), File::options().append(true)).unwrap_err();
        assert!(link.to_string().starts_with("it is a symbolic link, "));
        open(&at("link"), File::options().append(true)).unwrap();
        check(&at("link")).unwrap();
        check(&at("nothing")).unwrap();
        let missing = open(&at("nothing"), File::options().read(true)).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_in_the_way_of_a_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        make_dir(&at("a/b"), 0o700).unwrap();
        make_dir(&at("a/b"), 0o700).unwrap();
        std::fs::write(at("file"), "").unwrap();
        symlink(at("nowhere"), at("link")).unwrap();
        for (name, expected) in [("file", "a regular file"), ("link", "a symbolic link")] {
            let error = make_dir(&at(name), 0o700).unwrap_err().to_string();
            let expected = format!("it is {expected}, expected a directory: move it away");
            assert_eq!(error, expected);
        }
    }
}
