"""The output of one stream that the gateway may still want, in files (docs/protocol.md, 6, Output).

A stream lies in segments named by the offset of their first byte. A segment is deleted when all of it lies below
what `ACKNOWLEDGED_BYTES_KEPT` of acknowledged output covers, so a run of weeks needs no more room than its backlog.
Files outlive this process: a node that crashed still hands over what its commands wrote.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from .messages import GapReason, Stream

SEGMENT_BYTES = 1024 * 1024
ACKNOWLEDGED_BYTES_KEPT = 64 * 1024


@dataclass
class Segment:
    path: Path
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True)
class Hole:
    """Bytes up to `to` that nobody has any more."""

    to: int
    reason: GapReason


class Spool:
    """One stream of one run, numbered by byte offset from 0."""

    def __init__(self, folder: Path, stream: Stream) -> None:
        """Takes up what an earlier process left in `folder`."""
        self._folder = folder
        self._stream = stream
        found = sorted((int(path.name.split("-")[1]), path) for path in folder.glob(f"{stream.value}-*"))
        self._segments = [Segment(path, start, path.stat().st_size) for start, path in found]
        self._broken: GapReason | None = None
        self.acknowledged = 0
        self.total = self._kept_end
        """All bytes that the command wrote, with those that could not be kept."""
        self._complete = False

    @property
    def _kept_end(self) -> int:
        return self._segments[-1].end if self._segments else 0

    @property
    def unacknowledged(self) -> int:
        """Bytes that lie here only because the gateway has not stored them."""
        return max(0, self._kept_end - self.acknowledged)

    def append(self, data: bytes) -> None:
        """Keeps what the command wrote; once the disk has failed, bytes are counted and become a hole at the end."""
        if self._broken is None:
            try:
                self._keep(data)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                self._broken = GapReason.DISK_FULL if full else GapReason.DISK_FAILED
        self.total += len(data)

    def _keep(self, data: bytes) -> None:
        if not self._segments or self._segments[-1].length >= SEGMENT_BYTES:
            path = self._folder / f"{self._stream.value}-{self.total:016}"
            self._segments.append(Segment(path, self.total, 0))
        last = self._segments[-1]
        with last.path.open("ab") as file:
            file.write(data)
        last.length += len(data)

    def read(self, offset: int, length_max: int) -> bytes | Hole:
        """Returns bytes from `offset` on, none when there are none yet, or the hole that begins there."""
        for segment in self._segments:
            if offset < segment.start:
                return Hole(segment.start, GapReason.FREED)
            if offset < segment.end:
                with segment.path.open("rb") as file:
                    file.seek(offset - segment.start)
                    return file.read(min(length_max, segment.end - offset))
        if self._complete and self._broken is not None and offset < self.total:
            return Hole(self.total, self._broken)
        return b""

    def complete(self, total: int, otherwise: GapReason) -> None:
        """Says that the command has ended and wrote `total`; what is missing here is gone because of `otherwise`."""
        self.total = max(self.total, total)
        self._complete = True
        if self._broken is None and self._kept_end < self.total:
            self._broken = otherwise

    def acknowledge(self, offset: int) -> None:
        """Frees what the gateway has stored, but the newest 64 KiB of it."""
        self.acknowledged = max(self.acknowledged, offset)
        while len(self._segments) > 1 and self._segments[0].end <= self.acknowledged - ACKNOWLEDGED_BYTES_KEPT:
            self._segments.pop(0).path.unlink(missing_ok=True)
