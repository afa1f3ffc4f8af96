//! `moltis node exec` and `moltis node shell`: from the words of a command line to a run, its
//! output and its exit code.
//!
//! Here a request is made and sent; [`follow`] stays with the run until it is over. One command on
//! many nodes is [`fleet`]'s.

pub(super) mod away;
mod cancel;
mod collect;
mod ending;
mod fleet;
pub(super) mod follow;
mod once;
pub(super) mod reader;
mod stdin;
pub(super) mod stops;

use std::ffi::OsString;

use moltis_gateway::api::runs::{Run, StartRun, Tty};
use moltis_proto::limits::START_BYTES_MAX;
use serde::Serialize;

use super::patience::Patience;
use super::{Context, on_one_thread};
use crate::api::Client;
use crate::args::node::{Exec, ExecHow, Shell};
use crate::exit::Exit;
use crate::failure::{Failure, failure, usage};
use crate::terminal;

use self::follow::{Followed, Input, Mode};
use self::once::{Key, once};
use self::stops::Stops;

/// `moltis node exec`.
pub(super) fn exec(context: &Context, args: Exec) -> anyhow::Result<Exit> {
    let json = args.format.json;
    let client = context.client(&args.remote)?;
    if args.many.dry_run {
        return on_one_thread(fleet::dry_run(context, &client, args.many, json));
    }
    let command = command(args.shell, args.argv)?;
    let mut request = request(context, args.node, command, args.how)?;
    if let Some(select) = args.many.select.clone() {
        fleet::take_stdin(&mut request)?;
        if args.detach {
            return on_one_thread(fleet::detach(context, &client, request, &select, json));
        }
        return on_one_thread(fleet::run(context, client, request, args.many, json));
    }
    if args.detach {
        on_one_thread(detach(context, &client, &request, json))
    } else {
        on_one_thread(start_and_follow(context, client, &request, json))
    }
}

/// `moltis node shell`.
pub(super) async fn shell(context: &Context, args: Shell) -> anyhow::Result<Exit> {
    if !context.output.stdin_is_terminal() || !context.output.stdout_is_terminal() {
        return Err(
            usage("a shell needs a terminal, and stdin or stdout is none")
                .hint("for a script: moltis node exec <node> --stdin -- sh")
                .into(),
        );
    }
    let request = StartRun {
        node: Some(args.node),
        command: Some("exec \"$SHELL\" -l".to_owned()),
        tty: Some(tty(context)),
        ..StartRun::default()
    };
    let client = context.client(&args.remote)?;
    start_and_follow(context, client, &request, false).await
}

async fn detach(
    context: &Context,
    client: &Client,
    request: &StartRun,
    json: bool,
) -> anyhow::Result<Exit> {
    let patience = Some(Patience::new(context, client));
    // The answer comes when the run is on the gateway's disk.
    let key = Key::new();
    let again = async |error: &_| once::note_another_attempt(context, error);
    let send = async |key: &str| client.send_once("runs", request, key).await;
    let run: Run = once(&key, patience, again, send)
        .await
        .map_err(|error| error.into_failure(key.run_at(client).as_deref()))?;
    if json {
        context.output.json(&Detached {
            run_id: &run.id,
            run: &run,
        })?;
    } else {
        context.output.text(&run.id)?;
    }
    Ok(Exit::SUCCESS)
}

/// What `--detach --json` prints: the run, and its id under the name that `exec --json` gives it.
#[derive(Debug, Serialize)]
struct Detached<'a> {
    run_id: &'a str,
    #[serde(flatten)]
    run: &'a Run,
}

async fn start_and_follow(
    context: &Context,
    client: Client,
    request: &StartRun,
    json: bool,
) -> anyhow::Result<Exit> {
    let mut stops = Stops::new()?;
    let mut stopped_by = None;
    let key = Key::new();
    let run = key.run_at(&client);
    let (run_id, pieces) = {
        let start = async |key: &str| client.start_and_follow(request, key).await;
        let again = async |error: &_| once::note_another_attempt(context, error);
        let starting = once(&key, Some(Patience::new(context, &client)), again, start);
        let mut starting = std::pin::pin!(starting);
        loop {
            tokio::select! {
                biased;
                started = &mut starting => {
                    break started.map_err(|error| error.into_failure(run.as_deref()))?;
                }
                signal = stops.next() => {
                    if stopped_by.is_some() {
                        return Err(failure("left before the gateway answered")
                            .hint(match run {
                                Some(run) => format!("the command may have been started: moltis runs show {run}"),
                                None => "the command may have been started: moltis runs list".to_owned(),
                            })
                            .exit(Exit::CANCELLED)
                            .into());
                    }
                    stopped_by = Some(signal);
                    context.output.note("cancelling; once more leaves at once");
                }
            }
        }
    };
    let followed = Followed {
        run_id,
        tty: request.tty.is_some(),
        pieces: Some(pieces),
        stopped_by,
    };
    let mode = Mode {
        json,
        input: input(context, request),
    };
    follow::to_its_end(context, client, followed, mode, stops).await
}

