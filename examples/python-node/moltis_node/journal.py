"""What the node remembers of its runs, durably enough to survive itself (docs/protocol.md, 6, Starting).

A file of JSON lines. The first names the journal; the others say that a run was begun, has a process, ended, or was
forgotten. A journal that cannot be read is no journal any more: a new one begins under a new id, and the gateway
concludes from the missing id what became of the runs in the old one.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .codec import Bytes32, Id
from .errors import Final, ProtocolError
from .identity import write_atomically
from .messages import ENDING, Ending, Stream

FORGOTTEN_MAX = 10_000
"""Ids that are refused as forgotten: more than this node can use up in the 30 s in which a gateway repeats a start."""
LINES_MAX = 50_000
"""Lines after which the file is written anew."""


@dataclass
class Entry:
    """One run that is not forgotten."""

    run_id: Id
    digest: Bytes32
    boot_id: Id
    pid: int | None = None
    ending: Ending | None = None
    totals: dict[Stream, int] | None = None


class Journal:
    """The runs of this node, on disk before they are in memory."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "journal"
        self._runs_folder = folder / "runs"
        self.entries: dict[Id, Entry] = {}
        self._forgotten: dict[Id, None] = {}
        self.id = self._load()
        self._rewrite()
        self._sweep()

    def folder_of(self, run_id: Id) -> Path:
        """Returns where the output of a run lies."""
        return self._runs_folder / run_id.hex()

    def has_forgotten(self, run_id: Id) -> bool:
        return run_id in self._forgotten

    def begin(self, entry: Entry) -> None:
        """Remembers a run before anything of it exists. Raises OSError, and nothing is remembered then."""
        self.folder_of(entry.run_id).mkdir(mode=0o700, parents=True)
        self._append(_begun(entry))
        self.entries[entry.run_id] = entry

    def spawned(self, entry: Entry, pid: int) -> None:
        entry.pid = pid
        self._append_if_possible(_spawned(entry))

    def ended(self, entry: Entry, ending: Ending, totals: dict[Stream, int]) -> None:
        entry.ending, entry.totals = ending, totals
        self._append_if_possible(_ended(entry))

    def forget(self, run_id: Id) -> None:
        """Frees everything of a run but its id."""
        self._append_if_possible({"forgotten": run_id.hex()})
        self._note_forgotten(run_id)
        shutil.rmtree(self.folder_of(run_id), ignore_errors=True)

    def _append(self, line: dict[str, Any]) -> None:
        with self._file.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
        self._lines += 1

    def _append_if_possible(self, line: dict[str, Any]) -> None:
        """Writes down how a run went on. On a full disk this process still knows it, and the next one says `lost`."""
        try:
            self._append(line)
            if self._lines > LINES_MAX:
                self._rewrite()
        except OSError:
            return

    def _load(self) -> Id:
        try:
            lines = self._file.read_bytes().split(b"\n")
        except FileNotFoundError:
            return Id(secrets.token_bytes(16))
        except OSError as error:
            raise Final(f"cannot read the journal `{self._file}`: {error}") from error
        try:
            journal_id = Id(bytes.fromhex(json.loads(lines[0])["journal"]))
            for line in lines[1:-1]:  # what is behind the last newline was cut off by a crash
                self._replay(json.loads(line))
        except (ValueError, KeyError, TypeError, ProtocolError):
            self._file.replace(self._file.with_name("journal.unreadable"))
            self.entries.clear()
            self._forgotten.clear()
            return Id(secrets.token_bytes(16))
        return journal_id

    def _replay(self, line: dict[str, Any]) -> None:
        if "begun" in line:
            run_id = Id(bytes.fromhex(line["begun"]))
            digest = Bytes32(base64.b64decode(line["digest"]))
            self.entries[run_id] = Entry(run_id, digest, Id(bytes.fromhex(line["boot"])))
        elif "spawned" in line:
            self.entries[Id(bytes.fromhex(line["spawned"]))].pid = int(line["pid"])
        elif "ended" in line:
            entry = self.entries[Id(bytes.fromhex(line["ended"]))]
            entry.ending = ENDING.decode(json.dumps(line["ending"]).encode())
            entry.totals = {stream: int(line["totals"][stream.value]) for stream in Stream}
        else:
            self._note_forgotten(Id(bytes.fromhex(line["forgotten"])))

    def _note_forgotten(self, run_id: Id) -> None:
        self.entries.pop(run_id, None)
        self._forgotten[run_id] = None
        if len(self._forgotten) > FORGOTTEN_MAX:
            del self._forgotten[next(iter(self._forgotten))]

    def _rewrite(self) -> None:
        lines: list[dict[str, Any]] = [{"journal": self.id.hex()}]
        lines += [{"forgotten": run_id.hex()} for run_id in self._forgotten]
        for entry in self.entries.values():
            lines.append(_begun(entry))
            if entry.pid is not None:
                lines.append(_spawned(entry))
            if entry.ending is not None:
                lines.append(_ended(entry))
        write_atomically(self._file, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self._lines = len(lines)

    def _sweep(self) -> None:
        """Deletes the output of runs that nobody knows, and makes sure of a folder for each that is known."""
        self._runs_folder.mkdir(mode=0o700, exist_ok=True)
        for folder in self._runs_folder.iterdir():
            if folder.name not in {run_id.hex() for run_id in self.entries}:
                shutil.rmtree(folder, ignore_errors=True)
        for run_id in self.entries:
            self.folder_of(run_id).mkdir(mode=0o700, exist_ok=True)


def _begun(entry: Entry) -> dict[str, Any]:
    digest = base64.b64encode(entry.digest).decode("ascii")
    return {"begun": entry.run_id.hex(), "digest": digest, "boot": entry.boot_id.hex()}


def _spawned(entry: Entry) -> dict[str, Any]:
    return {"spawned": entry.run_id.hex(), "pid": entry.pid}


def _ended(entry: Entry) -> dict[str, Any]:
    if entry.ending is None or entry.totals is None:
        raise ValueError("a run that has not ended")
    totals = {stream.value: total for stream, total in entry.totals.items()}
    return {"ended": entry.run_id.hex(), "ending": json.loads(ENDING.encode(entry.ending)), "totals": totals}
