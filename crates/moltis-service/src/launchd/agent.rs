//! The agent's property list: text from a [`Service`], and what of it is read back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::ServiceError;
use crate::files::{Installed, mark};
use crate::service::Service;
use crate::status::{State, Status};

/// What stands around the mark, a comment before the list.
const MARK: &str = "<!-- mark: ";
const MARK_END: &str = " -->\n";

/// What the list itself begins with.
const LIST: &str = "<plist";

/// The keys of launchd.plist(5) that we use.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Agent {
    label: String,
    #[serde(default)]
    program_arguments: Vec<String>,
    #[serde(default)]
    environment_variables: BTreeMap<String, String>,
    #[serde(default)]
    run_at_load: bool,
    #[serde(default)]
    keep_alive: bool,
    /// Seconds between two starts, at the least.
    #[serde(default)]
    throttle_interval: u32,
    /// What the program has started goes on when it ends.
    #[serde(default)]
    abandon_process_group: bool,
    /// Not throttled as something that nobody waits for.
    #[serde(default)]
    process_type: String,
}

/// Returns the text of the property list.
///
/// The agent starts at login, is started again after any end, and ends alone: what it has started
/// goes on.
///
/// # Errors
/// [`ServiceError::Value`] for a value that cannot stand in the file.
pub fn agent(service: &Service) -> Result<String, ServiceError> {
    let program = service.check()?;
    let words = [program.to_owned()].into_iter();
    let agent = Agent {
        label: service.name.label().to_owned(),
        program_arguments: words.chain(service.arguments.iter().cloned()).collect(),
        environment_variables: service.variables.iter().cloned().collect(),
        run_at_load: true,
        keep_alive: true,
        throttle_interval: 2,
        abandon_process_group: true,
        process_type: "Interactive".to_owned(),
    };
    let mut bytes = Vec::new();
    let written = plist::to_writer_xml(&mut bytes, &agent);
    let text = written.ok().and_then(|()| String::from_utf8(bytes).ok());
    let parts = text
        .as_deref()
        .and_then(|text| Some((text.find(LIST)?, text)));
    let (at, text) = parts.ok_or_else(|| ServiceError::Value {
        what: "a value".to_owned(),
        problem: "cannot stand in a property list".to_owned(),
    })?;
    let (head, list) = text.split_at(at);
    Ok(format!("{head}{MARK}{}{MARK_END}{list}\n", mark(text)))
}

/// Reads a property list, ours or somebody's.
pub(super) fn read(path: PathBuf, text: String) -> Installed {
    let is_ours = text
        .strip_suffix('\n')
        .and_then(|text| text.split_once(MARK))
        .and_then(|(head, rest)| Some((head, rest.split_once(MARK_END)?)))
        .is_some_and(|(head, (found, list))| found == mark(&format!("{head}{list}")));
    let agent: Option<Agent> = plist::from_bytes(text.as_bytes()).ok();
    let (words, variables) = agent.map_or_else(Default::default, |agent| {
        (agent.program_arguments, agent.environment_variables)
    });
    Installed {
        command: words,
        variables: variables.into_iter().collect(),
        is_edited: !is_ours,
        path,
        text,
    }
}

