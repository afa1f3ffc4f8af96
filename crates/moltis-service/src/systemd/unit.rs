//! The unit file: text from a [`Service`], and what of it is read back.
//!
//! Quoting is systemd.service(5), Command Lines, and systemd.syntax(7): `"…"` with `\\` and `\"`;
//! `%%` everywhere, since `%` begins a specifier; `$$` in arguments, since `$` begins a variable
//! there and nowhere else.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::error::ServiceError;
use crate::files::{Installed, mark};
use crate::service::Service;

/// What begins the line that tells whether a file was changed since it was written.
const MARK: &str = "# mark: ";

/// What systemd takes in no program's path, however it is quoted.
const REFUSED_IN_A_PROGRAM: [char; 3] = ['"', '\'', '\\'];

/// How such a program is started: the shell's name for it and its arguments follow.
const SHELL: &str = r#""/bin/sh" "-c" "exec \"$$0\" \"$$@\"""#;

/// Returns the text of the unit.
///
/// The service counts as started when its program has said so (`sd_notify(3)`), is started again two
/// seconds after any end, and ends alone: what it has started goes on.
///
/// # Errors
/// [`ServiceError::Value`] for a value that cannot stand in a line.
pub fn unit(service: &Service) -> Result<String, ServiceError> {
    let program = service.check()?;
    let unit = service.name.unit();
    let mut command = if program.contains(REFUSED_IN_A_PROGRAM) {
        // The shell becomes the program, so that the process is the same.
        format!("{SHELL} {}", quoted(&percent(program).replace('$', "$$")))
    } else {
        quoted(&percent(program))
    };
    for argument in &service.arguments {
        command.push(' ');
        command.push_str(&quoted(&percent(argument).replace('$', "$$")));
    }
    let mut text = format!(
        "# Written by Moltis. What you change here is kept as {unit}.kept and replaced the next time;\n\
         # what you change with `systemctl --user edit {unit}` stays.\n\
         \n\
         [Unit]\n\
         Description={}\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=notify\n\
         # It waits for its home, where another process has it, and is ready then.\n\
         TimeoutStartSec=infinity\n\
         ExecStart={command}\n",
        percent(&service.description)
    );
    for (name, value) in &service.variables {
        let variable = quoted(&percent(&format!("{name}={value}")));
        writeln!(text, "Environment={variable}").ok(); // a String takes everything
    }
    text.push_str(
        "Restart=always\n\
         RestartSec=2\n\
         # Commands belong to their keeper, not to this service, and outlive it; one that takes too much\n\
         # memory ends alone.\n\
         KillMode=process\n\
         OOMPolicy=continue\n\
         TasksMax=infinity\n\
         StandardOutput=journal\n\
         StandardError=journal\n\
         \n\
         [Install]\n\
         WantedBy=default.target\n",
    );
    Ok(format!("{MARK}{}\n{text}", mark(&text)))
}

/// Reads a unit file, ours or somebody's.
pub(super) fn read(path: PathBuf, text: String) -> Installed {
    let is_ours = text
        .strip_prefix(MARK)
        .and_then(|rest| rest.split_once('\n'))
        .is_some_and(|(found, rest)| found == mark(rest));
    let values = |key: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .flat_map(words)
            .collect()
    };
    let mut command = values("ExecStart");
    if command.first().is_some_and(|word| word == "/bin/sh") && command.len() > 3 {
        command.drain(..3);
        command[0] = command[0].replace("$$", "$");
    }
    for argument in command.iter_mut().skip(1) {
        *argument = argument.replace("$$", "$");
    }
    Installed {
        command,
        variables: values("Environment")
            .iter()
            .filter_map(|word| word.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        is_edited: !is_ours,
        path,
        text,
    }
}

fn percent(text: &str) -> String {
    text.replace('%', "%%")
}

fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}

/// Cuts a line into words and takes the quoting off.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', _) => word.get_or_insert_default().extend(characters.next()),
            ('"' | '\'', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (_, Some(open)) if character == open => quote = None,
            (space, None) if space.is_whitespace() => words.extend(word.take()),
            ('%', _) => {
                characters.next_if_eq(&'%');
                word.get_or_insert_default().push('%');
            }
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::service::Name;

    const NAME: Name = Name::new("moltis-node", "org.moltis.node");

    fn plain() -> Service {
        Service::new(NAME, "Moltis node", "/usr/local/bin/moltis")
            .argument("node")
            .argument("run")
            .variable("MOLTIS_HOME", "/home/ada/.moltis")
    }

    #[test]
    fn the_unit_of_a_node() {
        insta::assert_snapshot!("node", unit(&plain()).unwrap());
    }

    #[test]
    fn the_unit_of_a_home_with_spaces_quotes_percents_and_dollars() {
        let home = r#"/home/a "da"/it's %h 100% $HOME ${X} c:\d/.moltis"#;
        let service = Service::new(NAME, "100 %", format!("{home}/bin/moltis"))
            .argument("--name")
            .argument("$HOME %n \"x\"")
            .variable("MOLTIS_HOME", home);
        insta::assert_snapshot!("odd", unit(&service).unwrap());
    }

    #[test]
    fn a_file_that_was_changed_is_told_from_one_that_was_not() {
        let text = unit(&plain()).unwrap();
        let found = read("u".into(), text.clone());
        assert!(!found.is_edited());
        assert_eq!(found.program(), Some("/usr/local/bin/moltis"));
        assert_eq!(found.variable("MOLTIS_HOME"), Some("/home/ada/.moltis"));
        assert_eq!(found.variable("HOME"), None);
        let edited = text.replace("RestartSec=2", "RestartSec=30");
        assert!(read("u".into(), edited).is_edited());
        assert!(read("u".into(), "[Service]\n".to_owned()).is_edited());
    }

    proptest! {
        #[test]
        fn every_value_is_read_back(home in "/[^\\p{C}]{0,40}", argument in "[^\\p{C}]{0,40}") {
            let service = Service::new(NAME, "d", format!("{home}/moltis"))
                .argument(argument.clone())
                .variable("MOLTIS_HOME", home.clone());
            let found = read("u".into(), unit(&service).unwrap());
            prop_assert_eq!(found.variable("MOLTIS_HOME"), Some(home.as_str()));
            let program = format!("{home}/moltis");
            prop_assert_eq!(found.program(), Some(program.as_str()));
            prop_assert_eq!(found.arguments(), [argument]);
        }

        #[test]
        fn no_file_of_somebody_elses_breaks_the_reader(text in ".{0,200}", line in "\\PC{0,60}") {
            read("u".into(), text);
            read("u".into(), format!("ExecStart={line}\nEnvironment={line}\n"));
        }
    }
}
