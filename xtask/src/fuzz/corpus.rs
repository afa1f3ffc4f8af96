//! What a target begins with: inputs that together reach all that was ever reached, in the repository
//! (`fuzz/corpus`), and whatever else was found interesting, in `target/fuzz-corpus`.
//!
//! `cargo xtask fuzz --keep` chooses the former from both.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use super::Targets;
use crate::workspace::{self, ROOT};
use crate::{process, say};

/// Files of a target that are kept, at the most, and their bytes: eighteen targets stay near 200 kB.
const FILES_MAX: usize = 128;
const BYTES_MAX: usize = 12 * 1024;

/// What a file costs beside its bytes.
const FILE_BYTES: usize = 256;

/// How long it may take to run every input once.
const MERGE: Duration = Duration::from_mins(10);

/// An input, and what it reaches.
#[derive(Debug, Default)]
struct Input {
    path: PathBuf,
    bytes: usize,
    /// Edges, and how often each is taken.
    features: Vec<u32>,
    edges: Vec<u32>,
}

/// Where inputs are put that a run found interesting.
pub(super) fn grown(name: &str) -> PathBuf {
    workspace::target().join("fuzz-corpus").join(name)
}

/// Where the inputs of the repository are, if there are any.
pub(super) fn committed(name: &str) -> Option<PathBuf> {
    let path = ROOT.join("fuzz/corpus").join(name);
    path.is_dir().then_some(path)
}

/// Returns the files of a folder, sorted; none where there is no folder.
pub(super) fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut files = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

/// Chooses the inputs of the repository anew.
pub(super) fn keep(targets: &Targets, name: &str) -> anyhow::Result<()> {
    let control = workspace::target().join(format!("fuzz-{name}.merge"));
    let nowhere = workspace::target().join("fuzz-merged").join(name);
    for old in [&control, &nowhere] {
        fs::remove_file(old)
            .or_else(|_| fs::remove_dir_all(old))
            .ok(); // most often there is none
    }
    fs::create_dir_all(&nowhere)?;
    let mut merge = targets.command(name);
    merge.args(["-set_cover_merge=1", "-max_len=4096"]);
    merge.arg(format!("-merge_control_file={}", control.display()));
    merge.arg(&nowhere);
    merge.args(committed(name));
    merge.args(Some(grown(name)).filter(|path| path.is_dir()));
    let output = process::output(&mut merge, MERGE)?;
    let words = fs::read_to_string(&control)
        .with_context(|| format!("no input of `{name}` was tried:\n{}", output.stderr))?;
    let chosen = choose(read(&words));
    let inputs = chosen.iter().map(|input| {
        let bytes = fs::read(&input.path);
        bytes.with_context(|| format!("reading {}", input.path.display()))
    });
    let inputs = inputs.collect::<anyhow::Result<Vec<_>>>()?;
    let home = ROOT.join("fuzz/corpus").join(name);
    fs::remove_dir_all(&home).ok(); // the first time there is none
    fs::create_dir_all(&home)?;
    for (number, bytes) in inputs.iter().enumerate() {
        fs::write(home.join(format!("{number:03}")), bytes)?;
    }
    let bytes: usize = inputs.iter().map(Vec::len).sum();
    say::line(&format!(
        "  {name:<12}{:>4} inputs, {bytes:>6} bytes",
        inputs.len()
    ));
    Ok(())
}

/// Reads what libFuzzer notes while it merges: the files, then for each what it reaches.
fn read(words: &str) -> Vec<Input> {
    let mut lines = words.lines();
    let count = lines.next().and_then(|line| line.parse().ok()).unwrap_or(0);
    lines.next(); // how many of them are in the first folder
    let paths = lines.by_ref().take(count);
    let mut inputs: Vec<_> = paths
        .map(|path| Input {
            path: PathBuf::from(path),
            ..Input::default()
        })
        .collect();
    for line in lines {
        let mut words = line.split(' ');
        let (kind, number) = (words.next().unwrap_or_default(), words.next());
        let Some(input) = number
            .and_then(|number| number.parse::<usize>().ok())
            .and_then(|number| inputs.get_mut(number))
        else {
            continue;
        };
        let mut numbers = words.filter_map(|word| word.parse::<u32>().ok());
        match kind {
            "STARTED" => input.bytes = numbers.next().unwrap_or(0) as usize,
            "FT" => input.features = numbers.collect(),
            "COV" => input.edges = numbers.collect(),
            _ => {}
        }
    }
    inputs
}

/// Chooses inputs that reach most for their length: first of those that reach an edge which none
/// before them does, then of all, as far as there is room.
fn choose(mut inputs: Vec<Input>) -> Vec<Input> {
    let (mut chosen, mut reached, mut bytes) = (Vec::new(), HashSet::new(), 0);
    for by_edges in [true, false] {
        while chosen.len() < FILES_MAX {
            let worth = |input: &Input| {
                let features = input.features.iter();
                let fresh = features.filter(|one| !reached.contains(*one)).count();
                let counts = !by_edges || !input.edges.is_empty();
                let fits = bytes + input.bytes <= BYTES_MAX;
                // In thousandths, so that a few bytes do not make two inputs the same.
                let worth = fresh * 1000 * FILE_BYTES / (FILE_BYTES + input.bytes);
                if counts && fits { worth } else { 0 }
            };
            let worths = inputs.iter().map(worth).enumerate();
            let Some((best, _)) = worths
                .filter(|(_, worth)| *worth > 0)
                .max_by_key(|(_, worth)| *worth)
            else {
                break;
            };
            let input = inputs.swap_remove(best);
            bytes += input.bytes;
            reached.extend(input.features.iter().copied());
            chosen.push(input);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTES: &str = "3\n0\n/a\n/b\n/c\nSTARTED 0 9\nFT 0 1 2\nCOV 0 7\nSTARTED 1 5\n\
        FT 1 1 2 3\nCOV 1 8\nSTARTED 2 4\nFT 2 3\n";

    #[test]
    fn the_inputs_that_reach_most_are_chosen() {
        let inputs = read(NOTES);
        assert_eq!(inputs[1].features, [1, 2, 3]);
        assert_eq!((inputs[1].bytes, inputs[2].edges.len()), (5, 0));
        let paths: Vec<_> = choose(inputs).into_iter().map(|input| input.path).collect();
        assert_eq!(paths, [PathBuf::from("/b")]);
    }

    #[test]
    fn what_has_no_room_takes_nothing_from_those_that_have() {
        let input = |name: &str, bytes, features: &[u32]| Input {
            path: PathBuf::from(name),
            bytes,
            features: features.to_vec(),
            edges: features.to_vec(),
        };
        let inputs = vec![
            input("huge", BYTES_MAX + 1, &[1, 2, 3]),
            input("long", 1_000, &[1, 2]),
            input("short", 10, &[1]),
        ];
        let paths: Vec<_> = choose(inputs).into_iter().map(|input| input.path).collect();
        assert_eq!(paths, [PathBuf::from("short"), PathBuf::from("long")]);
    }
}
