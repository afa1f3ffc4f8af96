//! A whole spool that a power cut befalls, on a real file: no output is told that was never written,
//! and what is whole is told.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_node::keeper::fuzzing::spool::{Cut, Step, Story};
use tempfile::TempDir;

/// Where the spool lies: in memory where a machine has room for files there, as nothing is synced.
static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let dir = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir());
    dir.expect("there is room")
});

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut steps = Vec::new();
    for _ in 0..input.below(24) {
        steps.push(match input.short() % 10_000 {
            0 => Step::NoMoreRoom,
            length => Step::Written(length),
        });
    }
    let cut = Cut {
        ends_at: input.flag().then(|| u64::from(input.short()) * 2),
        flipped: input
            .flag()
            .then(|| (u64::from(input.short()) * 2, input.byte())),
        ages: input.rest().to_vec(),
    };
    if let Some(story) = Story::tell(DIR.path(), &steps) {
        story.befall(DIR.path(), &cut);
    }
});
