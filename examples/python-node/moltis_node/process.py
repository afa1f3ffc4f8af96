"""A child process from its start to its ending, with its pipes (docs/protocol.md, 6, Ending, Stdin and Cancel)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from .messages import Ending, ExitCode, ExitSignal, Outcome, Stream

READ_BYTES = 64 * 1024
HELD_OPEN_SECONDS_MAX = 2.0
"""How long processes in the background may hold an output open behind the command's end."""
GROUP_POLL_SECONDS = 0.02
LAST_BYTES_MAX = 1024 * 1024
"""What a pipe can hold at most when the command ends (fcntl(2), F_SETPIPE_SZ)."""


class OutputPipe:
    """Reads one output of the command whenever somebody has room for it."""

    def __init__(self, pipe: IO[bytes], take: Callable[[bytes], None]) -> None:
        self._pipe = pipe
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self.end = asyncio.Event()
        os.set_blocking(pipe.fileno(), False)
        self.resume()

    def pause(self) -> None:
        """Lets the command wait at a full pipe."""
        if self._reading:
            self._loop.remove_reader(self._pipe)
            self._reading = False

    def resume(self) -> None:
        if not self._reading and not self.end.is_set():
            self._loop.add_reader(self._pipe, self._read)
            self._reading = True

    def _read(self) -> bool:
        try:
            data = os.read(self._pipe.fileno(), READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close()
            return False
        self._take(data)
        return True

    def finish(self) -> bool:
        """Takes what lies in the pipe, and reads no more; returns whether somebody still holds it open."""
        for _ in range(LAST_BYTES_MAX // READ_BYTES):
            if self.end.is_set() or not self._read():
                break
        if self.end.is_set():
            return False
        self._close()
        return True

    def _close(self) -> None:
        self.pause()
        self._pipe.close()
        self.end.set()


class InputPipe:
    """Writes to the command what the gateway sends, as fast as the command reads."""

    def __init__(self, pipe: IO[bytes], taken: Callable[[], None]) -> None:
        self._pipe = pipe
        self._taken = taken
        self._loop = asyncio.get_running_loop()
        self._waiting = bytearray()
        self._eof = False
        self.offset = 0
        """Bytes that the command's pipe has taken."""
        self.closed = False
        os.set_blocking(pipe.fileno(), False)

    @property
    def received(self) -> int:
        """The offset behind the last byte that came."""
        return self.offset + len(self._waiting)

    def write(self, data: bytes, eof: bool) -> None:
        if self.closed:
            return
        self._waiting += data
        self._eof = self._eof or eof
        self._loop.add_writer(self._pipe, self._write)

    def _write(self) -> None:
        try:
            count = os.write(self._pipe.fileno(), self._waiting) if self._waiting else 0
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more
            self.close()
            return
        del self._waiting[:count]
        self.offset += count
        if self._waiting:
            self._taken()
            return
        self._loop.remove_writer(self._pipe)
        if self._eof:
            self.close()
        else:
            self._taken()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._waiting.clear()
        self._loop.remove_writer(self._pipe)
        self._pipe.close()
        self._taken()


class Process:
    """One command that runs: its group is signalled as a whole, and its leader is reaped last of all.

    As long as the leader is a zombie its number belongs to nobody else, so no signal can hit a stranger.
    """

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        take: Callable[[Stream, bytes], None],
        stdin_taken: Callable[[], None],
    ) -> None:
        if child.stdout is None or child.stderr is None:
            raise ValueError("a child without pipes")
        self._child = child
        self.pid = child.pid
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self.outputs = {
            Stream.STDOUT: OutputPipe(child.stdout, partial(take, Stream.STDOUT)),
            Stream.STDERR: OutputPipe(child.stderr, partial(take, Stream.STDERR)),
        }
        self.stdin = InputPipe(child.stdin, stdin_taken) if child.stdin is not None else None
        self._stopping = False
        self._stopped_as: Outcome | None = None
        self._kill_at = float("inf")
        self._kill_timer: asyncio.TimerHandle | None = None
        self._seen: dict[int, int] = {}
        self._over = False
        self.is_draining = False
        """Whether the command has ended and its last output is being read."""

    def signal(self, number: int) -> None:
        """Signals the process group; a number that the kernel does not know is ignored."""
        if self._over:
            return
        try:
            os.killpg(self.pid, number)
        except (OSError, ValueError):
            return

    def stop(self, outcome: Outcome | None, grace_seconds: float) -> None:
        """Ends the command: SIGTERM, and SIGKILL after the grace. A second call can only shorten the grace.

        `outcome` says on whose word; without one the ending is what the kernel says. A command that has ended
        keeps its ending.
        """
        if self._over or (self._leader_has_exited() and not self._stopping):
            return
        if not self._stopping:
            self._stopping, self._stopped_as = True, outcome
            self._seen = descendants(self.pid)
            self.signal(signal.SIGTERM)
        self._kill_at = min(self._kill_at, self._loop.time() + grace_seconds)
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._kill_timer = self._loop.call_at(self._kill_at, self._kill)

    def _kill(self) -> None:
        self._seen.update(descendants(self.pid))
        self.signal(signal.SIGKILL)

    def _leader_has_exited(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    async def ending(self, timeout_seconds: float | None, grace_seconds: float) -> Ending:
        """Returns how the command ended; it is timed out `timeout_seconds` after now."""
        timer = None
        if timeout_seconds is not None:
            timer = self._loop.call_later(timeout_seconds, self.stop, Outcome.TIMED_OUT, grace_seconds)
        await self._leader_exit()
        if timer is not None:
            timer.cancel()
        if self._stopping:
            await self._group_end()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        held_open = await self._outputs_end()
        survivors = held_open or self._survive()
        self._over = True
        if self.stdin is not None:
            self.stdin.close()
        return self._told(self._child.wait(), survivors)

    async def _group_end(self) -> None:
        """Gives the rest of the group what is left of the grace."""
        while self._loop.time() < self._kill_at and any(
            process.group == self.pid and process.alive for process in processes()
        ):
            await asyncio.sleep(GROUP_POLL_SECONDS)
        self._kill()

    async def _leader_exit(self) -> None:
        exited = asyncio.Event()
        descriptor = os.pidfd_open(self.pid)
        self._loop.add_reader(descriptor, exited.set)
        try:
            await exited.wait()
        finally:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)

    async def _outputs_end(self) -> bool:
        """Reads the last output; returns whether somebody still holds one open."""
        self.is_draining = True
        ends = [asyncio.ensure_future(output.end.wait()) for output in self.outputs.values()]
        for output in self.outputs.values():
            output.resume()
        await asyncio.wait(ends, timeout=HELD_OPEN_SECONDS_MAX)
        for end in ends:
            end.cancel()
        return any([output.finish() for output in self.outputs.values()])

    def _survive(self) -> bool:
        """Says whether processes of this run live on: in its session, or seen below it when it was ended."""
        return any(
            process.alive
            and process.pid != self.pid
            and (process.session == self.pid or self._seen.get(process.pid) == process.started)
            for process in processes()
        )

    def _told(self, returned: int, survivors: bool) -> Ending:
        by_itself = Outcome.SIGNALED if returned < 0 else Outcome.EXITED
        return Ending(
            outcome=self._stopped_as or by_itself,
            reason=None,
            status=ExitSignal(-returned) if returned < 0 else ExitCode(returned),
            detail="",
            duration_ms=int((self._loop.time() - self._started_at) * 1000),
            descendants_may_survive=survivors,
        )


class ProcessInfo:
    """One line of /proc/<pid>/stat (proc(5))."""

    def __init__(self, line: str) -> None:
        head, _, tail = line.rpartition(")")  # a name may hold anything
        fields = tail.split()
        self.pid = int(head.split(" ", 1)[0])
        self.alive = fields[0] not in "ZXx"
        self.parent = int(fields[1])
        self.group = int(fields[2])
        self.session = int(fields[3])
        self.started = int(fields[19])


def processes() -> list[ProcessInfo]:
    """Returns every process of this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found.append(ProcessInfo((folder / "stat").read_text("utf-8", "replace")))
            except OSError:  # it ended while we looked
                continue
    return found


def descendants(root: int) -> dict[int, int]:
    """Returns the start times of all processes below `root`, by number."""
    children: dict[int, list[ProcessInfo]] = {}
    for process in processes():
        children.setdefault(process.parent, []).append(process)
    found: dict[int, int] = {}
    waiting = [root]
    while waiting:
        for process in children.get(waiting.pop(), []):
            found[process.pid] = process.started
            waiting.append(process.pid)
    return found
