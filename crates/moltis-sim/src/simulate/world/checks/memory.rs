//! I14: what is held of output in memory has a bound, however much a child writes and however little of
//! it goes anywhere. Seen from outside: what a keeper has read and nobody else has is in its memory, and
//! what the gateway has received and no file holds is in its.

use std::fs;
use std::path::Path;

use moltis_gateway::api::runs::{Run, State};
use moltis_proto::limits::{
    CHUNK_BYTES_MAX, HEAD_BYTES_MAX, OUTBOX_MEMORY_BYTES, RUN_WINDOW_BYTES,
};

use crate::simulate::model::{Violation, tag_of, violation};
use crate::simulate::world::World;
use crate::simulate::world::link::Linked;
use crate::simulate::world::machine::Machine;

/// What a keeper holds of one stream: its outbox, and what its pipe gave it last.
const KEEPER_HOLDS: u64 = OUTBOX_MEMORY_BYTES + 4 * CHUNK_BYTES_MAX as u64;

/// What the gateway holds of one stream: its beginning, and what waits for the disk.
const GATEWAY_HOLDS: u64 = HEAD_BYTES_MAX as u64 + RUN_WINDOW_BYTES as u64;

/// Runs that are longer may have given up some of their output in a small world.
const KEPT_WHOLE: u64 = 128 * 1024;

impl World {
    /// Looks at one run that goes on.
    pub(in super::super) fn check_memory(&self, run: &Run) -> Result<(), Violation> {
        let Some(tag) = tag_of(run).filter(|_| run.state == State::Running) else {
            return Ok(());
        };
        let known = [run.stdout_bytes, run.stderr_bytes];
        let machines = self.nodes.iter().map(Linked::machine);
        for machine in machines.chain(&self.local) {
            // What a disk in trouble does not take is given up.
            if machine.disk().troubled() == 0
                && let Some(read) = machine.kernel().read_of(tag)
            {
                check_keeper(machine, run, read, known)?;
            }
        }
        let dir = self.served.outputs().join(&run.id);
        let (received, stored) = (known[0] + known[1], bytes_of(&dir, |_| true));
        let is_whole = received <= KEPT_WHOLE && self.served.disk().troubled() == 0;
        if is_whole && received > stored + 2 * GATEWAY_HOLDS {
            return Err(violation!(
                "I14",
                "the gateway has received {received} bytes of {tag}, and files hold {stored}"
            ));
        }
        Ok(())
    }
}

fn check_keeper(
    machine: &Machine,
    run: &Run,
    read: [u64; 2],
    known: [u64; 2],
) -> Result<(), Violation> {
    let read = read[0] + read[1];
    let spooled = bytes_of(machine.runs(), |name| name.starts_with(&run.id));
    let elsewhere = known[0] + known[1] + spooled;
    if read > elsewhere + 2 * KEEPER_HOLDS {
        let id = &run.id;
        return Err(violation!(
            "I14",
            "a keeper has read {read} bytes of {id}, of which {elsewhere} are elsewhere"
        ));
    }
    Ok(())
}

/// Returns the bytes of some files of a directory.
fn bytes_of(dir: &Path, is_meant: impl Fn(&str) -> bool) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let meant = entries.filter(|entry| entry.file_name().to_str().is_some_and(&is_meant));
    meant
        .map(|entry| entry.metadata().map_or(0, |file| file.len()))
        .sum()
}
