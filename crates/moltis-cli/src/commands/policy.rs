//! The owner's word on what may run on this machine: `policy` in node.json. The keeper reads it
//! before each start; a gateway cannot change it.

use std::ffi::OsString;

use moltis_node::config::{ConfigFile, Policy as Rule};
use moltis_proto::handshake::PolicyMode;
use serde::Serialize;

use super::Context;
use super::node::config_failure;
use crate::args::Format;
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
    let (word, format) = match args.policy {
        None => (Word::Show, Format::default()),
        Some(Policy::Show(format)) => (Word::Show, format),
        Some(Policy::Full(format)) => (Word::Mode(PolicyMode::Full), format),
        Some(Policy::Off(format)) => (Word::Mode(PolicyMode::Off), format),
        Some(Policy::AllowList(format)) => (Word::Mode(PolicyMode::AllowList), format),
        Some(Policy::Allow(allow)) => {
            let format = allow.format;
            (Word::Allow(words_of(allow)?), format)
        }
    };
    let is_shown = matches!(word, Word::Show);
    let policy = &mut config.policy;
    match word {
        Word::Show => {}
        Word::Mode(mode) => policy.mode = mode,
        Word::Allow(argv) if policy.allow.contains(&argv) => {}
        Word::Allow(argv) => policy.allow.push(argv),
    }
    if !is_shown {
        home.prepare()?;
        file.save(&config).map_err(config_failure)?;
    }
    let (output, policy) = (context.output, &config.policy);
    if args.format.json || format.json {
        output.json(&Document {
            mode: mode(policy.mode),
            allow: &policy.allow,
        })?;
    } else if is_shown {
        output.text(&words(policy))?;
    } else {
        output.note(&format!("may run here: {}", words(policy)));
        if policy.mode != PolicyMode::AllowList && !policy.allow.is_empty() {
            output.hint("the list counts with: moltis node policy allow-list");
        }
    }
    Ok(Exit::SUCCESS)
}

/// What is asked of the policy.
enum Word {
    Show,
    Mode(PolicyMode),
    Allow(Vec<String>),
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
