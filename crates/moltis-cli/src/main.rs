//! The binary `moltis`: gateway, node and administration from one command line.
//!
//! Parse, run, exit code. What the words mean stands in [`args`], what they do in [`commands`].

mod account;
mod api;
mod args;
mod commands;
mod config_file;
mod exit;
mod failure;
mod logging;
mod notify;
mod open_files;
mod output;
mod paths;
mod program;
mod service;
mod settings;
mod signals;
mod terminal;
mod units;
mod visible;

fn main() -> std::process::ExitCode {
    let settings = settings::Settings::from_process();
    commands::run(args::parse(), settings).into()
}
