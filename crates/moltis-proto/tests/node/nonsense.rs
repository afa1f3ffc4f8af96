//! The runs of a node, when everybody around them does whatever comes to mind.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use moltis_proto::key::Digest;
use moltis_proto::node::Action;
use moltis_proto::run::{ExitStatus, RunSpec, StdinMode, Stream};
use moltis_proto::{Codec, FromKeeper, Payload, RunId, ToKeeper};
use proptest::prelude::*;

use super::{Stage, WINDOWS, id, spec};

/// Anything that a gateway, a child or a clock may do, in any order.
#[derive(Debug, Clone)]
enum Step {
    Attach,
    Detach,
    Hear(u8, u8, u64),
    Started(u8),
    NotStarted(u8),
    Read(u8, bool, u8),
    Written(u8, u8),
    StdinClosed(u8),
    Exited(u8),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let run = || 0..4_u8;
    let step = prop_oneof![
        1 => Just(Step::Attach),
        1 => Just(Step::Detach),
        9 => (0..9_u8, run(), 0..600_u64).prop_map(|(kind, run, number)| Step::Hear(kind, run, number)),
        4 => run().prop_map(Step::Started),
        1 => run().prop_map(Step::NotStarted),
        6 => (run(), any::<bool>(), any::<u8>()).prop_map(|(run, err, length)| Step::Read(run, err, length)),
        2 => (run(), any::<u8>()).prop_map(|(run, length)| Step::Written(run, length)),
        1 => run().prop_map(Step::StdinClosed),
        2 => run().prop_map(Step::Exited),
        2 => (0..3_000_u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..300)
}

fn message(kind: u8, run: u8, number: u64) -> ToKeeper {
    let run_id = id(run);
    let odd = number % 2 == 1;
    match kind {
        0 | 1 => ToKeeper::Start {
            run_id,
            digest: Digest::from_bytes([run; 32]),
            spec: Box::new(RunSpec {
                stdin: if odd {
                    StdinMode::Open
                } else {
                    StdinMode::Empty
                },
                timeout_ms: odd.then_some(number),
                ..spec()
            }),
        },
        2 => ToKeeper::Resume {
            run_id,
            stdout: number,
            stderr: 0,
        },
        3 => ToKeeper::Ack {
            run_id,
            stdout: number,
            stderr: number / 2,
        },
        4 => ToKeeper::Stdin {
            run_id,
            offset: number / 8,
            bytes: Payload::from(&[b'x'; 10][..]),
            eof: odd,
        },
        5 => ToKeeper::Signal {
            run_id,
            signal: i32::try_from(number).unwrap() - 5,
        },
        6 => ToKeeper::Cancel {
            run_id,
            grace_ms: number,
        },
        7 => ToKeeper::Forget { run_id },
        _ => ToKeeper::Resume {
            run_id,
            stdout: 0,
            stderr: 0,
        },
    }
}

proptest! {
    #[test]
    fn nonsense_neither_panics_nor_breaks_the_order_of_things(steps in steps()) {
        let mut stage = Stage::new(Vec::new());
        let mut started = HashSet::new();
        // What comes next of each stream, where it is known.
        let mut next: HashMap<(RunId, Stream), u64> = HashMap::new();
        let mut told = HashSet::new();
        for step in steps {
            match step {
                Step::Attach => {
                    stage.runs.handle_attached(WINDOWS, Codec::Postcard, stage.now);
                    next.clear();
                    told.clear();
                }
                Step::Detach => stage.runs.handle_detached(stage.now),
                Step::Hear(kind, run, number) => {
                    let heard = message(kind, run, number);
                    if stage.runs.handle_message(heard.clone(), stage.now).is_err() {
                        stage.runs.handle_detached(stage.now);
                        continue;
                    }
                    match heard {
                        ToKeeper::Resume { run_id, .. } => {
                            next.retain(|(id, _), _| *id != run_id);
                            told.remove(&run_id);
                        }
                        // What is stored already is not sent again, also behind a resume.
                        ToKeeper::Ack { run_id, stdout, stderr } => {
                            for (stream, stored) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
                                next.entry((run_id, stream)).and_modify(|next| *next = stored.max(*next));
                            }
                        }
                        _ => {}
                    }
                }
                Step::Started(run) => stage.runs.handle_started(id(run), 7, stage.now),
                Step::NotStarted(run) => stage.runs.handle_not_started(id(run), None, String::new()),
                Step::Read(run, err, length) => {
                    let bytes = Bytes::from(vec![b'o'; length.into()]);
                    let stream = Stream::BOTH[usize::from(err)];
                    stage.runs.handle_read(id(run), stream, bytes, stage.now);
                }
                Step::Written(run, length) => stage.runs.handle_written(id(run), length.into()),
                Step::StdinClosed(run) => stage.runs.handle_stdin_closed(id(run)),
                Step::Exited(run) => stage.exit(run, ExitStatus::Code(0)),
                Step::Wait(ms) => stage.wait(Duration::from_millis(ms)),
            }
            for action in stage.actions() {
                if let Action::Start(run_id, ..) = action {
                    prop_assert!(started.insert(run_id), "{run_id} is started twice");
                }
            }
            for said in stage.said() {
                let run_id = said.run_id();
                match said {
                    FromKeeper::Output { run_id, stream, offset, bytes } => {
                        let to = offset + bytes.0.len() as u64;
                        prop_assert!((1..=50).contains(&bytes.0.len()));
                        let from = next.insert((run_id, stream), to).unwrap_or(offset);
                        prop_assert_eq!(from, offset);
                    }
                    FromKeeper::Gap { run_id, stream, from, to, .. } => {
                        prop_assert!(from < to);
                        let expected = next.insert((run_id, stream), to).unwrap_or(from);
                        prop_assert_eq!(expected, from);
                    }
                    FromKeeper::Ended { run_id, .. } => {
                        prop_assert!(told.insert(run_id), "two endings without a resume");
                        continue;
                    }
                    _ => continue,
                }
                prop_assert!(!run_id.is_some_and(|id| told.contains(&id)), "output behind an ending");
            }
        }
    }
}
