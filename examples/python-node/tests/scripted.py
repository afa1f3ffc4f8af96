"""A gateway in memory: what a link hears is scripted, what it says is read message by message."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

from moltis_node.command import Settings
from moltis_node.journal import Journal
from moltis_node.link import Link
from moltis_node.messages import TO_NODE, Accepted, Epoch, Limits, Windows
from moltis_node.node import this_boot
from moltis_node.runs import Runs
from moltis_node.telemetry import Telemetry

RUN_ID = "00112233445566778899aabbccddeeff"
DIGEST = "DQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0="
WINDOWS = Windows(run_bytes=1_048_576, connection_bytes=8_388_608, stdin_bytes=262_144, chunk_bytes_max=45_056)
LIMITS = Limits(telemetry_interval_ms=30_000, ping_after_ms=15_000, silence_max_ms=45_000)
SECONDS_MAX = 60.0


class Frames:
    """The two directions of a channel, without the cipher."""

    def __init__(self) -> None:
        self.to_node: asyncio.Queue[bytes] = asyncio.Queue()
        self.to_gateway: asyncio.Queue[bytes] = asyncio.Queue()

    async def send(self, plaintext: bytes) -> None:
        await self.to_gateway.put(plaintext)

    async def receive(self) -> bytes:
        return await self.to_node.get()


class NodeInMemory:
    """The runs of a node and its state folder; connections come and go."""

    def __init__(self, folder: Path, settings: Settings | None = None) -> None:
        self.folder = folder
        self.boot_id = this_boot()
        self._settings = settings or Settings("/", 0, ("BUILD_ID",))
        self.begin()

    def begin(self) -> None:
        """Starts the node's process; again, as after its death."""
        self.journal = Journal(self.folder)
        self.runs = Runs(self.journal, self._settings, self.boot_id)

    def connect(self, *, windows: Windows = WINDOWS, limits: Limits = LIMITS, ledger: int = 2) -> Gateway:
        return Gateway(self, Accepted(Epoch(1, 1), windows, limits, ledger))


class Gateway:
    """One connection, seen from its other end."""

    def __init__(self, node: NodeInMemory, accepted: Accepted) -> None:
        self._frames = Frames()
        self.link = Link(self._frames, accepted, node.runs, node.boot_id, node.journal.id)
        self.ended = asyncio.ensure_future(self.link.run(Telemetry()))

    def say(self, message: Any) -> None:
        """Sends a message as JSON would say it; it is checked against the page's types first."""
        text = json.dumps(message).encode()
        TO_NODE.decode(text)
        self._frames.to_node.put_nowait(text)

    def run(self, variant: str, **fields: Any) -> None:
        self.say({"run": {variant: {"run_id": RUN_ID, **fields}}})

    async def hear(self) -> Any:
        """Returns the next message."""
        return json.loads(await asyncio.wait_for(self._frames.to_gateway.get(), SECONDS_MAX))

    async def hear_run(self, variant: str) -> Any:
        """Returns the next message about a run, which is this variant; samples and clocks are passed over."""
        while True:
            message = await self.hear()
            if "run" in message:
                assert list(message["run"]) == [variant], message
                return message["run"][variant]

    async def hear_nothing_more(self) -> None:
        """Makes sure that all has been said: a ping is answered behind everything else."""
        self.say({"ping": {"number": 9}})
        while True:
            message = await self.hear()
            if message == {"pong": {"number": 9}}:
                return
            assert "run" not in message, message

    async def hear_output(self, stream: str = "stdout") -> tuple[bytes, Any]:
        """Acknowledges output up to the ending; returns the stream's bytes and the ending."""
        at = {"stdout": 0, "stderr": 0}
        data = b""
        while True:
            message = (await self.hear()).get("run", {})
            if "output" in message:
                output = message["output"]
                bytes_ = base64.b64decode(output["bytes"])
                at[output["stream"]] = output["offset"] + len(bytes_)
                data += bytes_ if output["stream"] == stream else b""
                self.run("ack", **at)
            elif "ended" in message:
                return data, message["ended"]

    async def cut(self) -> None:
        self.ended.cancel()
        await asyncio.wait([self.ended])


def spec(*argv: str, **changes: Any) -> dict[str, Any]:
    """Returns a spec as JSON would say it."""
    plain: dict[str, Any] = {
        "command": {"argv": list(argv)},
        "cwd": None,
        "env": {},
        "timeout_ms": None,
        "grace_ms": 5000,
        "stdin": "empty",
        "tty": None,
    }
    return {**plain, **changes}
