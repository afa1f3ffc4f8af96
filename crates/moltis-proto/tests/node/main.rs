//! The runs of a node without a process: a test is the gateway and the child in one.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod nonsense;

use std::time::{Duration, Instant};

use bytes::Bytes;
use moltis_proto::key::Digest;
use moltis_proto::limits::DRAIN;
use moltis_proto::message::Windows;
use moltis_proto::node::{Action, Record, Runs, RunsConfig, RunsError, ToChild};
use moltis_proto::run::{
    Command, Ending, ExitStatus, GapReason, Outcome, Reason, RunSpec, RunState, StdinMode, Stream,
};
use moltis_proto::{BootId, Codec, FromKeeper, JournalId, Payload, RunId, RunRefusal, ToKeeper};

const WINDOWS: Windows = Windows {
    run_bytes: 200,
    connection_bytes: 1_000,
    stdin_bytes: 100,
    chunk_bytes_max: 50,
};
const SIGTERM: ToChild = ToChild::Signal(15);
const SIGKILL: ToChild = ToChild::Signal(9);

struct Stage {
    runs: Runs,
    now: Instant,
}

impl Stage {
    fn new(records: Vec<Record>) -> Self {
        let config = RunsConfig {
            boot_id: BootId::from_bytes([1; 16]),
            journal_id: JournalId::from_bytes([2; 16]),
            runs_max: 3,
            memory_bytes: 400,
            env_allow: Vec::new(),
        };
        #[expect(clippy::disallowed_methods, reason = "an origin to count from")]
        let now = Instant::now();
        let runs = Runs::new(config, records);
        Self { runs, now }
    }

    /// A stage whose gateway has heard the list of runs.
    fn attached(records: Vec<Record>) -> Self {
        let mut stage = Self::new(records);
        stage.attach();
        stage
    }

    fn attach(&mut self) -> Vec<FromKeeper> {
        self.runs
            .handle_attached(WINDOWS, Codec::Postcard, self.now);
        self.said()
    }

    fn hear(&mut self, message: ToKeeper) {
        self.runs.handle_message(message, self.now).unwrap();
    }

    fn start(&mut self, number: u8, spec: RunSpec) {
        let (run_id, digest, spec) = (id(number), Digest::from_bytes([number; 32]), Box::new(spec));
        self.hear(ToKeeper::Start {
            run_id,
            digest,
            spec,
        });
    }

    /// Starts a run whose child lives, and returns what it is asked for first.
    fn started(&mut self, number: u8, spec: RunSpec) -> Vec<ToChild> {
        self.start(number, spec);
        assert!(matches!(self.actions()[..], [Action::Start(..)]));
        self.runs.handle_started(id(number), 77, self.now);
        self.asked()
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.runs.poll_action(self.now)).collect()
    }

    /// Returns what the only child is asked for.
    fn asked(&mut self) -> Vec<ToChild> {
        let asked = |action| match action {
            Action::Child(_, what) => what,
            other => panic!("{other:?}"),
        };
        self.actions().into_iter().map(asked).collect()
    }

    fn said(&mut self) -> Vec<FromKeeper> {
        std::iter::from_fn(|| self.runs.poll_transmit(self.now)).collect()
    }

    fn wait(&mut self, wait: Duration) {
        self.now += wait;
        self.runs.handle_timeout(self.now);
    }

    fn write(&mut self, number: u8, bytes: &'static [u8]) {
        let bytes = Bytes::from_static(bytes);
        self.runs
            .handle_read(id(number), Stream::Stdout, bytes, self.now);
    }

    fn close(&mut self, number: u8) {
        for stream in Stream::BOTH {
            self.runs
                .handle_read(id(number), stream, Bytes::new(), self.now);
        }
    }

    fn exit(&mut self, number: u8, status: ExitStatus) {
        self.runs.handle_exited(id(number), Some(status), self.now);
    }

    /// Returns how the only run that has something to say has ended.
    fn ending(&mut self) -> Ending {
        match self.said().pop().unwrap() {
            FromKeeper::Ended { ending, .. } => *ending,
            other => panic!("{other:?}"),
        }
    }
}

fn id(number: u8) -> RunId {
    RunId::from_bytes([number; 16])
}

