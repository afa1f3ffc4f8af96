"""A run from its start to its ending, and all runs of this node (docs/protocol.md, 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

from .codec import Id
from .command import CannotStart, Settings, refusal_of, spawn
from .journal import Entry, Journal
from .messages import (
    Ended,
    Ending,
    FromKeeper,
    GapReason,
    HasEnded,
    Outcome,
    Reason,
    Running,
    RunRefusal,
    RunRefused,
    Spec,
    Start,
    Started,
    State,
    StdinAck,
    StdinBytes,
    Stream,
    Summary,
    TimeoutTooLong,
    Totals,
)
from .process import Process, processes
from .spool import Spool

RUNS_MAX = 1_024
"""Runs that are held at once, ended ones among them."""
RUNNING_MAX = 128
BACKLOG_BYTES_MAX = 4 * 1024 * 1024
"""Unacknowledged bytes of a stream that the gateway listens to; a faster command waits for it."""
AWAY_BYTES_MAX = 256 * 1024 * 1024
"""The same while nobody listens: commands go on through a cut, and wait when this is used up."""
LEAVING_GRACE_SECONDS = 5.0


class Listener(Protocol):
    """The connection that is up."""

    def say(self, message: FromKeeper) -> None:
        """Sends a message about a run, before more of its output."""

    def changed(self) -> None:
        """Hears that a run has new output or has ended."""


class Nobody:
    """Listens while no connection is up: what is said now is asked for again on the next one."""

    def say(self, message: FromKeeper) -> None:
        pass

    def changed(self) -> None:
        pass


class Run:
    """One command: it runs, or it is over and the gateway has not said `forget` yet."""

    def __init__(self, entry: Entry, journal: Journal, boot_id: Id, listener: Callable[[], Listener]) -> None:
        self.entry = entry
        self.is_from_before = entry.boot_id != boot_id
        """Whether the machine was started anew since, and the files may have lost their ends."""
        self._journal = journal
        self._listener = listener
        folder = journal.folder_of(entry.run_id)
        self.spools = {stream: Spool(folder, stream) for stream in Stream}
        self._process: Process | None = None
        self._attached = False
        if entry.totals is not None:
            self._complete(entry.totals)

    @property
    def run_id(self) -> Id:
        return self.entry.run_id

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def wrote(self, offsets: dict[Stream, int]) -> bool:
        """Says whether a gateway can have so much of the output; of a run before a power cut that is not known."""
        return self.is_from_before or all(offsets[stream] <= spool.total for stream, spool in self.spools.items())

    @property
    def totals(self) -> Totals:
        return Totals(self.spools[Stream.STDOUT].total, self.spools[Stream.STDERR].total)

    def summary(self) -> Summary:
        stdin = self._process.stdin.offset if self._process and self._process.stdin else 0
        state = Running(self._process.pid) if self._process else HasEnded()
        return Summary(self.run_id, self.entry.digest, self._journal.id, state, self.totals, stdin)

    # ---- its life

    def spawn(self, spec: Spec, settings: Settings) -> asyncio.Task[None] | None:
        """Starts the command and says `started`, or ends the run as `failed_to_start`."""
        try:
            child = spawn(spec, settings)
        except CannotStart as error:
            self._end(ending_without_process(Outcome.FAILED_TO_START, error.reason, str(error)))
            return None
        self._process = Process(child, self._take, self.acknowledge_stdin)
        self._journal.spawned(self.entry, child.pid)
        self._listener().say(Started(self.run_id, child.pid))
        timeout_ms = spec.timeout_ms if spec.timeout_ms is not None else settings.timeout_ms
        return asyncio.get_running_loop().create_task(self._watch(self._process, timeout_ms, spec.grace_ms))

    async def _watch(self, process: Process, timeout_ms: int, grace_ms: int) -> None:
        self._end(await process.ending(timeout_ms / 1000 if timeout_ms else None, grace_ms / 1000))

    def _end(self, ending: Ending) -> None:
        self._process = None
        totals = {stream: spool.total for stream, spool in self.spools.items()}
        self._journal.ended(self.entry, ending, totals)
        self._complete(totals)
        self._listener().changed()

    def _complete(self, totals: dict[Stream, int]) -> None:
        lost_by = GapReason.POWER_CUT if self.is_from_before else GapReason.KEEPER_DIED
        for stream, spool in self.spools.items():
            spool.complete(totals[stream], lost_by)

    def end_as_lost(self) -> None:
        """Says the truth of a run whose node died while it ran: how it ended is not known."""
        if self.is_from_before:
            words = "the node's machine was started anew while the command ran"
            self._end(ending_without_process(Outcome.LOST, Reason.NODE_REBOOTED, words))
            return
        if self.entry.pid is None:
            words = "the node died before it had started the command"
            self._end(ending_without_process(Outcome.LOST, Reason.KEEPER_DIED, words))
            return
        alive = any(process.alive and process.session == self.entry.pid for process in processes())
        words = "the node died while the command ran" + (", which lives on without it" if alive else "")
        self._end(ending_without_process(Outcome.LOST, Reason.KEEPER_DIED, words, survives=alive))

    def stop(self, outcome: Outcome | None, grace_seconds: float) -> None:
        if self._process is not None:
            self._process.stop(outcome, grace_seconds)

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.signal(number)

    # ---- its output

    def _take(self, stream: Stream, data: bytes) -> None:
        self.spools[stream].append(data)
        self._balance()
        self._listener().changed()

    def attach(self, attached: bool) -> None:
        """Says whether the gateway listens to this run now."""
        self._attached = attached
        self._balance()

    def acknowledge(self, stream: Stream, offset: int) -> None:
        self.spools[stream].acknowledge(offset)
        self._balance()

    def _balance(self) -> None:
        """Lets a stream with too much backlog wait in its pipe, and another go on."""
        if self._process is None:
            return
        may_wait = self._attached and not self._process.is_draining
        bytes_max = BACKLOG_BYTES_MAX if may_wait else AWAY_BYTES_MAX
        for stream, output in self._process.outputs.items():
            if self.spools[stream].unacknowledged >= bytes_max:
                output.pause()
            else:
                output.resume()

    # ---- its stdin

    def write_stdin(self, message: StdinBytes, bytes_max: int) -> bool:
        """Takes bytes for the command; returns whether they were in order and within the window."""
        if self._process is None:
            return True  # it crossed the ending
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            self.acknowledge_stdin()
            return True
        if message.offset > stdin.received or message.offset + len(message.bytes_) > stdin.offset + bytes_max:
            return False
        stdin.write(message.bytes_[stdin.received - message.offset :], message.eof)
        return True

    def acknowledge_stdin(self) -> None:
        """Says how much the command has taken; a gateway that does not listen hears it when it resumes."""
        if self._process is not None and self._attached:
            stdin = self._process.stdin
            self._listener().say(StdinAck(self.run_id, stdin.offset if stdin else 0, stdin is None or stdin.closed))


def ending_without_process(outcome: Outcome, reason: Reason | None, words: str, *, survives: bool = False) -> Ending:
    """Returns an ending that the kernel gave no status for."""
    return Ending(outcome, reason, None, words, 0, survives)


class Runs:
    """All runs of this node. They outlive every connection."""

    def __init__(self, journal: Journal, settings: Settings, boot_id: Id) -> None:
        self._journal = journal
        self._settings = settings
        self._boot_id = boot_id
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False
        self.listener: Listener = Nobody()
        self._runs = {entry.run_id: self._run(entry) for entry in journal.entries.values()}
        for run in self._runs.values():
            if run.entry.ending is None:
                run.end_as_lost()

    def _run(self, entry: Entry) -> Run:
        return Run(entry, self._journal, self._boot_id, lambda: self.listener)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def get(self, run_id: Id) -> Run | None:
        return self._runs.get(run_id)

    def start(self, message: Start) -> Run | None:
        """Obeys a start once; returns the run when it is a new one. The answer goes to the listener."""
        known = self._runs.get(message.run_id)
        if known is not None:
            same = known.entry.digest == message.digest
            refused = RunRefused(message.run_id, RunRefusal.DIGEST_MISMATCH)
            self.listener.say(State(known.summary()) if same else refused)
            return None
        refusal = self._refusal_of(message)
        if refusal is not None:
            self.listener.say(RunRefused(message.run_id, refusal))
            return None
        entry = Entry(message.run_id, message.digest, self._boot_id)
        try:
            self._journal.begin(entry)
        except OSError:
            self.listener.say(RunRefused(message.run_id, RunRefusal.JOURNAL_FAILED))
            return None
        run = self._runs[message.run_id] = self._run(entry)
        task = run.spawn(message.spec, self._settings)
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return run

    def _refusal_of(self, message: Start) -> RunRefusal | TimeoutTooLong | None:
        if self._journal.has_forgotten(message.run_id):
            return RunRefusal.FORGOTTEN
        if self._leaving:
            return RunRefusal.LEAVING
        refusal = refusal_of(message.spec, self._settings)
        if refusal is None and (len(self._runs) >= RUNS_MAX or len(self._tasks) >= RUNNING_MAX):
            return RunRefusal.TOO_MANY
        return refusal

    def forget(self, run_id: Id) -> None:
        """Frees a run that is over; a run that goes on is not forgotten."""
        run = self._runs.get(run_id)
        if run is not None and not run.is_running:
            self._journal.forget(run_id)
            del self._runs[run_id]

    async def leave(self) -> None:
        """Ends every command and starts no more: this node holds its commands' pipes and cannot leave without them."""
        self._leaving = True
        for run in self:
            run.stop(None, LEAVING_GRACE_SECONDS)
        if self._tasks:
            await asyncio.wait(self._tasks)


def ended_message(run: Run, resumed: dict[Stream, int]) -> Ended | None:
    """Returns the ending to send, or nothing while the command runs.

    After a power cut the files may hold less than the gateway has: what it has is the truth then.
    """
    if run.entry.ending is None:
        return None
    totals = {stream: max(spool.total, resumed[stream]) for stream, spool in run.spools.items()}
    return Ended(run.run_id, run.entry.ending, Totals(totals[Stream.STDOUT], totals[Stream.STDERR]))
