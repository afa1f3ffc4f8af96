//! The owner's word on what may run on this machine: `policy` in node.json. The keeper reads it
//! before each start; a gateway cannot change it.

use std::ffi::OsString;

use moltis_node::config::{ConfigFile, Policy as Rule};
use moltis_proto::handshake::PolicyMode;
use serde::Serialize;

use super::Context;
use super::node::config_failure;
use crate::args::node::{Policy, PolicyAllow, PolicyCommand};
use crate::exit::Exit;
use crate::failure::usage;

#[derive(Debug, Serialize)]
struct Document<'a> {
    mode: &'static str,
    allow: &'a [Vec<String>],
}

/// `moltis node policy …`.
pub(super) fn run(context: &Context, args: PolicyCommand) -> anyhow::Result<Exit> {
    let home = context.home()?;
    let file = ConfigFile::new(home.node_config());
    let mut config = file.load().map_err(config_failure)?;
    let json = match args.policy {
        None => Some(args.format.json),
        Some(Policy::Show(format)) => Some(format.json || args.format.json),
        Some(Policy::Full) => {
            config.policy.mode = PolicyMode::Full;
            None
        }
        Some(Policy::Off) => {
            config.policy.mode = PolicyMode::Off;
            None
        }
        Some(Policy::AllowList) => {
            config.policy.mode = PolicyMode::AllowList;
            None
        }
        Some(Policy::Allow(allow)) => {
            let argv = words_of(allow)?;
            if !config.policy.allow.contains(&argv) {
                config.policy.allow.push(argv);
            }
            None
        }
    };
    let output = context.output;
    match json {
        Some(true) => output.json(&Document {
            mode: mode(config.policy.mode),
            allow: &config.policy.allow,
        })?,
        Some(false) => output.text(&words(&config.policy))?,
        None => {
            home.prepare()?;
            file.save(&config).map_err(config_failure)?;
            output.note(&format!("may run here: {}", words(&config.policy)));
            if config.policy.mode != PolicyMode::AllowList && !config.policy.allow.is_empty() {
                output.hint("the list counts with: moltis node policy allow-list");
            }
        }
    }
    Ok(Exit::SUCCESS)
}

fn words_of(allow: PolicyAllow) -> anyhow::Result<Vec<String>> {
    let argv: Result<Vec<_>, OsString> =
        allow.argv.into_iter().map(OsString::into_string).collect();
    let argv = argv.map_err(|word| usage(format!("`{}` is not UTF-8", word.display())))?;
    if argv
        .first()
        .is_none_or(|program| program.is_empty() || program == "...")
    {
        return Err(usage("there is no program to allow")
            .hint("moltis node policy allow -- /usr/bin/uptime")
            .into());
    }
    let program = &argv[0];
    if program.contains('/') && !program.starts_with('/') {
        return Err(usage(format!(
            "`{}` is a path from where you are, and a command starts elsewhere",
            crate::visible::inline(program)
        ))
        .hint("its absolute path, one that begins with `/`")
        .into());
    }
    Ok(argv)
}

fn mode(mode: PolicyMode) -> &'static str {
    match mode {
        PolicyMode::Full => "full",
        PolicyMode::Off => "off",
        PolicyMode::AllowList => "allow-list",
    }
}

/// Returns the policy in words: its mode, and the list where it counts.
pub(super) fn words(policy: &Rule) -> String {
    match policy.mode {
        PolicyMode::Full => "full: everything may run".to_owned(),
        PolicyMode::Off => "off: nothing may run".to_owned(),
        PolicyMode::AllowList if policy.allow.is_empty() => {
            "allow-list: nothing is on it, so nothing may run".to_owned()
        }
        PolicyMode::AllowList => {
            let lines: Vec<_> = policy.allow.iter().map(|argv| argv.join(" ")).collect();
            format!("allow-list:\n{}", lines.join("\n"))
        }
    }
}
