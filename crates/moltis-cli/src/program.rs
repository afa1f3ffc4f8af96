//! Where this program lies: the path that a service starts it by.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, OrFail as _, failure};
use crate::settings::Settings;

/// Returns the path by which this program will be found tomorrow: as it was called, where that
/// leads to the very file that runs now, since a package manager points such a link at each new
/// version; else that file itself.
///
/// # Errors
/// The file is gone: it was replaced or removed since this process began.
pub(crate) fn path(settings: &Settings) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().or_fail(|| "cannot find this program's file".to_owned())?;
    let own = std::fs::canonicalize(&own).map_err(|error| {
        failure(format!("this program's file is gone: `{}`", own.display())).because(error)
    })?;
    let called = settings.called.as_deref();
    let found = called.and_then(|called| find(called, settings.path.as_deref(), &own));
    Ok(found.unwrap_or(own))
}

/// Returns the absolute path that `called` names, where it leads to `own`.
fn find(called: &OsStr, search: Option<&str>, own: &Path) -> Option<PathBuf> {
    let leads_here = |path: &PathBuf| std::fs::canonicalize(path).is_ok_and(|to| to == own);
    let called = Path::new(called);
    if called.components().count() > 1 {
        // The directory is the real one, without `..`; only the last name is as it was called.
        let dir = std::fs::canonicalize(called.parent()?).or_else(|_| std::fs::canonicalize("."));
        let path = dir.ok()?.join(called.file_name()?);
        return Some(path).filter(leads_here);
    }
    std::env::split_paths(search?)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(called))
        .find(leads_here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_an_upgrade_moves_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        let (own, link) = (root.join("1.2/moltis"), root.join("bin/moltis"));
        for file in [&own, &link] {
            std::fs::create_dir(file.parent().unwrap()).unwrap();
        }
        std::fs::write(&own, "").unwrap();
        std::os::unix::fs::symlink(&own, &link).unwrap();
        let search = format!("/nonexistent:{}", root.join("bin").display());
        let find = |called: &Path| find(called.as_os_str(), Some(&search), &own);
        assert_eq!(find(Path::new("moltis")), Some(link.clone()));
        assert_eq!(find(&link), Some(link));
        assert_eq!(find(&own), Some(own.clone()));
        // Whoever starts a program may call it as they like.
        assert_eq!(find(Path::new("sh")), None);
        assert_eq!(find(Path::new("/bin/sh")), None);
    }
}