fn spec() -> RunSpec {
    RunSpec {
        command: Command::Shell("true".to_owned()),
        cwd: None,
        env: [].into(),
        timeout_ms: None,
        grace_ms: 0,
        stdin: StdinMode::Empty,
        tty: None,
    }
}

fn read(stream: Stream) -> ToChild {
    let bytes_max = 400;
    ToChild::Read { stream, bytes_max }
}

fn refused(message: &FromKeeper) -> RunRefusal {
    match message {
        FromKeeper::Refused { code, .. } => *code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_goes_from_its_start_to_its_forgetting() {
    let mut stage = Stage::attached(Vec::new());
    let asked = stage.started(1, spec());
    assert_eq!(asked, Stream::BOTH.map(read));
    stage.write(1, b"hello");
    let said = stage.said();
    let run_id = id(1);
    assert_eq!(said[0], FromKeeper::Started { run_id, pid: 77 });
    assert!(matches!(&said[1], FromKeeper::Output { bytes, .. } if bytes.0 == b"hello"[..]));
    stage.hear(ToKeeper::Forget { run_id });
    stage.exit(1, ExitStatus::Code(3));
    assert_eq!(stage.said(), []);
    stage.close(1);
    assert_eq!(stage.asked().pop(), Some(ToChild::LetGo));
    let ending = stage.ending();
    assert_eq!(ending.outcome, Outcome::Exited);
    assert_eq!(ending.status, Some(ExitStatus::Code(3)));
    assert!(!ending.descendants_may_survive);
    stage.hear(ToKeeper::Forget { run_id });
    assert_eq!(
        stage.actions(),
        [Action::Remember(Record::Forgotten { run_id })]
    );
    stage.start(1, spec());
    assert_eq!(refused(&stage.said()[0]), RunRefusal::Forgotten);
}

#[test]
fn a_start_is_obeyed_once() {
    let mut stage = Stage::attached(Vec::new());
    stage.started(1, spec());
    stage.said();
    stage.start(1, spec());
    let state = RunState::Running { pid: 77 };
    assert!(matches!(&stage.said()[..], [FromKeeper::State { summary }] if summary.state == state));
    let (run_id, digest, spec) = (id(1), Digest::from_bytes([9; 32]), Box::new(spec()));
    stage.hear(ToKeeper::Start {
        run_id,
        digest,
        spec,
    });
    assert_eq!(refused(&stage.said()[0]), RunRefusal::DigestMismatch);
    assert!(
        stage
            .actions()
            .iter()
            .all(|action| matches!(action, Action::Child(..)))
    );
}

#[test]
fn what_may_not_run_is_refused_for_good() {
    let mut stage = Stage::attached(Vec::new());
    let unsound = RunSpec {
        timeout_ms: Some(0),
        ..spec()
    };
    let env = [("LD_PRELOAD".to_owned(), "evil".to_owned())].into();
    stage.start(1, unsound);
    stage.start(2, RunSpec { env, ..spec() });
    stage.start(1, spec());
    let codes: Vec<_> = stage.said().iter().map(refused).collect();
    let expected = [
        RunRefusal::Invalid,
        RunRefusal::EnvNotAllowed,
        RunRefusal::Invalid,
    ];
    assert_eq!(codes, expected);
    stage.start(3, spec());
    stage.actions();
    stage.runs.refuse(id(3), RunRefusal::Policy);
    stage.start(3, spec());
    let codes: Vec<_> = stage.said().iter().map(refused).collect();
    assert_eq!(codes, [RunRefusal::Policy; 2]);
    for number in 4..8 {
        stage.start(number, spec());
        stage.actions();
        stage
            .runs
            .handle_not_started(id(number), Some(Reason::NotFound), String::new());
    }
    assert_eq!(
        stage
            .said()
            .iter()
            .filter(|said| matches!(said, FromKeeper::Refused { .. }))
            .count(),
        1
    );
}

#[test]
fn a_cancelled_command_is_asked_and_then_killed() {
    let mut stage = Stage::attached(Vec::new());
    stage.started(1, spec());
    stage.said();
    let run_id = id(1);
    stage.hear(ToKeeper::Cancel {
        run_id,
        grace_ms: 5_000,
    });
    assert_eq!(stage.asked(), [SIGTERM]);
    stage.wait(Duration::from_secs(4));
    assert_eq!(stage.asked(), []);
    stage.wait(Duration::from_secs(1));
    assert_eq!(stage.asked(), [SIGKILL]);
    assert_eq!(stage.runs.poll_timeout(), None); // nothing is left but to wait for it
    // Its group is told once more while the leader's zombie keeps the number.
    stage.exit(1, ExitStatus::Signal(9));
    stage.close(1);
    assert_eq!(stage.asked(), [SIGKILL, ToChild::LetGo]);
    let ending = stage.ending();
    assert_eq!(ending.outcome, Outcome::Cancelled);
    assert_eq!(ending.status, Some(ExitStatus::Signal(9)));
    assert_eq!(ending.duration_ms, 5_000);
}

#[test]
fn a_command_is_ended_when_its_time_is_over() {
    let mut stage = Stage::attached(Vec::new());
    stage.started(
        1,
        RunSpec {
            timeout_ms: Some(100),
            grace_ms: 50,
            ..spec()
        },
    );
    assert_eq!(
        stage.runs.poll_timeout(),
        Some(stage.now + Duration::from_millis(100))
    );
    stage.wait(Duration::from_millis(100));
    assert_eq!(stage.asked(), [SIGTERM]);
    stage.wait(Duration::from_millis(50));
    assert_eq!(stage.asked(), [SIGKILL]);
    stage.exit(1, ExitStatus::Signal(9));
    stage.close(1);
    stage.asked();
    assert_eq!(stage.ending().outcome, Outcome::TimedOut);
}

#[test]
fn whoever_holds_an_output_open_is_waited_for_and_no_longer() {
    let mut stage = Stage::attached(Vec::new());
    stage.started(1, spec());
    stage.exit(1, ExitStatus::Code(0));
    stage.wait(DRAIN / 2);
    assert_eq!(stage.asked(), []);
    stage.wait(DRAIN / 2);
    assert_eq!(stage.asked(), [ToChild::LetGo]);
    let ending = stage.ending();
    assert_eq!(ending.outcome, Outcome::Exited);
    assert!(ending.descendants_may_survive);
}

#[test]
fn what_waits_in_a_pipe_for_room_is_read_behind_the_end() {
    let mut stage = Stage::attached(Vec::new());
    stage.started(1, spec());
    stage.write(1, &[b'a'; 400]);
    stage.said();
    assert_eq!(stage.asked(), []); // there is no room for more
    stage.exit(1, ExitStatus::Code(0));
    stage.wait(2 * DRAIN);
    let run_id = id(1);
    stage.hear(ToKeeper::Ack {
        run_id,
        stdout: 200,
        stderr: 0,
    });
    assert!(matches!(
        stage.asked()[..],
        [ToChild::Read {
            stream: Stream::Stdout,
            ..
        }]
    ));
    stage.write(1, b"last");
    stage.asked();
    stage.wait(DRAIN); // somebody holds it, and writes nothing
    assert_eq!(stage.asked(), [ToChild::LetGo]);
    stage.said();
    stage.hear(ToKeeper::Ack {
        run_id,
        stdout: 400,
        stderr: 0,
    });
    match &stage.said()[..] {
        [
            FromKeeper::Output { bytes, .. },
            FromKeeper::Ended { totals, .. },
        ] => {
            assert_eq!((&bytes.0[..], totals.stdout), (&b"last"[..], 404));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn stdin_is_written_in_order_and_acknowledged() {
    let mut stage = Stage::attached(Vec::new());
    stage.started(
        1,
        RunSpec {
            stdin: StdinMode::Open,
            ..spec()
        },
    );
    stage.said();
    let run_id = id(1);
    let bytes = Payload::from(&b"abc"[..]);
    stage.hear(ToKeeper::Stdin {
        run_id,
        offset: 0,
        bytes,
        eof: true,
    });
    assert_eq!(stage.asked(), [ToChild::Write(Bytes::from_static(b"abc"))]);
    stage.runs.handle_written(run_id, 2);
    assert_eq!(stage.asked(), [ToChild::Write(Bytes::from_static(b"c"))]);
    stage.runs.handle_written(run_id, 1);
    assert_eq!(stage.asked(), [ToChild::CloseStdin]);
    let (offset, closed) = (3, true);
    assert_eq!(
        stage.said().pop(),
        Some(FromKeeper::StdinAck {
            run_id,
            offset,
            closed
        })
    );
    let hole = ToKeeper::Stdin {
        run_id,
        offset: 9,
        bytes: Payload::default(),
        eof: false,
    };
    stage.hear(hole.clone()); // for an end that is closed it does not matter
    stage.started(
        2,
        RunSpec {
            stdin: StdinMode::Open,
            ..spec()
        },
    );
    let hole = ToKeeper::Stdin {
        run_id: id(2),
        offset: 9,
        bytes: Payload::default(),
        eof: false,
    };
    let refused = stage.runs.handle_message(hole, stage.now);
    assert!(matches!(refused, Err(RunsError::Stdin(_))));
}

#[test]
fn output_that_nobody_takes_is_bounded_and_its_loss_is_marked() {
    let mut stage = Stage::attached(Vec::new());
    stage.started(1, spec());
    stage.runs.handle_detached(stage.now);
    for _ in 0..3 {
        stage.write(1, &[b'a'; 400]);
        stage.actions();
    }
    stage.attach();
    assert_eq!(stage.said(), []); // nothing of a run that is not resumed
    let run_id = id(1);
    stage.hear(ToKeeper::Resume {
        run_id,
        stdout: 0,
        stderr: 0,
    });
    let mut gaps = Vec::new();
    let mut got = 0;
    for _ in 0..20 {
        for message in stage.said() {
            match message {
                FromKeeper::Output { offset, bytes, .. } => got = offset + bytes.0.len() as u64,
                FromKeeper::Gap {
                    from, to, reason, ..
                } => gaps.push((from, to, reason)),
                other => panic!("{other:?}"),
            }
        }
        stage.hear(ToKeeper::Ack {
            run_id,
            stdout: got,
            stderr: 0,
        });
    }
    assert_eq!(gaps, [(400, 1_200, GapReason::Limit)]);
}

#[test]
fn another_process_knows_what_was_started_and_what_was_forgotten() {
    let started = |number, boot| Record::Started {
        run_id: id(number),
        digest: Digest::from_bytes([number; 32]),
        boot_id: BootId::from_bytes([boot; 16]),
    };
    let records = vec![
        started(1, 1),
        started(2, 7),
        started(3, 1),
        Record::Forgotten { run_id: id(3) },
    ];
    let text = serde_json::to_string(&records).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Record>>(&text).unwrap(), records);
    let mut stage = Stage::new(records);
    let early = ToKeeper::Forget { run_id: id(1) };
    match &stage.attach()[..] {
        [
            FromKeeper::Runs {
                runs, last: true, ..
            },
        ] => {
            let listed: Vec<_> = runs.iter().map(|run| (run.run_id, &run.state)).collect();
            assert_eq!(
                listed,
                [(id(1), &RunState::Ended), (id(2), &RunState::Ended)]
            );
        }
        other => panic!("{other:?}"),
    }
    for (number, reason) in [(1, Reason::KeeperDied), (2, Reason::NodeRebooted)] {
        let run_id = id(number);
        stage.hear(ToKeeper::Resume {
            run_id,
            stdout: 0,
            stderr: 0,
        });
        let ending = stage.ending();
        assert_eq!(
            (ending.outcome, ending.reason),
            (Outcome::Lost, Some(reason))
        );
    }
    stage.start(3, spec());
    assert_eq!(refused(&stage.said()[0]), RunRefusal::Forgotten);
    stage.runs.handle_attached(WINDOWS, Codec::Json, stage.now);
    let too_early = stage.runs.handle_message(early, stage.now);
    assert!(matches!(too_early, Err(RunsError::BeforeList)));
}

#[test]
fn a_gateway_says_nothing_that_belongs_to_a_keepers_owner() {
    let mut stage = Stage::attached(Vec::new());
    for message in [ToKeeper::Leave, ToKeeper::Attach { windows: WINDOWS }] {
        let refused = stage.runs.handle_message(message, stage.now);
        assert!(matches!(refused, Err(RunsError::KeeperOnly)));
    }
}
