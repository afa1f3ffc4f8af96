//! What to install: a program, its arguments and its variables.

use std::path::PathBuf;

use crate::error::ServiceError;

/// Characters of a value, at the most. systemd reads lines of 1 MiB; nothing of ours comes near.
const VALUE_CHARS_MAX: usize = 32 * 1024;

/// What a service is called, once by each manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    unit: &'static str,
    label: &'static str,
}

impl Name {
    /// Names a service: `unit` for systemd without its ending, as `moltis-node`; `label` for
    /// launchd, as `org.moltis.node`.
    pub const fn new(unit: &'static str, label: &'static str) -> Self {
        Self { unit, label }
    }

    /// Returns the unit's name with its ending: `moltis-node.service`.
    pub fn unit(self) -> String {
        format!("{}.service", self.unit)
    }

    /// Returns launchd's label: `org.moltis.node`.
    pub fn label(self) -> &'static str {
        self.label
    }
}

/// A program that runs as a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub(crate) name: Name,
    pub(crate) description: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
}

impl Service {
    /// Begins a service that runs `program`, an absolute path, without arguments.
    pub fn new(name: Name, description: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name,
            description: description.into(),
            program: program.into(),
            arguments: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// Adds an argument. Everybody on the machine can read it: no place for a secret.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds a variable of the program's environment. It stands in a file, readable to its owner.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Returns what the program is started with.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Returns the program's path as text, after a look at every value.
    ///
    /// # Errors
    /// [`ServiceError::Value`]: a value holds a control character, which no file of a manager can
    /// hold in one line; or the program's path is relative or not UTF-8.
    pub(crate) fn check(&self) -> Result<&str, ServiceError> {
        let bad = |what: &str, problem: &str| ServiceError::Value {
            what: what.to_owned(),
            problem: problem.to_owned(),
        };
        let program = self.program.to_str();
        let program = program.ok_or_else(|| bad("the program's path", "is not UTF-8"))?;
        if !program.starts_with('/') {
            return Err(bad(
                "the program's path",
                "is relative, expected an absolute one",
            ));
        }
        let arguments = self
            .arguments
            .iter()
            .map(|text| ("an argument", text.as_str()));
        let variables = self
            .variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let values = [
            ("the program's path", program),
            ("the description", self.description.as_str()),
        ];
        for (what, value) in values.into_iter().chain(arguments).chain(variables) {
            if value.chars().any(char::is_control) {
                return Err(bad(what, "holds a control character"));
            }
            if value.chars().count() > VALUE_CHARS_MAX {
                return Err(bad(
                    what,
                    &format!("is longer than {VALUE_CHARS_MAX} characters"),
                ));
            }
        }
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        match self.variables.iter().find(|(name, _)| !is_name(name)) {
            Some((name, _)) => Err(bad(&format!("`{name}`"), "is no name of a variable")),
            None => Ok(program),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Name = Name::new("t", "org.t");

    fn problem(service: &Service) -> String {
        service.check().unwrap_err().to_string()
    }

    #[test]
    fn a_value_that_no_file_can_hold_is_named() {
        let service = Service::new(NAME, "d", "/bin/true");
        assert_eq!(service.check().unwrap(), "/bin/true");
        assert_eq!(
            problem(&service.clone().variable("HOME", "/a\nb")),
            "HOME holds a control character"
        );
        assert_eq!(
            problem(&service.clone().argument("a\0b")),
            "an argument holds a control character"
        );
        assert_eq!(
            problem(&service.variable("A=B", "c")),
            "`A=B` is no name of a variable"
        );
        assert_eq!(
            problem(&Service::new(NAME, "d", "bin/true")),
            "the program's path is relative, expected an absolute one"
        );
    }
}
