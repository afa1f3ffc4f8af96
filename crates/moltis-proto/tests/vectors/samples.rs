//! One message of every kind, and one for every word that a message may hold.
//!
//! Long because it is one list: the messages of a protocol, one after the other.

use std::collections::BTreeMap;

use moltis_proto::code::{CloseCode, GoodbyeReason};
use moltis_proto::handshake::{
    Epoch, GatewayProof, Intent, Introduction, NodeProof, PolicyMode, SessionLimits, Verdict,
};
use moltis_proto::key::Digest;
use moltis_proto::message::Windows;
use moltis_proto::run::{
    Command, Ending, ExitStatus, GapReason, Outcome, Reason, RunSpec, RunState, RunSummary,
    StdinMode, Stream, Totals, Tty, TtySize,
};
use moltis_proto::telemetry::{Gpu, Platform, Provider, ProviderKind, Runtime, Sample};
use moltis_proto::version::Ledger;
use moltis_proto::{
    BootId, DeviceId, FromKeeper, InstanceId, JournalId, Labels, NodeId, NodeName, Nonce, Payload,
    PublicKey, Refusal, RequestId, RunId, RunRefusal, Signature, ToGateway, ToKeeper, ToNode,
};

/// A message by the type that its receiver reads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    GatewayProof(GatewayProof),
    NodeProof(NodeProof),
    Introduction(Box<Introduction>),
    Verdict(Verdict),
    ToNode(ToNode),
    ToGateway(ToGateway),
    /// Only what is said on a keeper's socket alone; the others are in `ToNode`.
    ToKeeper(ToKeeper),
}

/// The largest integer that JSON carries everywhere.
const LARGE: u64 = (1 << 53) - 1;

