//! What a home directory must be before anything is put into it: absolute, and short enough for
//! the sockets below it.
//!
//! Where the home is, and that it can be written, is the caller's business; this room looks at the
//! path alone.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Bytes of a Unix socket's path, less the closing zero byte (unix(7); `sys/un.h` on macOS).
pub const SOCKET_PATH_BYTES_MAX: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

/// The longest socket that any part of this program puts below a home: a keeper's.
const LONGEST_SOCKET: &str = "local/k0123456789abcdef0123456789abcdef.sock";

/// Why a path cannot be a home.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    /// It depends on the directory somebody happens to be in.
    #[error("the home `{}` is a relative path: expected one that begins with `/`", .path.display())]
    Relative {
        /// The path.
        path: PathBuf,
    },
    /// A socket below it could not be bound.
    #[error("the home `{}` has {found} bytes: at most {max}, or the sockets below it cannot be made", .path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        found: usize,
        /// The longest that works.
        max: usize,
    },
    /// It is not UTF-8, or holds a zero byte.
    #[error("the home `{}` is not UTF-8", .path.display())]
    NotText {
        /// The path.
        path: PathBuf,
    },
}

/// Checks that `home` is absolute, UTF-8, and short enough for the sockets below it.
///
/// # Errors
/// Says which of the three it is not.
pub fn check_home(home: &Path) -> Result<(), HomeError> {
    let path = || home.to_owned();
    if !home.is_absolute() {
        return Err(HomeError::Relative { path: path() });
    }
    if home.to_str().is_none_or(|text| text.contains('\0')) {
        return Err(HomeError::NotText { path: path() });
    }
    let found = home.as_os_str().as_bytes().len();
    let max = SOCKET_PATH_BYTES_MAX - LONGEST_SOCKET.len() - 1;
    if found > max {
        return Err(HomeError::TooLong {
            path: path(),
            found,
            max,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_absolute_and_leaves_room_for_its_sockets() {
        assert_eq!(check_home(Path::new("/home/ada/.moltis")), Ok(()));
        assert!(matches!(
            check_home(Path::new(".moltis")),
            Err(HomeError::Relative { .. })
        ));
        assert!(matches!(
            check_home(Path::new("")),
            Err(HomeError::Relative { .. })
        ));
        let longest = SOCKET_PATH_BYTES_MAX - LONGEST_SOCKET.len() - 1;
        let exact = format!("/{}", "h".repeat(longest - 1));
        assert_eq!(check_home(Path::new(&exact)), Ok(()));
        assert!(matches!(
            check_home(Path::new(&format!("{exact}h"))),
            Err(HomeError::TooLong { .. })
        ));
        assert!(matches!(
            check_home(Path::new("/a\0b")),
            Err(HomeError::NotText { .. })
        ));
    }
}
