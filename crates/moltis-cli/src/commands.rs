//! One arm per command: which room does it, on which runtime.

mod doctor;
mod exec;
mod gateway;
mod join;
mod keeper;
mod logs;
mod node;
mod nodes;
mod pages;
mod pairing;
mod patience;
mod policy;
mod runs;
mod starter;
mod token;

use std::future::Future;

use anyhow::Context as _;

use crate::api::Client;
use crate::args::node::Node;
use crate::args::{Cli, Command, Gateway, GatewayService, Remote, Word};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::paths::Home;
use crate::settings::Settings;

/// What every command is given.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    settings: Settings,
    output: Output,
}

impl Context {
    fn home(&self) -> Result<Home, Failure> {
        Home::find(&self.settings)
    }

    fn client(&self, remote: &Remote) -> Result<Client, Failure> {
        Client::new(&self.settings, remote, self.output)
    }
}

/// Does what the command line says, prints why when it fails, and returns what to end with.
pub(crate) fn run(cli: Cli, settings: Settings) -> Exit {
    let output = Output::of_process();
    let context = Context { settings, output };
    match dispatch(cli.command, &context) {
        Ok(exit) => exit,
        Err(error) => output.error(&error),
    }
}

fn dispatch(word: Word, context: &Context) -> anyhow::Result<Exit> {
    let command = match word {
        Word::Command(command) => command,
        Word::Keeper(args) => return on_one_thread(keeper::run(context, args)),
    };
    match command {
        Command::Gateway(args) => gateway(args, context),
        Command::Node(command) => node(command, context),
        Command::Runs(command) => on_one_thread(runs::run(context, command)),
        Command::Doctor(args) => on_one_thread(doctor::run(context, args)),
        Command::Completions(args) => pages::completions(context, &args),
        Command::Man(args) => pages::man(context, &args),
        Command::Token(command) => on_one_thread(token::run(context, command)),
    }
}

fn gateway(args: Gateway, context: &Context) -> anyhow::Result<Exit> {
    match args.service {
        None => on_all_cores(gateway::run(context, args.listen)),
        Some(GatewayService::Install(listen)) => {
            on_one_thread(gateway::service::install(context, listen))
        }
        Some(GatewayService::Uninstall(format)) => {
            on_one_thread(gateway::service::uninstall(context, format))
        }
        Some(GatewayService::Status(format)) => {
            on_one_thread(gateway::service::status(context, format))
        }
        Some(GatewayService::Logs(args)) => {
            let path = context.home()?.gateway_log();
            on_one_thread(logs::run(context, path, &args))
        }
        Some(GatewayService::Backup(args)) => on_one_thread(gateway::backup::run(context, args)),
    }
}

fn node(command: Node, context: &Context) -> anyhow::Result<Exit> {
    match command {
        Node::Add(args) => join::add(context, &args),
        Node::Run(_) => on_one_thread(join::run(context)),
        Node::Fingerprint(args) => node::fingerprint(context, &args),
        Node::Status(args) => on_one_thread(node::status(context, args)),
        Node::Logs(args) => {
            let path = context.home()?.node_log();
            on_one_thread(logs::run(context, path, &args))
        }
        Node::Remove(args) => on_one_thread(node::remove(context, args)),
        Node::Policy(args) => policy::run(context, args),
        Node::List(args) => on_one_thread(nodes::list(context, args)),
        Node::Describe(args) => on_one_thread(nodes::describe(context, args)),
        Node::Rename(args) => on_one_thread(nodes::rename(context, args)),
        Node::Label(args) => on_one_thread(nodes::label(context, args)),
        Node::Revoke(args) => on_one_thread(nodes::revoke(context, args)),
        Node::Forget(args) => on_one_thread(nodes::forget(context, args)),
        Node::Pairing(args) => on_one_thread(pairing::window(context, args)),
        Node::Pending(args) => on_one_thread(pairing::pending(context, args)),
        Node::Approve(args) => on_one_thread(pairing::approve(context, args)),
        Node::Reject(args) => on_one_thread(pairing::reject(context, args)),
        Node::Exec(args) => exec::exec(context, *args),
        Node::Shell(args) => on_one_thread(exec::shell(context, args)),
    }
}

/// Runs what only asks a gateway, since one thread starts quickest, and the two halves of a node,
/// which are one task each.
fn on_one_thread(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}

/// Runs what serves others. A core is left to the threads that write: SQLite's and that of the
/// outputs.
fn on_all_cores(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores - 1).max(1))
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}

/// Returns the gateway that this machine is a node of, where it is one.
pub(crate) fn joined_gateway(home: &Home) -> Option<String> {
    node::joined_gateway(home)
}
