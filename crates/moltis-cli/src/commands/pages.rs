//! `moltis completions` and `moltis man`: both come from the commands as they are parsed.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man as Page;
use clap_mangen::roff::{Roff, roman};
use serde::Serialize;

use super::Context;
use crate::args;
use crate::args::pages::{Completions, Man};
use crate::exit::Exit;
use crate::failure::{Failure, OrFail as _};

/// `moltis completions`.
pub(super) fn completions(context: &Context, asked: &Completions) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(asked.shell, &mut args::typed(), "moltis", &mut script);
    context.output.text(String::from_utf8(script)?.trim_end())?;
    Ok(Exit::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Written<'a> {
    dir: &'a Path,
    pages: Vec<String>,
}

/// `moltis man`.
pub(super) fn man(context: &Context, asked: &Man) -> anyhow::Result<Exit> {
    fs::create_dir_all(&asked.dir)
        .or_fail(|| format!("cannot make the directory `{}`", asked.dir.display()))?;
    let mut commands = args::typed().disable_help_subcommand(true);
    commands.build();
    let mut pages = Vec::new();
    write(&commands, &asked.dir, &mut pages)?;
    pages.sort_unstable();
    if asked.format.json {
        let dir = &asked.dir;
        context.output.json(&Written { dir, pages })?;
    } else {
        let (count, dir) = (pages.len(), asked.dir.display());
        context
            .output
            .note(&format!("wrote {count} pages into `{dir}`"));
    }
    Ok(Exit::SUCCESS)
}

/// Writes a page for a command and for each one below it.
fn write(command: &Command, dir: &Path, pages: &mut Vec<String>) -> Result<(), Failure> {
    for below in command.get_subcommands() {
        write(below, dir, pages)?;
    }
    let page = Page::new(command.clone())
        .manual("Moltis")
        .source(concat!("moltis ", env!("CARGO_PKG_VERSION")));
    let name = page.get_filename();
    let path: PathBuf = dir.join(&name);
    let mut text = Vec::new();
    render(command, &page, &mut text)
        .and_then(|()| fs::write(&path, text))
        .or_fail(|| format!("cannot write `{}`", path.display()))?;
    pages.push(name);
    Ok(())
}

/// Writes one page. What stands below the options in the help becomes sections of its own.
fn render(command: &Command, page: &Page, text: &mut Vec<u8>) -> std::io::Result<()> {
    page.render_title(text)?;
    page.render_name_section(text)?;
    page.render_synopsis_section(text)?;
    page.render_description_section(text)?;
    page.render_options_section(text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(text)?;
    }
    let below = command.get_after_help().map(ToString::to_string);
    sections(&below.unwrap_or_default()).to_writer(text)
}

/// Makes sections of lines as they are: one for each line that is a word and a colon.
fn sections(text: &str) -> Roff {
    let mut roff = Roff::new();
    let mut is_kept = false;
    for line in text.lines() {
        let is_text = !line.starts_with(' ');
        if let Some(heading) = line.strip_suffix(':').filter(|word| !word.contains(' ')) {
            if is_kept {
                roff.control("fi", []);
            }
            roff.control("SH", [&*heading.to_uppercase()]);
            roff.control("nf", []);
            is_kept = true;
        } else {
            if is_kept && is_text && !line.is_empty() {
                roff.control("fi", []);
                is_kept = false;
            }
            roff.text([roman(line)]);
        }
    }
    if is_kept {
        roff.control("fi", []);
    }
    roff
}
