"""One connection after `accepted`, until it ends (docs/protocol.md, 5 to 7).

Four tasks share it: one reads, one writes, one keeps the heart beating, one takes samples. Only the writer touches the
channel, so frames are numbered in the order in which they leave.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from .channel import PLAINTEXT_BYTES_MAX
from .codec import Id
from .errors import Advice, Final, HandshakeError, ProtocolError
from .messages import (
    TO_GATEWAY,
    TO_NODE,
    Accepted,
    Ack,
    Attach,
    Cancel,
    Clock,
    Close,
    CloseCode,
    Forget,
    FromKeeper,
    Gap,
    Goodbye,
    GoodbyeReason,
    Leave,
    Outcome,
    Output,
    Ping,
    Pong,
    Resume,
    RunToGateway,
    RunToNode,
    SampleNow,
    Signal,
    Start,
    StdinBytes,
    Stream,
    ToGateway,
    ToKeeper,
    ToNode,
)
from .messages import Runs as RunsPage
from .messages import Telemetry as TelemetryMessage
from .runs import Nobody, Run, Runs, ended_message
from .spool import Hole
from .telemetry import Telemetry

PAGE_RUNS_MAX = 100
"""A summary is at most 400 bytes in JSON, so a page stays below 48 KiB."""
JSON_CHUNK_BYTES_MAX = (PLAINTEXT_BYTES_MAX - 512) * 3 // 4
"""What fits into a frame in base64, beside the names around it."""
LEDGER_WITH_CLOCK = 2
OUTBOX_MAX = 4_096
"""Answers that wait for the socket; a gateway that asks for more without reading is closed."""
ROAD_SECONDS = 5.0
ROAD_BYTES_MIN = 64 * 1024
CLOSE_SECONDS_MAX = 2.0


def boot_seconds() -> float:
    """Returns the seconds since the boot, those asleep among them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Frames(Protocol):
    """What a link needs of a channel."""

    async def send(self, plaintext: bytes) -> None: ...

    async def receive(self) -> bytes: ...


class SilenceError(ProtocolError):
    """The gateway was silent for too long."""


class SleptError(ProtocolError):
    """This machine slept, and what is buffered is from before."""


class Road:
    """How much may be under way: what was acknowledged within the last five seconds (section 6, Output)."""

    def __init__(self) -> None:
        self._acknowledged: deque[tuple[float, int]] = deque()
        self._sum = 0

    def acknowledged(self, count: int) -> None:
        self._acknowledged.append((time.monotonic(), count))
        self._sum += count

    def bytes_max(self) -> int:
        since = time.monotonic() - ROAD_SECONDS
        while self._acknowledged and self._acknowledged[0][0] < since:
            self._sum -= self._acknowledged.popleft()[1]
        return max(ROAD_BYTES_MIN, self._sum)


class Cursor:
    """How far the gateway has been told of one run on this connection."""

    def __init__(self, run: Run, offsets: dict[Stream, int]) -> None:
        self.run = run
        self.sent = dict(offsets)
        self.acknowledged = dict(offsets)
        self._resumed = dict(offsets)
        self._ended_is_sent = False
        self._order = list(Stream)

    @property
    def under_way(self) -> int:
        return sum(self.sent[stream] - self.acknowledged[stream] for stream in Stream)

    def next_message(self, bytes_max: int) -> FromKeeper | None:
        """Returns output, the hole in it, or the ending behind it; nothing when there is nothing to send now."""
        if bytes_max > 0:
            self._order.reverse()  # neither stream waits for the other
            for stream in self._order:
                message = self._next_of(stream, bytes_max)
                if message is not None:
                    return message
        if self._ended_is_sent or any(self.sent[stream] < spool.total for stream, spool in self.run.spools.items()):
            return None
        ended = ended_message(self.run, self._resumed)
        self._ended_is_sent = ended is not None
        return ended

    def _next_of(self, stream: Stream, bytes_max: int) -> FromKeeper | None:
        offset = self.sent[stream]
        found = self.run.spools[stream].read(offset, bytes_max)
        if isinstance(found, Hole):
            self.sent[stream] = found.to
            self.acknowledged[stream] = max(self.acknowledged[stream], found.to)  # a hole takes no room in the window
            return Gap(self.run.run_id, stream, offset, found.to, found.reason)
        if not found:
            return None
        self.sent[stream] += len(found)
        return Output(self.run.run_id, stream, offset, found)

    def acknowledge(self, offsets: dict[Stream, int]) -> int:
        """Takes an `ack`; returns how many bytes it is about that none was about before."""
        count = 0
        for stream, offset in offsets.items():
            if offset > self.sent[stream]:
                raise ProtocolError(f"`ack` of {stream.value} up to {offset}, and {self.sent[stream]} were sent")
            if offset > self.acknowledged[stream]:
                count += offset - self.acknowledged[stream]
                self.acknowledged[stream] = offset
            self.run.acknowledge(stream, offset)
        return count


