//! The checks of this machine: facts in, a finding out. Pure.
//!
//! A new check is a function here and a row in [`CHECKS`]; what it looks at is a field of [`Facts`].
//! What a gateway sees of itself is checked in `moltis_gateway::doctor`.

use jiff::Timestamp;
use moltis_gateway::api::doctor::{Finding, Level};
use moltis_gateway::doctor::Diagnosis;
use moltis_service::Begin;

use crate::failure::{Failure, report};
use crate::service::typed;
use crate::units::until;

/// What was seen on this machine.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) now: Timestamp,
    /// Whether `moltis.toml` is there and understood, with its path as a person writes it.
    pub(super) config: (String, Result<Presence, Told>),
    pub(super) gateway: GatewayFacts,
    pub(super) node: NodeFacts,
    pub(super) services: Services,
}

/// Whether a file is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    There,
    Missing,
}

/// A failure in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// Whether the gateway answers.
#[derive(Debug)]
pub(super) enum GatewayFacts {
    /// It does, at this place.
    Answers(String),
    /// It does not, and one was named or has run here.
    Silent(Told),
    /// It does not, and nothing says that one should.
    Absent(Told),
}

/// This machine as a node.
#[derive(Debug)]
pub(super) enum NodeFacts {
    /// It is none.
    None,
    /// It is one, and its files cannot be used.
    Broken(Told),
    /// It has joined a gateway.
    Joined {
        gateway_url: String,
        process: Process,
        keeper: Keeper,
    },
}

/// What holds the commands of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Keeper {
    /// It answers.
    Runs,
    /// None does.
    Missing,
    /// Nobody could look.
    Unknown(Told),
}

/// What the node's process says of itself.
#[derive(Debug)]
pub(super) enum Process {
    /// None runs.
    Missing,
    /// It is connected, since then where that is known.
    Connected(Option<Timestamp>),
    /// A person has to approve it.
    Waiting { code: String },
    /// There is no connection, for this reason where there is one already.
    Apart(Option<String>),
    /// It cannot be read.
    Unknown(Told),
}

/// What is installed as a service of this user, and whether services start with the machine.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) installed: Vec<ServiceFacts>,
    pub(super) begin: Begin,
}

/// A service that is installed.
#[derive(Debug, Clone)]
pub(super) struct ServiceFacts {
    /// What its manager calls it: `moltis-node.service`.
    pub(super) name: String,
    /// It is that of this machine's node.
    pub(super) is_node: bool,
    /// What to type to start it.
    pub(super) start: String,
    pub(super) state: ServiceState,
    /// It starts by itself.
    pub(super) enabled: bool,
    /// How often its manager has started it again.
    pub(super) restarts: u32,
    /// The program in its file, where that is not there.
    pub(super) missing_program: Option<String>,
    /// Its file was changed since the manager read it.
    pub(super) is_outdated: bool,
    /// A person has changed its file.
    pub(super) is_edited: bool,
    /// What to type to install it again.
    pub(super) install: String,
    /// What to type to see its log.
    pub(super) logs: &'static str,
}

/// How a service stands.
#[derive(Debug, Clone)]
pub(super) enum ServiceState {
    Running,
    Starting {
        because: Option<String>,
    },
    Stopped {
        because: Option<String>,
    },
    Masked,
    /// Nobody could be asked.
    Unknown(String),
}