enum Words {
    Argv(Vec<String>),
    Line(String),
}

fn command(shell: Option<OsString>, argv: Vec<OsString>) -> Result<Words, Failure> {
    let words = if let Some(line) = shell {
        Words::Line(text(line, "the line after --shell")?)
    } else {
        let argv: Result<Vec<_>, _> = argv
            .into_iter()
            .enumerate()
            .map(|(at, word)| text(word, &format!("argument {} after `--`", at + 1)))
            .collect();
        Words::Argv(argv?)
    };
    let bytes = match &words {
        Words::Line(line) if line.trim().is_empty() => return Err(nothing()),
        Words::Argv(argv) if argv.first().is_none_or(String::is_empty) => return Err(nothing()),
        Words::Line(line) => line.len(),
        Words::Argv(argv) => argv.iter().map(|word| word.len() + 1).sum(),
    };
    if bytes > START_BYTES_MAX {
        return Err(usage(format!(
            "the command has {bytes} bytes: at most {START_BYTES_MAX} fit into one request"
        ))
        .hint(
            "send long data through stdin: moltis node exec <node> --stdin -- <command> < file",
        ));
    }
    Ok(words)
}

fn nothing() -> Failure {
    usage("there is nothing to run: expected a program after `--`, or --shell with a line")
        .hint("moltis node exec <node> -- uname -a")
}

fn text(word: OsString, what: &str) -> Result<String, Failure> {
    word.into_string().map_err(|word| {
        usage(format!("{what} is not UTF-8: `{}`", word.display()))
            .hint("bytes that are not text go through stdin: --stdin")
    })
}

fn request(
    context: &Context,
    node: Option<String>,
    words: Words,
    how: ExecHow,
) -> Result<StartRun, Failure> {
    let cwd = how
        .cwd
        .map(|dir| text(dir, "the directory after --cwd"))
        .transpose()?;
    if let Some(dir) = &cwd
        && !dir.starts_with('/')
    {
        return Err(usage(format!(
            "--cwd is `{dir}`: expected an absolute path on the node, one that begins with `/`"
        )));
    }
    let (argv, command) = match words {
        Words::Argv(argv) => (Some(argv), None),
        Words::Line(line) => (None, Some(line)),
    };
    let tty = how.tty.then(|| tty(context));
    Ok(StartRun {
        node,
        argv,
        command,
        cwd,
        env: how.env.into_iter().collect(),
        timeout_seconds: how.timeout,
        // A terminal has its own way in; without one of ours, --stdin feeds it.
        stdin_open: how.stdin,
        tty,
        ..StartRun::default()
    })
}

/// The terminal that the command is given: like ours, where we have one.
fn tty(context: &Context) -> Tty {
    let (cols, rows) = terminal::size().unwrap_or((80, 24));
    let term = context.settings.term.clone().filter(|term| {
        term.len() <= 64
            && term
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b))
    });
    Tty { cols, rows, term }
}

fn input(context: &Context, request: &StartRun) -> Input {
    match &request.tty {
        Some(_) if context.output.stdin_is_terminal() => Input::Terminal,
        _ if request.stdin_open => Input::Pipe,
        Some(_) => Input::Closed,
        None => Input::None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    fn said(shell: Option<&str>, argv: &[&str]) -> String {
        let argv = argv.iter().map(OsString::from).collect();
        match command(shell.map(OsString::from), argv) {
            Ok(_) => String::new(),
            Err(failure) => failure.to_string(),
        }
    }

    #[test]
    fn a_command_has_words_and_not_too_many() {
        assert_eq!(said(None, &["true"]), "");
        assert_eq!(said(None, &["cat", ""]), "");
        assert_eq!(said(Some("true"), &[]), "");
        assert!(said(None, &[]).contains("nothing to run"));
        assert!(said(None, &[""]).contains("nothing to run"));
        assert!(said(Some("  "), &[]).contains("nothing to run"));
        let long = "x".repeat(2 * 1024 * 1024);
        let said = said(None, &["echo", &long]);
        assert!(
            said.contains("the command has 2097158 bytes: at most 65519"),
            "{said}"
        );
    }

    #[test]
    fn a_word_that_is_not_text_is_named_by_its_place() {
        let bad = OsString::from_vec(vec![b'a', 0xff]);
        let failure = command(None, vec!["cat".into(), bad]).err().unwrap();
        assert!(
            failure
                .to_string()
                .starts_with("argument 2 after `--` is not UTF-8"),
            "{failure}"
        );
    }
}
