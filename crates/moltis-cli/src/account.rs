//! The account that this process runs as: its name, home and shell, by the environment and else by
//! `/etc/passwd`. What commands start with comes from here.

use std::collections::BTreeMap;

use crate::settings::Settings;

/// Where programs are looked for when the environment names no PATH.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// Who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    /// The user's name.
    pub(crate) name: String,
    /// The home directory.
    pub(crate) home: String,
    /// The login shell.
    pub(crate) shell: String,
}

impl Account {
    /// Returns the name that the system has for the user of this process, whatever the environment
    /// says: service managers go by it.
    pub(crate) fn login(settings: &Settings) -> String {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let uid = rustix::process::geteuid().as_raw();
        let known = find(&passwd, uid).map(|known| known.name);
        known.unwrap_or_else(|| Self::of_process(settings).name)
    }

    /// Finds the account of this process.
    pub(crate) fn of_process(settings: &Settings) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let known = find(&passwd, uid);
        let text = |path: Option<&std::path::PathBuf>| {
            path.and_then(|path| path.to_str()).map(str::to_owned)
        };
        let first = |ours: Option<String>, theirs: fn(&Self) -> &String, last: String| {
            ours.or_else(|| known.as_ref().map(theirs).cloned())
                .filter(|text| !text.is_empty())
                .unwrap_or(last)
        };
        Self {
            name: first(settings.user.clone(), |known| &known.name, uid.to_string()),
            home: first(
                text(settings.user_home.as_ref()),
                |known| &known.home,
                "/".to_owned(),
            ),
            shell: first(
                settings.shell.clone(),
                |known| &known.shell,
                "/bin/sh".to_owned(),
            ),
        }
    }

    /// Returns what every command starts with; `path` is where programs are looked for.
    pub(crate) fn base_env(
        &self,
        settings: &Settings,
        path: Option<&str>,
    ) -> BTreeMap<String, String> {
        let tmp = settings
            .tmp_dir
            .clone()
            .unwrap_or_else(|| "/tmp".to_owned());
        let path = path.filter(|path| !path.is_empty()).unwrap_or(PATH);
        [
            ("HOME", self.home.as_str()),
            ("USER", &self.name),
            ("LOGNAME", &self.name),
            ("SHELL", &self.shell),
            ("TMPDIR", &tmp),
            ("PATH", path),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
    }
}

/// Finds a user in the text of passwd(5).
fn find(passwd: &str, uid: u32) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, id, _, _, home, shell] = fields.as_slice() else {
            return None;
        };
        (id.parse() == Ok(uid)).then(|| Account {
            name: (*name).to_owned(),
            home: (*home).to_owned(),
            shell: (*shell).to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbad line\nada:x:1000:1000:,,,:/home/ada:\n";
        let ada = find(passwd, 1000).unwrap();
        assert_eq!((ada.name.as_str(), ada.home.as_str()), ("ada", "/home/ada"));
        assert_eq!(ada.shell, "");
        assert_eq!(find(passwd, 7), None);
    }

    #[test]
    fn commands_start_with_six_variables_and_no_more() {
        let account = Account {
            name: "ada".into(),
            home: "/home/ada".into(),
            shell: "/bin/sh".into(),
        };
        let env = account.base_env(&Settings::default(), None);
        let names: Vec<_> = env.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["HOME", "LOGNAME", "PATH", "SHELL", "TMPDIR", "USER"]
        );
    }
}
