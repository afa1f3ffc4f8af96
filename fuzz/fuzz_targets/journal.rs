//! A keeper's journal after its death: what was appended before the damage is recovered, nothing behind
//! the last good record is believed, and the next keeper's records are read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_node::keeper::fuzzing::{Damage, Step, journal};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let cut_at = input.flag().then(|| usize::from(input.short()));
    let changed = input.flag().then(|| {
        let at = usize::from(input.short());
        (at, [input.byte(), input.byte(), input.byte(), input.byte()])
    });
    let behind = input.piece(300).to_vec();
    let mut steps = Vec::new();
    while !input.is_empty() && steps.len() < 64 {
        let run = input.byte() >> 2 & 7;
        steps.push(match input.below(4) {
            0 => Step::Accepted(run, input.short() % 600),
            1 => Step::Started(run, input.short().into()),
            2 => Step::Ended(run, input.byte(), input.number()),
            _ => Step::Forgotten(run),
        });
    }
    journal(
        &steps,
        &Damage {
            cut_at,
            changed,
            behind,
        },
    );
});