/// Reads what `launchctl print` says of a service. Its form is no contract of Apple's; the lines
/// read here have stood since macOS 10.11.
pub(super) fn status(printed: &str) -> Status {
    let get = |key: &str| {
        printed
            .lines()
            .map(str::trim)
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))
    };
    let number = |key| get(key).and_then(|value| value.parse::<u32>().ok());
    let signal = get("last terminating signal").map(|signal| format!("signal {signal}"));
    let because = signal.or_else(|| match get("last exit code") {
        None | Some("0" | "(never exited)") => None,
        Some(code) => Some(format!("exit code {code}")),
    });
    Status {
        state: match (get("state"), number("pid")) {
            (Some("running"), Some(pid)) => State::Running { pid },
            (Some("spawn scheduled" | "spawning" | "xpcproxy"), _) => State::Starting { because },
            _ => State::Stopped {
                because: Some(because.unwrap_or_else(|| "launchd has not started it".to_owned())),
            },
        },
        enabled: true,
        restarts: number("runs").map(|runs| runs.saturating_sub(1)),
        is_outdated: false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::service::Name;

    const NAME: Name = Name::new("moltis-node", "org.moltis.node");

    const ODD: &str = r#"/Users/a "da"/it's <b> & %h $HOME c:\d/.moltis"#;

    fn odd() -> Service {
        Service::new(NAME, "Moltis node", format!("{ODD}/moltis"))
            .argument("node")
            .argument("run")
            .variable("MOLTIS_HOME", ODD)
    }

    #[test]
    fn the_agent_of_a_node() {
        let service = Service::new(NAME, "Moltis node", "/usr/local/bin/moltis")
            .argument("node")
            .argument("run")
            .variable("MOLTIS_HOME", "/Users/ada/.moltis");
        insta::assert_snapshot!("node", agent(&service).unwrap());
    }

    #[test]
    fn a_list_that_was_changed_is_told_from_one_that_was_not() {
        let text = agent(&odd()).unwrap();
        let found = read("a".into(), text.clone());
        assert!(!found.is_edited());
        assert_eq!(found.program(), Some(&*format!("{ODD}/moltis")));
        assert_eq!(found.variable("MOLTIS_HOME"), Some(ODD));
        assert!(read("a".into(), text.replace("<true/>", "<false/>")).is_edited());
        assert!(read("a".into(), "no list".to_owned()).is_edited());
    }

    /// Runs a line of Python over a text.
    fn python(line: &str, text: &str) -> String {
        let mut python = Command::new("python3")
            .args(["-c", line])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`cargo xtask test` installs python3");
        let mut stdin = python.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        drop(stdin);
        let output = python.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Every key is one of launchd.plist(5), with the type that it asks for, and every value is read
    /// back as it was by a parser that is not the one that wrote it.
    #[test]
    fn another_parser_reads_the_list_as_launchd_plist_5_says() {
        let text = agent(&odd()).unwrap();
        let whole = "import plistlib, json, sys; print(json.dumps(plistlib.loads(sys.stdin.buffer.read())))";
        let found = python(whole, &text);
        insta::assert_snapshot!("read_by_another_parser", found.trim());
        // Every key that we write, with the type that launchd.plist(5) gives it.
        let told = [
            ("Label", "str"),
            ("ProgramArguments", "list"),
            ("EnvironmentVariables", "dict"),
            ("RunAtLoad", "bool"),
            ("KeepAlive", "bool"),
            ("ThrottleInterval", "int"),
            ("AbandonProcessGroup", "bool"),
            ("ProcessType", "str"),
        ];
        let types = "import plistlib, sys; [print(k, type(v).__name__) for k, v in plistlib.loads(sys.stdin.buffer.read()).items()]";
        let lines = told.map(|(key, kind)| format!("{key} {kind}\n"));
        let expected = lines.concat();
        assert_eq!(python(types, &text), expected);
        // launchd.plist(5): "Adaptive", "Background", "Interactive" or "Standard".
        assert!(text.contains("<string>Interactive</string>"));
    }

    #[test]
    fn what_launchctl_prints_is_read() {
        let running = "gui/501/org.moltis.node = {\n\tactive count = 1\n\tstate = running\n\n\truns = 3\n\tpid = 812\n\tlast exit code = 1\n}\n";
        let found = status(running);
        assert_eq!(found.state, State::Running { pid: 812 });
        assert_eq!(found.restarts, Some(2));
        let waiting = "\tstate = spawn scheduled\n\tlast exit code = 78: EX_CONFIG\n";
        assert_eq!(
            status(waiting).state,
            State::Starting {
                because: Some("exit code 78: EX_CONFIG".to_owned())
            }
        );
    }
}
