//! `moltis completions` and `moltis man`: what is made from these very commands.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::Format;

/// Print what a shell needs to complete our commands
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis completions bash > ~/.local/share/bash-completion/completions/moltis
  moltis completions zsh > ~/.zfunc/_moltis
  moltis completions fish > ~/.config/fish/completions/moltis.fish

zsh looks in ~/.zfunc when ~/.zshrc has, before compinit: fpath+=~/.zfunc")]
pub(crate) struct Completions {
    /// Which shell
    pub(crate) shell: Shell,
}

/// Write the manual pages into a directory
///
/// One page for each command. The directory is made where it is missing; pages that are there
/// already are written anew.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis man ~/.local/share/man/man1
  man moltis-node-exec")]
pub(crate) struct Man {
    /// Where to write them
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) format: Format,
}
