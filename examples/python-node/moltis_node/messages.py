"""Every struct that goes over the wire (docs/protocol.md, 3 and 5), in the order of the page."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Optional, Union

from .codec import I32, U16, U32, U64, Bytes32, Codec, Id, Signature, Variant

# ---- 3. Handshake


@dataclass(frozen=True)
class GatewayProof:
    gateway_key: Bytes32
    nonce_g: Bytes32
    ledger_min: U16
    ledger_max: U16
    code_commit: Bytes32
    signature: Signature


class Intent(Enum):
    CONNECT = "connect"
    PAIR = "pair"


@dataclass(frozen=True)
class NodeProof:
    node_key: Bytes32
    device_id: Id
    instance_id: Id
    boot_id: Id
    intent: Intent
    ledger: U16
    nonce_n: Bytes32
    signature: Signature


@dataclass(frozen=True)
class Platform:
    os: str
    arch: str
    version: str
    kernel: str
    hostname: str


class Policy(Enum):
    FULL = "full"
    OFF = "off"
    ALLOW_LIST = "allow-list"


@dataclass(frozen=True)
class Introduction:
    node_id: str
    name: str
    labels: dict[str, str]
    platform: Platform
    version: str
    user: str
    working_dir: str
    timeout_ms: U64
    policy: Policy
    env_allow: tuple[str, ...]
    capabilities: tuple[str, ...]


@dataclass(frozen=True)
class Epoch:
    incarnation: U32
    counter: U32


@dataclass(frozen=True)
class Windows:
    run_bytes: U32
    connection_bytes: U32
    stdin_bytes: U32
    chunk_bytes_max: U32


@dataclass(frozen=True)
class Limits:
    telemetry_interval_ms: U64
    ping_after_ms: U64
    silence_max_ms: U64


@dataclass(frozen=True)
class Accepted(Variant):
    epoch: Epoch
    windows: Windows
    limits: Limits
    ledger: U16


@dataclass(frozen=True)
class Pending(Variant):
    request_id: Id
    expires_in_ms: U64
    code_reveal: Bytes32


class Refusal(Enum):
    PAIRING_OFF = "pairing_off"
    PENDING_FULL = "pending_full"
    REJECTED = "rejected"
    REVOKED = "revoked"
    KEY_MISMATCH = "key_mismatch"
    UNKNOWN = "unknown"
    VERSION = "version"
    NODE_ID_IN_USE = "node_id_in_use"
    OWN_KEY = "own_key"
    EXPIRED = "expired"


@dataclass(frozen=True)
class RateLimited(Variant):
    retry_ms: U64


@dataclass(frozen=True)
class Refused(Variant):
    code: Union[Refusal, RateLimited]


Verdict = Union[Accepted, Pending, Refused]

# ---- 5. Runs, towards the command


@dataclass(frozen=True)
class Argv(Variant):
    NEWTYPE: ClassVar[bool] = True
    words: tuple[str, ...]


@dataclass(frozen=True)
class Shell(Variant):
    NEWTYPE: ClassVar[bool] = True
    line: str


class Stdin(Enum):
    EMPTY = "empty"
    OPEN = "open"


@dataclass(frozen=True)
class Size:
    cols: U16
    rows: U16


@dataclass(frozen=True)
class Tty:
    size: Size
    term: str


@dataclass(frozen=True)
class Spec:
    command: Union[Argv, Shell]
    cwd: Optional[str]
    env: dict[str, str]
    timeout_ms: Optional[U64]
    grace_ms: U64
    stdin: Stdin
    tty: Optional[Tty]


@dataclass(frozen=True)
class Attach(Variant):
    windows: Windows


@dataclass(frozen=True)
class Start(Variant):
    run_id: Id
    digest: Bytes32
    spec: Spec


@dataclass(frozen=True)
class Resume(Variant):
    run_id: Id
    stdout: U64
    stderr: U64


@dataclass(frozen=True)
class Ack(Variant):
    run_id: Id
    stdout: U64
    stderr: U64


@dataclass(frozen=True)
class StdinBytes(Variant):
    TAG: ClassVar[str] = "stdin"
    run_id: Id
    offset: U64
    bytes_: bytes
    eof: bool


@dataclass(frozen=True)
class Resize(Variant):
    run_id: Id
    size: Size


@dataclass(frozen=True)
class Signal(Variant):
    run_id: Id
    signal: I32


@dataclass(frozen=True)
class Cancel(Variant):
    run_id: Id
    grace_ms: U64


@dataclass(frozen=True)
class Forget(Variant):
    run_id: Id


@dataclass(frozen=True)
class Leave(Variant):
    pass


ToKeeper = Union[Attach, Start, Resume, Ack, StdinBytes, Resize, Signal, Cancel, Forget, Leave]

# ---- 5. Runs, from the command


class Stream(Enum):
    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True)
class Running(Variant):
    pid: U32


@dataclass(frozen=True)
class HasEnded(Variant):
    TAG: ClassVar[str] = "ended"


@dataclass(frozen=True)
class Totals:
    stdout: U64
    stderr: U64


@dataclass(frozen=True)
class Summary:
    run_id: Id
    digest: Bytes32
    journal_id: Id
    state: Union[Running, HasEnded]
    totals: Totals
    stdin: U64


class Outcome(Enum):
    EXITED = "exited"
    SIGNALED = "signaled"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    FAILED_TO_START = "failed_to_start"
    REFUSED = "refused"
    LOST = "lost"


class Reason(Enum):
    NOT_STARTED = "not_started"
    NODE_REBOOTED = "node_rebooted"
    NODE_FORGOT = "node_forgot"
    NODE_REVOKED = "node_revoked"
    JOURNAL_WIPED = "journal_wiped"
    KEEPER_DIED = "keeper_died"
    CONNECTION_LOST = "connection_lost"
    NOT_FOUND = "not_found"
    NOT_EXECUTABLE = "not_executable"
    WORKING_DIR = "working_dir"
    POLICY = "policy"
    APPROVAL_DENIED = "approval_denied"


@dataclass(frozen=True)
class ExitCode(Variant):
    TAG: ClassVar[str] = "code"
    NEWTYPE: ClassVar[bool] = True
    code: I32


@dataclass(frozen=True)
class ExitSignal(Variant):
    TAG: ClassVar[str] = "signal"
    NEWTYPE: ClassVar[bool] = True
    signal: I32


@dataclass(frozen=True)
class Ending:
    outcome: Outcome
    reason: Optional[Reason]
    status: Union[ExitCode, ExitSignal, None]
    detail: str
    duration_ms: U64
    descendants_may_survive: bool


class RunRefusal(Enum):
    POLICY = "policy"
    ENV_NOT_ALLOWED = "env_not_allowed"
    DIGEST_MISMATCH = "digest_mismatch"
    TOO_MANY = "too_many"
    INVALID = "invalid"
    LEAVING = "leaving"
    JOURNAL_FAILED = "journal_failed"
    FORGOTTEN = "forgotten"


@dataclass(frozen=True)
class TimeoutTooLong(Variant):
    longest_ms: U64


class GapReason(Enum):
    LIMIT = "limit"
    DISK_FULL = "disk_full"
    DISK_FAILED = "disk_failed"
    FREED = "freed"
    KEEPER_DIED = "keeper_died"
    POWER_CUT = "power_cut"


@dataclass(frozen=True)
class Runs(Variant):
    boot_id: Id
    journals: tuple[Id, ...]
    runs: tuple[Summary, ...]
    last: bool


@dataclass(frozen=True)
class Started(Variant):
    run_id: Id
    pid: U32


@dataclass(frozen=True)
class State(Variant):
    summary: Summary


@dataclass(frozen=True)
class RunRefused(Variant):
    TAG: ClassVar[str] = "refused"
    run_id: Id
    code: Union[RunRefusal, TimeoutTooLong]


@dataclass(frozen=True)
class Output(Variant):
    run_id: Id
    stream: Stream
    offset: U64
    bytes_: bytes


@dataclass(frozen=True)
class Gap(Variant):
    run_id: Id
    stream: Stream
    from_: U64
    to: U64
    reason: GapReason


@dataclass(frozen=True)
class StdinAck(Variant):
    run_id: Id
    offset: U64
    closed: bool


@dataclass(frozen=True)
class Ended(Variant):
    run_id: Id
    ending: Ending
    totals: Totals


FromKeeper = Union[Runs, Started, State, RunRefused, Output, Gap, StdinAck, Ended]

# ---- 5. Messages after `accepted`


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_total_bytes: U64
    memory_used_bytes: U64


@dataclass(frozen=True)
class Runtime:
    name: str
    version: str


class ProviderKind(Enum):
    OLLAMA = "ollama"
    API_KEY = "api_key"


@dataclass(frozen=True)
class Provider:
    name: str
    kind: ProviderKind
    models: tuple[str, ...]
    variable: Optional[str]


@dataclass(frozen=True)
class Sample:
    cpu_count: U32
    cpu_usage_percent: Optional[float]
    load_1m: float
    memory_total_bytes: U64
    memory_available_bytes: U64
    disk_total_bytes: U64
    disk_available_bytes: U64
    uptime_seconds: U64
    gpus: tuple[Gpu, ...]
    runtimes: tuple[Runtime, ...]
    providers: tuple[Provider, ...]
    cut: bool


@dataclass(frozen=True)
class SampleNow(Variant):
    TAG: ClassVar[str] = "sample"


@dataclass(frozen=True)
class Telemetry(Variant):
    NEWTYPE: ClassVar[bool] = True
    sample: Sample


@dataclass(frozen=True)
class Ping(Variant):
    number: U64


@dataclass(frozen=True)
class Pong(Variant):
    number: U64


class GoodbyeReason(Enum):
    SHUTDOWN = "shutdown"
    UPGRADE = "upgrade"


@dataclass(frozen=True)
class Goodbye(Variant):
    reason: GoodbyeReason
    back_in_ms: U64


class CloseCode(Enum):
    SUPERSEDED = "superseded"
    REVOKED = "revoked"
    PROTOCOL = "protocol"
    SILENCE = "silence"
    SLEPT = "slept"
    SETTINGS = "settings"


@dataclass(frozen=True)
class Close(Variant):
    code: CloseCode


@dataclass(frozen=True)
class Clock(Variant):
    unix_ms: U64


@dataclass(frozen=True)
class RunToNode(Variant):
    TAG: ClassVar[str] = "run"
    NEWTYPE: ClassVar[bool] = True
    message: ToKeeper


@dataclass(frozen=True)
class RunToGateway(Variant):
    TAG: ClassVar[str] = "run"
    NEWTYPE: ClassVar[bool] = True
    message: FromKeeper


ToNode = Union[RunToNode, SampleNow, Ping, Pong, Goodbye, Close]
ToGateway = Union[RunToGateway, Telemetry, Ping, Pong, Goodbye, Close, Clock]

GATEWAY_PROOF: Codec[GatewayProof] = Codec(GatewayProof)
NODE_PROOF: Codec[NodeProof] = Codec(NodeProof)
INTRODUCTION: Codec[Introduction] = Codec(Introduction)
VERDICT: Codec[Verdict] = Codec(Verdict)
TO_NODE: Codec[ToNode] = Codec(ToNode)
TO_GATEWAY: Codec[ToGateway] = Codec(ToGateway)
TO_KEEPER: Codec[ToKeeper] = Codec(ToKeeper)
ENDING: Codec[Ending] = Codec(Ending)