const RUN: RunId =
    RunId::from_bytes(*b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff");

/// Returns a name and a message each. Names are unique.
pub(crate) fn all() -> Vec<(String, Message)> {
    let mut all = Vec::new();
    handshake(&mut all);
    to_keeper(&mut all);
    to_node(&mut all);
    from_keeper(&mut all);
    to_gateway(&mut all);
    all
}

type Samples = Vec<(String, Message)>;

fn add(all: &mut Samples, name: impl Into<String>, message: Message) {
    all.push((name.into(), message));
}

fn handshake(all: &mut Samples) {
    let gateway_proof = GatewayProof {
        gateway_key: PublicKey::from_bytes([1; 32]),
        nonce_g: Nonce::from_bytes([2; 32]),
        ledger_min: Ledger(1),
        ledger_max: Ledger(300),
        code_commit: Digest::from_bytes([3; 32]),
        signature: Signature::from_bytes([4; 64]),
    };
    add(all, "gateway proof", Message::GatewayProof(gateway_proof));
    for (name, intent) in [("connect", Intent::Connect), ("pair", Intent::Pair)] {
        let node_proof = NodeProof {
            node_key: PublicKey::from_bytes([5; 32]),
            device_id: DeviceId::from_bytes([6; 16]),
            instance_id: InstanceId::from_bytes([7; 16]),
            boot_id: BootId::from_bytes([8; 16]),
            intent,
            ledger: Ledger(1),
            nonce_n: Nonce::from_bytes([9; 32]),
            signature: Signature::from_bytes([10; 64]),
        };
        add(
            all,
            format!("node proof, {name}"),
            Message::NodeProof(node_proof),
        );
    }
    for policy in [PolicyMode::Full, PolicyMode::Off, PolicyMode::AllowList] {
        let name = format!("introduction, policy {policy:?}");
        add(
            all,
            name,
            Message::Introduction(Box::new(introduction(policy))),
        );
    }
    edges_of_introduction(all);
    verdicts(all);
}

/// Nothing where there may be nothing, and as much as a list may hold.
fn edges_of_introduction(all: &mut Samples) {
    let empty = Introduction {
        node_id: NodeId::new("0").unwrap(),
        name: NodeName::new("0").unwrap(),
        labels: Labels::default(),
        platform: Platform::default(),
        version: String::new(),
        user: String::new(),
        working_dir: "/".to_owned(),
        timeout_ms: 0,
        policy: PolicyMode::Full,
        env_allow: Vec::new(),
        capabilities: Vec::new(),
    };
    let full = Introduction {
        node_id: NodeId::new("n".repeat(64)).unwrap(),
        name: NodeName::new("ü".repeat(64)).unwrap(),
        timeout_ms: LARGE,
        env_allow: (0..64).map(|number| format!("NAME_{number}")).collect(),
        capabilities: vec!["x".repeat(256)],
        ..introduction(PolicyMode::Full)
    };
    for (name, said) in [("empty", empty), ("full", full)] {
        let said = Message::Introduction(Box::new(said));
        add(all, format!("introduction, {name}"), said);
    }
}

fn introduction(policy: PolicyMode) -> Introduction {
    let labels = [("zone", "a/b"), ("gpu", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    Introduction {
        node_id: NodeId::new("build-box").unwrap(),
        name: NodeName::new("Büro 2").unwrap(),
        labels: Labels::new(BTreeMap::from(labels)).unwrap(),
        platform: Platform {
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            version: "Debian 12".to_owned(),
            kernel: "6.1.0-40-amd64".to_owned(),
            hostname: "box".to_owned(),
        },
        version: "0.1.0".to_owned(),
        user: "build".to_owned(),
        working_dir: "/home/build".to_owned(),
        timeout_ms: 300_000,
        policy,
        env_allow: vec!["BUILD_ID".to_owned()],
        capabilities: Vec::new(),
    }
}

fn verdicts(all: &mut Samples) {
    let accepted = Verdict::Accepted {
        epoch: Epoch {
            incarnation: 0xdead_beef,
            counter: 7,
        },
        windows: WINDOWS,
        limits: SessionLimits::STANDARD,
        ledger: Ledger(1),
    };
    add(all, "accepted", Message::Verdict(accepted));
    let largest = Verdict::Accepted {
        epoch: Epoch {
            incarnation: u32::MAX,
            counter: u32::MAX,
        },
        windows: Windows {
            run_bytes: u32::MAX,
            connection_bytes: u32::MAX,
            stdin_bytes: u32::MAX,
            chunk_bytes_max: u32::MAX,
        },
        limits: SessionLimits {
            telemetry_interval_ms: LARGE,
            ping_after_ms: LARGE,
            silence_max_ms: LARGE,
        },
        ledger: Ledger(u16::MAX),
    };
    add(
        all,
        "accepted, the largest numbers",
        Message::Verdict(largest),
    );
    let pending = Verdict::Pending {
        request_id: RequestId::from_bytes([11; 16]),
        expires_in_ms: 3_600_000,
        code_reveal: Nonce::from_bytes([12; 32]),
    };
    add(all, "pending", Message::Verdict(pending));
    for code in [
        Refusal::PairingOff,
        Refusal::PendingFull,
        Refusal::Rejected,
        Refusal::Revoked,
        Refusal::KeyMismatch,
        Refusal::Unknown,
        Refusal::Version,
        Refusal::NodeIdInUse,
        Refusal::RateLimited { retry_ms: 1500 },
        Refusal::OwnKey,
        Refusal::Expired,
    ] {
        let verdict = Message::Verdict(Verdict::Refused { code });
        add(all, format!("refused, {code:?}"), verdict);
    }
}

const WINDOWS: Windows = Windows {
    run_bytes: 1_048_576,
    connection_bytes: 8_388_608,
    stdin_bytes: 262_144,
    chunk_bytes_max: 61_440,
};

fn to_keeper(all: &mut Samples) {
    let attach = ToKeeper::Attach { windows: WINDOWS };
    add(
        all,
        "attach, on a keeper's socket only",
        Message::ToKeeper(attach),
    );
    add(
        all,
        "leave, on a keeper's socket only",
        Message::ToKeeper(ToKeeper::Leave),
    );
}

/// A command and nothing beside it.
fn bare(command: Command) -> RunSpec {
    RunSpec {
        command,
        cwd: None,
        env: BTreeMap::new(),
        timeout_ms: None,
        grace_ms: 0,
        stdin: StdinMode::Empty,
        tty: None,
    }
}

fn crowded() -> RunSpec {
    let names = ('A'..='Z').flat_map(|a| ('A'..='Z').map(move |b| format!("LC_{a}{b}")));
    let env = names.take(64).map(|name| (name, String::new()));
    RunSpec {
        env: env.collect(),
        timeout_ms: Some(LARGE),
        grace_ms: LARGE,
        tty: Some(Tty {
            size: TtySize {
                cols: u16::MAX,
                rows: 0,
            },
            term: String::new(),
        }),
        ..bare(Command::Shell("x".repeat(200)))
    }
}

fn to_node(all: &mut Samples) {
    let size = TtySize {
        cols: 120,
        rows: 40,
    };
    let argv = RunSpec {
        command: Command::Argv(["uname", "-a", "", "ä\n"].map(ToOwned::to_owned).to_vec()),
        cwd: None,
        env: BTreeMap::new(),
        timeout_ms: None,
        grace_ms: 5000,
        stdin: StdinMode::Empty,
        tty: None,
    };
    let shell = RunSpec {
        command: Command::Shell("exec \"$SHELL\" -l".to_owned()),
        cwd: Some("/srv".to_owned()),
        env: BTreeMap::from([
            ("TERM".to_owned(), "xterm".to_owned()),
            ("LANG".to_owned(), "de_DE.UTF-8".to_owned()),
        ]),
        timeout_ms: Some(300_000),
        grace_ms: 0,
        stdin: StdinMode::Open,
        tty: Some(Tty {
            size,
            term: "xterm-256color".to_owned(),
        }),
    };
    let start = |spec| ToKeeper::Start {
        run_id: RUN,
        digest: Digest::from_bytes([13; 32]),
        spec: Box::new(spec),
    };
    let stdin = |bytes: &'static [u8], eof| ToKeeper::Stdin {
        run_id: RUN,
        offset: 4096,
        bytes: Payload::from(bytes),
        eof,
    };
    let run_id = RUN;
    for (name, message) in [
        ("start, argv", start(argv)),
        ("start, shell on a terminal", start(shell)),
        ("start, no word", start(bare(Command::Argv(Vec::new())))),
        (
            "start, an empty line",
            start(bare(Command::Shell(String::new()))),
        ),
        ("start, the most variables", start(crowded())),
        (
            "resume",
            ToKeeper::Resume {
                run_id,
                stdout: 0,
                stderr: LARGE,
            },
        ),
        (
            "ack",
            ToKeeper::Ack {
                run_id,
                stdout: 65_536,
                stderr: 127,
            },
        ),
        ("stdin", stdin(b"\x00\xff\n", false)),
        ("stdin, end", stdin(b"", true)),
        ("stdin, a length of two bytes", stdin(&[b'x'; 200], true)),
        ("resize", ToKeeper::Resize { run_id, size }),
        ("signal", ToKeeper::Signal { run_id, signal: 2 }),
        (
            "signal, below zero",
            ToKeeper::Signal {
                run_id,
                signal: i32::MIN,
            },
        ),
        (
            "signal, the highest",
            ToKeeper::Signal { run_id, signal: 64 },
        ),
        (
            "cancel",
            ToKeeper::Cancel {
                run_id,
                grace_ms: 5000,
            },
        ),
        ("forget", ToKeeper::Forget { run_id }),
    ] {
        add(all, name, Message::ToNode(ToNode::Run(message)));
    }
    for (name, message) in [
        ("sample", ToNode::Sample),
        ("ping from the gateway", ToNode::Ping { number: LARGE }),
        ("pong from the gateway", ToNode::Pong { number: 0 }),
    ] {
        add(all, name, Message::ToNode(message));
    }
    for reason in [GoodbyeReason::Shutdown, GoodbyeReason::Upgrade] {
        let goodbye = ToNode::Goodbye {
            reason,
            back_in_ms: 2000,
        };
        add(
            all,
            format!("goodbye from the gateway, {reason:?}"),
            Message::ToNode(goodbye),
        );
    }
    for code in CLOSE_CODES {
        let close = Message::ToNode(ToNode::Close { code });
        add(all, format!("close from the gateway, {code:?}"), close);
    }
}

const CLOSE_CODES: [CloseCode; 6] = [
    CloseCode::Superseded,
    CloseCode::Revoked,
    CloseCode::Protocol,
    CloseCode::Silence,
    CloseCode::Slept,
    CloseCode::Settings,
];

fn from_keeper(all: &mut Samples) {
    let mut run =
        |name: String, message| add(all, name, Message::ToGateway(ToGateway::Run(message)));
    let run_id = RUN;
    let summary = |state| RunSummary {
        run_id,
        digest: Digest::from_bytes([13; 32]),
        journal_id: JournalId::from_bytes([14; 16]),
        state,
        totals: Totals {
            stdout: 5,
            stderr: LARGE,
        },
        stdin: 3,
    };
    let running = summary(RunState::Running { pid: 4242 });
    run(
        "runs, the last page".to_owned(),
        FromKeeper::Runs {
            boot_id: BootId::from_bytes([8; 16]),
            journals: vec![
                JournalId::from_bytes([14; 16]),
                JournalId::from_bytes([15; 16]),
            ],
            runs: vec![running.clone(), summary(RunState::Ended)],
            last: true,
        },
    );
    run(
        "runs, an empty page".to_owned(),
        FromKeeper::Runs {
            boot_id: BootId::from_bytes([8; 16]),
            journals: Vec::new(),
            runs: Vec::new(),
            last: false,
        },
    );
    run(
        "runs, none".to_owned(),
        FromKeeper::Runs {
            boot_id: BootId::from_bytes([8; 16]),
            journals: vec![JournalId::from_bytes([14; 16])],
            runs: Vec::new(),
            last: true,
        },
    );
    run(
        "started".to_owned(),
        FromKeeper::Started { run_id, pid: 4242 },
    );
    run("state".to_owned(), FromKeeper::State { summary: running });
    for code in [
        RunRefusal::Policy,
        RunRefusal::EnvNotAllowed,
        RunRefusal::TimeoutTooLong {
            longest_ms: 300_000,
        },
        RunRefusal::DigestMismatch,
        RunRefusal::TooMany,
        RunRefusal::Invalid,
        RunRefusal::Leaving,
        RunRefusal::JournalFailed,
        RunRefusal::Forgotten,
    ] {
        run(
            format!("run refused, {code:?}"),
            FromKeeper::Refused { run_id, code },
        );
    }
    for (stream, offset) in [(Stream::Stdout, 0), (Stream::Stderr, LARGE)] {
        let bytes = Payload::from(&b"\x1b[0m\xffok\n"[..]);
        let output = FromKeeper::Output {
            run_id,
            stream,
            offset,
            bytes,
        };
        run(format!("output, {stream:?}"), output);
    }
    for reason in [
        GapReason::Limit,
        GapReason::DiskFull,
        GapReason::DiskFailed,
        GapReason::Freed,
        GapReason::KeeperDied,
        GapReason::PowerCut,
    ] {
        let stream = Stream::Stdout;
        let gap = FromKeeper::Gap {
            run_id,
            stream,
            from: 1_048_576,
            to: 9_000_000,
            reason,
        };
        run(format!("gap, {reason:?}"), gap);
    }
    let stdin_ack = FromKeeper::StdinAck {
        run_id,
        offset: 4099,
        closed: true,
    };
    run("stdin ack".to_owned(), stdin_ack);
    let stdin_open = FromKeeper::StdinAck {
        run_id,
        offset: 0,
        closed: false,
    };
    run("stdin ack, open".to_owned(), stdin_open);
    endings(&mut run);
}

fn endings(run: &mut impl FnMut(String, FromKeeper)) {
    use Outcome::{Cancelled, Exited, FailedToStart, Lost, Refused, Signaled, TimedOut};
    let code = Some(ExitStatus::Code(7));
    let signal = Some(ExitStatus::Signal(9));
    for (outcome, reason, status) in [
        (Exited, None, code),
        (Exited, None, Some(ExitStatus::Code(0))),
        (Exited, None, Some(ExitStatus::Code(255))),
        (Signaled, None, signal),
        (TimedOut, None, signal),
        (Cancelled, None, signal),
        (Refused, Some(Reason::Policy), None),
        (Refused, Some(Reason::ApprovalDenied), None),
        (FailedToStart, Some(Reason::NotStarted), None),
        (FailedToStart, Some(Reason::NotFound), None),
        (FailedToStart, Some(Reason::NotExecutable), None),
        (FailedToStart, Some(Reason::WorkingDir), None),
        (Lost, Some(Reason::NodeRebooted), None),
        (Lost, Some(Reason::NodeForgot), None),
        (Lost, Some(Reason::NodeRevoked), None),
        (Lost, Some(Reason::JournalWiped), None),
        (Lost, Some(Reason::KeeperDied), None),
        (Lost, Some(Reason::ConnectionLost), None),
    ] {
        let ending = Ending {
            outcome,
            reason,
            status,
            detail: "what a person reads".to_owned(),
            duration_ms: 12,
            descendants_may_survive: outcome == Cancelled,
        };
        let totals = Totals {
            stdout: 0,
            stderr: 300,
        };
        let name = match (reason, status) {
            (Some(reason), _) => format!("ended, {outcome:?}, {reason:?}"),
            (None, Some(status)) => format!("ended, {outcome:?}, {status:?}"),
            (None, None) => format!("ended, {outcome:?}"),
        };
        let ending = Box::new(ending);
        run(
            name,
            FromKeeper::Ended {
                run_id: RUN,
                ending,
                totals,
            },
        );
    }
}

fn to_gateway(all: &mut Samples) {
    let first = Sample {
        cpu_count: 1,
        ..Sample::default()
    };
    let largest = Sample {
        cpu_count: u32::MAX,
        cpu_usage_percent: Some(100.0),
        load_1m: 0.0,
        memory_total_bytes: LARGE,
        memory_available_bytes: LARGE,
        disk_total_bytes: LARGE,
        disk_available_bytes: LARGE,
        uptime_seconds: LARGE,
        ..Sample::default()
    };
    for (name, sample) in [
        ("telemetry, the first", first),
        ("telemetry", telemetry()),
        ("telemetry, the largest numbers", largest),
    ] {
        add(
            all,
            name,
            Message::ToGateway(ToGateway::Telemetry(Box::new(sample))),
        );
    }
    for (name, message) in [
        ("ping from the node", ToGateway::Ping { number: 1 }),
        ("pong from the node", ToGateway::Pong { number: LARGE }),
    ] {
        add(all, name, Message::ToGateway(message));
    }
    for reason in [GoodbyeReason::Shutdown, GoodbyeReason::Upgrade] {
        let goodbye = ToGateway::Goodbye {
            reason,
            back_in_ms: 2000,
        };
        add(
            all,
            format!("goodbye from the node, {reason:?}"),
            Message::ToGateway(goodbye),
        );
    }
    for code in CLOSE_CODES {
        let close = Message::ToGateway(ToGateway::Close { code });
        add(all, format!("close from the node, {code:?}"), close);
    }
    for (name, unix_ms) in [
        ("an early clock", 0),
        ("a clock", 1_767_323_045_006),
        ("the latest clock", LARGE),
    ] {
        let clock = Message::ToGateway(ToGateway::Clock { unix_ms });
        add(all, name, clock);
    }
}

/// Numbers with a fraction that both ends write alike: halves and quarters.
fn telemetry() -> Sample {
    let provider = |name: &str, kind, models: &[&str], variable: Option<&str>| Provider {
        name: name.to_owned(),
        kind,
        models: models.iter().map(|&model| model.to_owned()).collect(),
        variable: variable.map(ToOwned::to_owned),
    };
    Sample {
        cpu_count: 16,
        cpu_usage_percent: Some(12.5),
        load_1m: 0.25,
        memory_total_bytes: 67_108_864_000,
        memory_available_bytes: 33_554_432_000,
        disk_total_bytes: 1_000_000_000_000,
        disk_available_bytes: 1,
        uptime_seconds: 86_400,
        gpus: vec![Gpu {
            name: "NVIDIA RTX 4090".to_owned(),
            memory_total_bytes: 25_757_220_864,
            memory_used_bytes: 0,
        }],
        runtimes: vec![Runtime {
            name: "python".to_owned(),
            version: "3.11.2".to_owned(),
        }],
        providers: vec![
            provider("ollama", ProviderKind::Ollama, &["llama3:8b"], None),
            provider("openai", ProviderKind::ApiKey, &[], Some("OPENAI_API_KEY")),
        ],
        cut: true,
    }
}