type Check = (&'static str, fn(&Facts) -> Diagnosis);

const CHECKS: &[Check] = &[
    ("config", config),
    ("gateway", gateway),
    ("service", |facts| service(&facts.services)),
    ("lingering", |facts| lingering(&facts.services)),
];

/// Returns a finding for every check of this machine.
pub(super) fn examine(facts: &Facts) -> Vec<Finding> {
    let checks = CHECKS.iter();
    checks.map(|(check, look)| look(facts).of(check)).collect()
}

/// Returns what is said of a check that only a gateway could do.
pub(super) fn not_asked(facts: &Facts) -> Diagnosis {
    match &facts.gateway {
        GatewayFacts::Absent(_) => {
            Diagnosis::ok("nothing to look at: no gateway is set up on this machine")
        }
        GatewayFacts::Silent(_) | GatewayFacts::Answers(_) => {
            Diagnosis::warning("not known: the gateway did not say")
        }
    }
}

/// Puts several findings of one check together: the worst, in the words of all that are so bad.
pub(super) fn joined(one: Finding, other: Finding) -> Finding {
    if one.level != other.level {
        return if one.level > other.level { one } else { other };
    }
    if one.level == Level::Ok || one == other {
        return one;
    }
    let mut hints: Vec<String> = [one.hint, other.hint].into_iter().flatten().collect();
    hints.dedup();
    Finding {
        message: format!("{}; {}", one.message, other.message),
        hint: (!hints.is_empty()).then(|| hints.join("; ")),
        ..one
    }
}

impl Told {
    /// Takes the chain of a failure and its hints.
    pub(super) fn of(failure: Failure) -> Self {
        let report = report(&failure.into());
        Self {
            message: report.messages.join(": "),
            hint: (!report.hints.is_empty()).then(|| report.hints.join("; ")),
        }
    }

    fn diagnosis(&self, level: Level) -> Diagnosis {
        let diagnosis = Diagnosis::new(level, &self.message);
        match &self.hint {
            Some(hint) => diagnosis.hint(hint),
            None => diagnosis,
        }
    }
}

/// Can the files that a person writes be read?
fn config(facts: &Facts) -> Diagnosis {
    let (path, config) = &facts.config;
    let of_node = match &facts.node {
        NodeFacts::Broken(told) => Some(told),
        NodeFacts::None | NodeFacts::Joined { .. } => None,
    };
    match (config, of_node) {
        (Err(told), None) | (Ok(_), Some(told)) => told.diagnosis(Level::Error),
        (Err(one), Some(other)) => {
            let both = |told: &Told| told.diagnosis(Level::Error).of("config");
            let Finding { message, hint, .. } = joined(both(one), both(other));
            Told { message, hint }.diagnosis(Level::Error)
        }
        (Ok(Presence::There), None) => Diagnosis::ok(format!("`{path}` is understood")),
        (Ok(Presence::Missing), None) => {
            Diagnosis::ok(format!("there is no `{path}`: everything is as by default"))
        }
    }
}

/// Does the gateway answer, and is this machine's node connected?
fn gateway(facts: &Facts) -> Diagnosis {
    let node = match &facts.node {
        NodeFacts::Joined {
            gateway_url,
            process,
            keeper,
        } => {
            let mut installed = facts.services.installed.iter();
            let service = installed.find(|service| service.is_node);
            let run = service.map_or("moltis node run", |service| &service.start);
            let node = node(gateway_url, process, facts.now, run).of("gateway");
            Some(with_keeper(node, process, keeper))
        }
        NodeFacts::None | NodeFacts::Broken(_) => None,
    };
    let gateway = match &facts.gateway {
        GatewayFacts::Answers(place) => Diagnosis::ok(format!("{place} answers")),
        GatewayFacts::Silent(told) => told.diagnosis(Level::Error),
        GatewayFacts::Absent(told) => match &facts.node {
            NodeFacts::None => told.diagnosis(Level::Error),
            NodeFacts::Joined { .. } | NodeFacts::Broken(_) => {
                Diagnosis::ok("no gateway is set up on this machine, and a node needs none")
            }
        },
    };
    let gateway = gateway.of("gateway");
    let found = match node {
        None => gateway,
        // What is said of the node comes first where there is nothing else.
        Some(node) if matches!(facts.gateway, GatewayFacts::Absent(_)) => Finding {
            message: format!("{}; {}", node.message, gateway.message),
            ..node
        },
        Some(node) if gateway.level == Level::Ok && node.level == Level::Ok => Finding {
            message: format!("{}; {}", gateway.message, node.message),
            ..gateway
        },
        Some(node) => joined(gateway, node),
    };
    let Finding {
        level,
        message,
        hint,
        ..
    } = found;
    Told { message, hint }.diagnosis(level)
}

fn node(url: &str, process: &Process, now: Timestamp, run: &str) -> Diagnosis {
    let this = format!("this machine is a node of {url}");
    match process {
        Process::Connected(since) => {
            let time =
                since.map_or_else(String::new, |since| format!(" for {}", until(now, since)));
            Diagnosis::ok(format!("{this}, connected{time}"))
        }
        Process::Missing => Diagnosis::warning(format!(
            "{this}, and no node process runs: no command can reach it"
        ))
        .hint(run),
        Process::Waiting { code } => Diagnosis::warning(format!(
            "{this}, which has not approved it yet (connection code {code})"
        ))
        .hint("on the gateway: moltis node pending, then moltis node approve <id>"),
        Process::Apart(Some(error)) => {
            Diagnosis::error(format!("{this}, and is not connected: {error}"))
                .hint("on the gateway: moltis doctor")
        }
        Process::Apart(None) => Diagnosis::warning(format!("{this}, and is just connecting"))
            .hint("again: moltis doctor"),
        Process::Unknown(told) => told.diagnosis(Level::Warning),
    }
}

/// Adds to what is said of a node whether its commands have somebody who holds them.
fn with_keeper(node: Finding, process: &Process, keeper: &Keeper) -> Finding {
    let is_needed = matches!(process, Process::Connected(_));
    let of_keeper = match keeper {
        Keeper::Runs if is_needed => "its keeper runs",
        Keeper::Runs => "its keeper runs, and commands go on in it",
        Keeper::Missing if is_needed => {
            return joined(
                node,
                Diagnosis::warning("this node has no keeper, which runs its commands")
                    .hint("again: moltis doctor; why: moltis node logs")
                    .of("gateway"),
            );
        }
        // The node starts one when it is connected.
        Keeper::Missing => return node,
        Keeper::Unknown(told) => return joined(node, told.diagnosis(Level::Warning).of("gateway")),
    };
    Finding {
        message: format!("{}; {of_keeper}", node.message),
        ..node
    }
}

/// Do the services run that are installed?
fn service(services: &Services) -> Diagnosis {
    let installed = services.installed.iter();
    let all = installed.map(|service| one_service(service).of("service"));
    let all: Vec<Finding> = all.collect();
    if all.iter().all(|found| found.level == Level::Ok) && !all.is_empty() {
        let messages: Vec<_> = all.into_iter().map(|found| found.message).collect();
        return Diagnosis::ok(messages.join("; "));
    }
    match all.into_iter().reduce(joined) {
        None => Diagnosis::ok(
            "nothing is installed as a service of this home: what runs, runs while its terminal does",
        ),
        Some(Finding {
            level,
            message,
            hint,
            ..
        }) => Told { message, hint }.diagnosis(level),
    }
}

/// So many restarts are no sign that a service cannot work.
const RESTARTS_FEW: u32 = 2;

fn one_service(service: &ServiceFacts) -> Diagnosis {
    let ServiceFacts {
        name,
        state,
        enabled,
        restarts,
        missing_program,
        is_outdated,
        is_edited,
        install,
        logs,
        start,
        is_node: _,
    } = service;
    if let Some(program) = missing_program
        && !matches!(state, ServiceState::Running)
    {
        return Diagnosis::error(format!("`{name}` starts `{program}`, which is not there"))
            .hint(format!("install it again: {install}"));
    }
    let why = |because: &Option<String>| match because {
        Some(because) => format!(": {because}"),
        None => String::new(),
    };
    match state {
        ServiceState::Masked => {
            Diagnosis::error(format!("`{name}` is masked: it will not be started"))
                .hint(format!("systemctl --user unmask {name}"))
        }
        ServiceState::Unknown(said) => {
            Diagnosis::warning(format!("how `{name}` stands is not known: {said}"))
        }
        ServiceState::Stopped { because } => {
            let level = if because.is_some() {
                Level::Error
            } else {
                Level::Warning
            };
            Diagnosis::new(level, format!("`{name}` does not run{}", why(because)))
                .hint(format!("why: {logs}; start it: {start}"))
        }
        ServiceState::Starting {
            because: Some(because),
        } if *restarts <= RESTARTS_FEW => Diagnosis::warning(format!(
            "`{name}` has just ended and starts again: {because}"
        ))
        .hint(format!("why: {logs}; again: moltis doctor")),
        ServiceState::Starting {
            because: Some(because),
        } => Diagnosis::error(format!("`{name}` ends again and again: {because}"))
            .hint(format!("why: {logs}")),
        ServiceState::Starting { because: None } => {
            Diagnosis::warning(format!("`{name}` is just starting")).hint("again: moltis doctor")
        }
        ServiceState::Running if *is_outdated => Diagnosis::warning(format!(
            "the file of `{name}` was changed since it was read"
        ))
        .hint("systemctl --user daemon-reload"),
        ServiceState::Running if !enabled => Diagnosis::warning(format!(
            "`{name}` runs, and does not start by itself the next time"
        ))
        .hint(format!("systemctl --user enable {name}")),
        ServiceState::Running => Diagnosis::ok(format!(
            "`{name}` runs{}",
            if *is_edited {
                ", with a file that was changed by hand"
            } else {
                ""
            }
        )),
    }
}

/// Do the services start with the machine?
fn lingering(services: &Services) -> Diagnosis {
    if services.installed.is_empty() {
        return Diagnosis::ok("not needed: nothing is installed as a service");
    }
    match &services.begin {
        Begin::AtBoot => Diagnosis::ok("services of this user start with the machine"),
        Begin::AtLogin {
            command: Some(command),
        } => Diagnosis::warning(
            "services of this user start when the user logs in, and end at the last logout",
        )
        .hint(typed(command)),
        Begin::AtLogin { command: None } => {
            Diagnosis::ok("services of this user start when the user logs in, as they do here")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::failure;

    fn told(message: &str) -> Told {
        Told::of(failure(message).hint("do this"))
    }

    fn facts() -> Facts {
        Facts {
            now: "2026-01-02T03:04:05Z".parse().unwrap(),
            config: ("~/m.toml".to_owned(), Ok(Presence::Missing)),
            gateway: GatewayFacts::Answers("the gateway here".to_owned()),
            node: NodeFacts::None,
            services: Services {
                installed: Vec::new(),
                begin: Begin::AtBoot,
            },
        }
    }

    fn joined_to(process: Process) -> NodeFacts {
        held_by(Keeper::Runs, process)
    }

    fn held_by(keeper: Keeper, process: Process) -> NodeFacts {
        NodeFacts::Joined {
            gateway_url: "ws://gw/ws".to_owned(),
            process,
            keeper,
        }
    }

    #[track_caller]
    fn says(diagnosis: Diagnosis, level: Level, message: &str, hint: Option<&str>) {
        let found = diagnosis.of("x");
        let expected = Finding {
            check: "x".to_owned(),
            level,
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn every_check_appears_once() {
        let all = examine(&facts());
        let names: Vec<_> = all.iter().map(|found| found.check.as_str()).collect();
        assert_eq!(names, ["config", "gateway", "service", "lingering"]);
        assert!(all.iter().all(|found| found.level == Level::Ok), "{all:?}");
    }

    #[test]
    fn files_that_cannot_be_read_are_errors() {
        let mut seen = facts();
        let missing = "there is no `~/m.toml`: everything is as by default";
        says(config(&seen), Level::Ok, missing, None);
        seen.config.1 = Ok(Presence::There);
        says(config(&seen), Level::Ok, "`~/m.toml` is understood", None);
        seen.node = NodeFacts::Broken(told("node.json: line 3"));
        says(
            config(&seen),
            Level::Error,
            "node.json: line 3",
            Some("do this"),
        );
        seen.config.1 = Err(told("m.toml:7: no"));
        let both = "m.toml:7: no; node.json: line 3";
        says(config(&seen), Level::Error, both, Some("do this"));
        seen.node = NodeFacts::None;
        says(config(&seen), Level::Error, "m.toml:7: no", Some("do this"));
    }

    #[test]
    fn a_gateway_that_should_be_there_and_is_silent_is_an_error() {
        let mut seen = facts();
        says(gateway(&seen), Level::Ok, "the gateway here answers", None);
        for silent in [
            GatewayFacts::Silent(told("no")),
            GatewayFacts::Absent(told("no")),
        ] {
            seen.gateway = silent;
            says(gateway(&seen), Level::Error, "no", Some("do this"));
        }
        let unasked = not_asked(&seen).of("nodes");
        assert_eq!(unasked.level, Level::Ok);
        seen.gateway = GatewayFacts::Silent(told("no"));
        assert_eq!(not_asked(&seen).of("nodes").level, Level::Warning);
    }

    #[test]
    fn a_machine_that_is_only_a_node_needs_no_gateway() {
        let mut seen = facts();
        let this = "this machine is a node of ws://gw/ws";
        seen.gateway = GatewayFacts::Absent(told("no"));
        let none = "no gateway is set up on this machine, and a node needs none";
        let since = "2026-01-02T03:01:05Z".parse().unwrap();
        let connected = "connected for 3 min; its keeper runs";
        let apart = "and is not connected: refused";
        let goes_on = "its keeper runs, and commands go on in it";
        let missing = "and no node process runs: no command can reach it";
        let elsewhere = "on the gateway: moltis doctor";
        for (keeper, process, level, said, hint) in [
            (
                Keeper::Runs,
                Process::Connected(Some(since)),
                Level::Ok,
                connected.to_owned(),
                None,
            ),
            (
                Keeper::Runs,
                Process::Missing,
                Level::Warning,
                format!("{missing}; {goes_on}"),
                Some("moltis node run"),
            ),
            (
                Keeper::Missing,
                Process::Missing,
                Level::Warning,
                missing.to_owned(),
                Some("moltis node run"),
            ),
            (
                Keeper::Missing,
                Process::Apart(Some("refused".to_owned())),
                Level::Error,
                apart.to_owned(),
                Some(elsewhere),
            ),
        ] {
            seen.node = held_by(keeper, process);
            let message = format!("{this}, {said}; {none}");
            says(gateway(&seen), level, &message, hint);
        }
        seen.node = held_by(Keeper::Missing, Process::Connected(None));
        let found = gateway(&seen).of("x");
        assert_eq!(found.level, Level::Warning);
        assert!(found.message.contains("has no keeper"), "{found:?}");
        seen.node = NodeFacts::Broken(told("node.json: line 3"));
        says(gateway(&seen), Level::Ok, none, None);
        let code = "7Q4M".to_owned();
        for process in [
            Process::Waiting { code },
            Process::Apart(None),
            Process::Unknown(told("locked")),
        ] {
            seen.node = joined_to(process);
            assert_eq!(gateway(&seen).of("x").level, Level::Warning);
        }
    }

    #[test]
    fn a_machine_that_is_both_tells_of_both() {
        let mut seen = facts();
        seen.node = joined_to(Process::Connected(None));
        let both = "the gateway here answers; this machine is a node of ws://gw/ws, connected; its keeper runs";
        says(gateway(&seen), Level::Ok, both, None);
        seen.gateway = GatewayFacts::Silent(told("no"));
        says(gateway(&seen), Level::Error, "no", Some("do this"));
        seen.node = joined_to(Process::Apart(Some("refused".to_owned())));
        let found = gateway(&seen).of("x");
        assert!(found.message.starts_with("no; this machine"), "{found:?}");
    }

    fn running() -> ServiceFacts {
        ServiceFacts {
            name: "moltis-node.service".to_owned(),
            is_node: true,
            start: "systemctl --user start moltis-node.service".to_owned(),
            state: ServiceState::Running,
            enabled: true,
            missing_program: None,
            is_outdated: false,
            is_edited: false,
            restarts: 9,
            install: "moltis node add".to_owned(),
            logs: "moltis node logs",
        }
    }

    #[test]
    fn services_are_told_as_they_stand() {
        let because = Some("exit code 1".to_owned());
        let of = |state| ServiceFacts { state, ..running() };
        let stopped = |because| of(ServiceState::Stopped { because });
        let starting = |because| of(ServiceState::Starting { because });
        let edited = ServiceFacts {
            is_edited: true,
            ..running()
        };
        let disabled = ServiceFacts {
            enabled: false,
            ..running()
        };
        let outdated = ServiceFacts {
            is_outdated: true,
            ..running()
        };
        let once = ServiceFacts {
            restarts: 1,
            ..starting(because.clone())
        };
        let moved = ServiceFacts {
            missing_program: Some("/old/moltis".to_owned()),
            ..stopped(None)
        };
        for (service_facts, level, message, hint) in [
            (running(), Level::Ok, "runs", ""),
            (edited, Level::Ok, "changed by hand", ""),
            (stopped(None), Level::Warning, "does not run", "start"),
            (
                stopped(because.clone()),
                Level::Error,
                "run: exit code 1",
                "logs",
            ),
            (starting(None), Level::Warning, "just starting", "again"),
            (
                once,
                Level::Warning,
                "has just ended and starts again: exit",
                "again",
            ),
            (
                starting(because),
                Level::Error,
                "again and again: exit",
                "logs",
            ),
            (
                of(ServiceState::Masked),
                Level::Error,
                "masked",
                "unmask moltis-node",
            ),
            (
                of(ServiceState::Unknown("no bus".to_owned())),
                Level::Warning,
                "no bus",
                "",
            ),
            (disabled, Level::Warning, "the next time", "enable"),
            (outdated, Level::Warning, "changed since", "daemon-reload"),
            (
                moved,
                Level::Error,
                "`/old/moltis`, which is not there",
                "add",
            ),
        ] {
            let installed = vec![service_facts];
            let found = service(&Services {
                installed,
                begin: Begin::AtBoot,
            })
            .of("service");
            assert_eq!(found.level, level, "{found:?}");
            assert!(found.message.contains(message), "{found:?}");
            let found_hint = found.hint.unwrap_or_default();
            assert!(found_hint.contains(hint) && found_hint.is_empty() == hint.is_empty());
        }
    }

    #[test]
    fn two_services_share_a_line_and_none_needs_no_lingering() {
        let mut services = facts().services;
        let none = service(&services).of("service");
        assert!(none.message.contains("nothing is installed"), "{none:?}");
        let unneeded = "not needed: nothing is installed as a service";
        says(lingering(&services), Level::Ok, unneeded, None);
        let gateway = ServiceFacts {
            name: "moltis-gateway.service".to_owned(),
            ..running()
        };
        services.installed = vec![running(), gateway];
        let both = "`moltis-node.service` runs; `moltis-gateway.service` runs";
        says(service(&services), Level::Ok, both, None);
        services.installed[0].state = ServiceState::Masked;
        let found = service(&services).of("service");
        assert!(
            found.message.starts_with("`moltis-node.service` is masked"),
            "{found:?}"
        );
        let message = "services of this user start with the machine";
        says(lingering(&services), Level::Ok, message, None);
        services.begin = Begin::AtLogin { command: None };
        assert_eq!(lingering(&services).of("x").level, Level::Ok);
        let command = ["loginctl", "enable-linger", r"DOM\ada"].map(str::to_owned);
        let command = Some(command.to_vec());
        services.begin = Begin::AtLogin { command };
        let found = lingering(&services).of("x");
        assert_eq!(found.level, Level::Warning);
        assert_eq!(found.hint.unwrap(), r"loginctl enable-linger 'DOM\ada'");
    }

    #[test]
    fn the_worst_of_two_findings_stays_and_two_as_bad_are_joined() {
        let of = |level, message: &str, hint: Option<&str>| Finding {
            check: "disk".to_owned(),
            level,
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        };
        let (fine, bad) = (
            of(Level::Ok, "fine", None),
            of(Level::Warning, "bad", Some("a")),
        );
        assert_eq!(joined(fine.clone(), bad.clone()), bad);
        assert_eq!(joined(bad.clone(), fine.clone()), bad);
        assert_eq!(joined(fine.clone(), of(Level::Ok, "also", None)), fine);
        assert_eq!(
            joined(bad, of(Level::Warning, "too", Some("b"))),
            of(Level::Warning, "bad; too", Some("a; b"))
        );
    }
}