class Link:
    """The connection of a node that the gateway has accepted."""

    def __init__(self, channel: Frames, accepted: Accepted, runs: Runs, boot_id: Id, journal_id: Id) -> None:
        self._channel = channel
        self._windows = accepted.windows
        self._limits = accepted.limits
        self._ledger = accepted.ledger
        self._runs = runs
        self._boot_id = boot_id
        self._journal_id = journal_id
        self._telemetry: Telemetry | None = None
        self._outbox: deque[ToGateway] = deque()
        self._cursors: dict[Id, Cursor] = {}
        self._road = Road()
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._heard_at = boot_seconds()
        self._pings = 0

    async def run(self, telemetry: Telemetry) -> None:
        """Speaks until the connection ends, always with an exception that says why."""
        self._telemetry = telemetry
        self._outbox.extend(RunToGateway(page) for page in self._pages())
        self._runs.listener = self
        jobs = [self._read(), self._write(), self._beat(), self._take_samples()]
        reader, *others = tasks = [asyncio.ensure_future(job) for job in jobs]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if others[0] in done:  # the socket is closed, but the gateway may have said why
                await asyncio.wait([reader], timeout=CLOSE_SECONDS_MAX)
        finally:
            self._runs.listener = Nobody()
            for run in self._runs:
                run.attach(False)
            ends = await self._end(tasks)
        raise ends

    async def _end(self, tasks: list[asyncio.Task[None]]) -> BaseException:
        """Stops the tasks, tells the gateway what it did wrong, and returns why the connection ended."""
        why = next((task.exception() for task in tasks if task.done() and not task.cancelled()), None)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(why, ProtocolError):
            codes = {SilenceError: CloseCode.SILENCE, SleptError: CloseCode.SLEPT}
            await self._say_last(Close(codes.get(type(why), CloseCode.PROTOCOL)))
        return why or HandshakeError("the connection was given up")

    async def leave(self) -> None:
        """Sends what is left of the runs, then `goodbye`; the caller closes."""
        if await self._drain():
            self._post(Goodbye(GoodbyeReason.SHUTDOWN, 0))
            await self._drain()

    async def _drain(self) -> bool:
        """Waits until there is nothing to send now; returns whether that came in time."""
        self._drained.clear()
        self._wake.set()
        try:
            await asyncio.wait_for(self._drained.wait(), CLOSE_SECONDS_MAX)
        except asyncio.TimeoutError:
            return False
        return True

    async def _say_last(self, message: ToGateway) -> None:
        try:
            await asyncio.wait_for(self._channel.send(TO_GATEWAY.encode(message)), CLOSE_SECONDS_MAX)
        except Exception:  # the gateway has gone, or does not read: it will see the end of the connection
            return

    # ---- what the gateway hears

    def say(self, message: FromKeeper) -> None:
        self._post(RunToGateway(message))

    def changed(self) -> None:
        self._wake.set()

    def _post(self, message: ToGateway) -> None:
        self._outbox.append(message)
        self._wake.set()

    def _pages(self) -> Iterable[RunsPage]:
        summaries = [run.summary() for run in self._runs]
        starts = range(0, max(1, len(summaries)), PAGE_RUNS_MAX)
        for start in starts:
            page = tuple(summaries[start : start + PAGE_RUNS_MAX])
            yield RunsPage(self._boot_id, (self._journal_id,), page, last=start == starts[-1])

    async def _write(self) -> None:
        while True:
            self._wake.clear()
            message = self._outbox.popleft() if self._outbox else self._next_output()
            if message is None:
                self._drained.set()
                await self._wake.wait()
            else:
                await self._channel.send(TO_GATEWAY.encode(message))
                # The reader's turn: a write to a socket that the gateway has closed throws away its last words.
                await asyncio.sleep(0)

    def _next_output(self) -> ToGateway | None:
        """Returns the next message of the run whose turn it is, within all windows."""
        under_way = sum(cursor.under_way for cursor in self._cursors.values())
        room = min(self._windows.connection_bytes, self._road.bytes_max()) - under_way
        room = min(room, self._windows.chunk_bytes_max, JSON_CHUNK_BYTES_MAX)
        for run_id, cursor in list(self._cursors.items()):
            message = cursor.next_message(min(room, self._windows.run_bytes - cursor.under_way))
            if message is not None:
                self._cursors[run_id] = self._cursors.pop(run_id)  # to the end of the queue
                return RunToGateway(message)
        return None

    # ---- what the gateway says

    async def _read(self) -> None:
        while True:
            frame = await self._channel.receive()
            now = boot_seconds()
            if now - self._heard_at > self._limits.silence_max_ms / 1000:
                raise SleptError("this machine slept")
            self._heard_at = now
            self._handle(TO_NODE.decode(frame))
            if len(self._outbox) > OUTBOX_MAX:
                raise ProtocolError("the gateway asks and does not read the answers")

    def _handle(self, message: ToNode) -> None:
        if isinstance(message, RunToNode):
            self._handle_run(message.message)
        elif isinstance(message, SampleNow):
            self._post_sample()
        elif isinstance(message, Ping):
            self._post(Pong(message.number))
        elif isinstance(message, Goodbye):
            raise Advice(f"the gateway leaves ({message.reason.value})", message.back_in_ms / 1000)
        elif isinstance(message, Close):
            self._handle_close(message.code)

    def _handle_close(self, code: CloseCode) -> None:
        if code is CloseCode.REVOKED:
            raise Final("the gateway has revoked this node")
        if code is CloseCode.SUPERSEDED:
            raise HandshakeError("another connection of this node took over: does a copy of its key run elsewhere?")
        raise HandshakeError(f"the gateway closes the connection ({code.value})")

    def _handle_run(self, message: ToKeeper) -> None:
        if isinstance(message, (Attach, Leave)):
            raise ProtocolError(f"`{type(message).__name__.lower()}` is not for this wire")
        run = self._runs.get(message.run_id)
        if isinstance(message, Start):
            started = self._runs.start(message)
            if started is not None:
                self._follow(started, {stream: 0 for stream in Stream})
        elif run is None:
            return  # it crossed our `refused`, or a `forget` of the gateway's own
        elif isinstance(message, Resume):
            self._follow(run, {Stream.STDOUT: message.stdout, Stream.STDERR: message.stderr})
            run.acknowledge_stdin()
        elif isinstance(message, Ack):
            self._acknowledge(message)
        elif isinstance(message, StdinBytes):
            if not run.write_stdin(message, self._windows.stdin_bytes):
                raise ProtocolError("`stdin` with a hole, or beyond its window")
        elif isinstance(message, Signal):
            run.signal(message.signal)
        elif isinstance(message, Cancel):
            run.stop(Outcome.CANCELLED, message.grace_ms / 1000)
        elif isinstance(message, Forget):
            self._runs.forget(message.run_id)
            self._cursors.pop(message.run_id, None)

    def _follow(self, run: Run, offsets: dict[Stream, int]) -> None:
        if not run.wrote(offsets):
            raise ProtocolError("`resume` beyond what the command wrote")
        self._cursors[run.run_id] = Cursor(run, offsets)
        run.attach(True)
        for stream, offset in offsets.items():
            run.acknowledge(stream, offset)
        self.changed()

    def _acknowledge(self, message: Ack) -> None:
        cursor = self._cursors.get(message.run_id)
        if cursor is not None:
            offsets = {Stream.STDOUT: message.stdout, Stream.STDERR: message.stderr}
            self._road.acknowledged(cursor.acknowledge(offsets))
            self.changed()

    # ---- life

    async def _beat(self) -> None:
        """Asks a silent gateway for a sign of life, and gives up when none comes."""
        ping_after, silence_max = self._limits.ping_after_ms / 1000, self._limits.silence_max_ms / 1000
        while True:
            heard_at = self._heard_at
            await asyncio.sleep(ping_after)
            while self._heard_at == heard_at:
                silent = boot_seconds() - heard_at
                if silent >= silence_max:
                    raise SilenceError(f"the gateway was silent for {silent:.0f} s")
                self._pings += 1
                self._post(Ping(self._pings))
                await asyncio.sleep(max(0.05, min(ping_after, silence_max - silent)))

    async def _take_samples(self) -> None:
        while True:
            self._post_sample()
            if self._ledger >= LEDGER_WITH_CLOCK:
                self._post(Clock(int(time.time() * 1000)))
            await asyncio.sleep(self._limits.telemetry_interval_ms / 1000)

    def _post_sample(self) -> None:
        if self._telemetry is not None:
            self._post(TelemetryMessage(self._telemetry.sample()))
