"""Dials the gateway, for ever (docs/protocol.md, 1, 4 and 7)."""

from __future__ import annotations

import asyncio
import random
import secrets
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from . import VERSION
from .channel import FRAME_BYTES_MAX, SUBPROTOCOL, open_channel
from .codec import Id
from .errors import Advice, Final, HandshakeError, ProtocolError, Waiting
from .handshake import Asking, Caller, await_verdict, prove
from .identity import Identity, StateDir, fingerprint
from .journal import Journal
from .link import Link
from .messages import Accepted, Intent, Introduction, RateLimited, Refusal, Refused
from .runs import Runs
from .telemetry import Telemetry

BACKOFF_SECONDS_MIN = 0.5
BACKOFF_SECONDS_MAX = 60.0
HEALTHY_SECONDS = 60.0
WAITING_SECONDS = (30.0, 60.0)
"""Between two calls while somebody has to act who may be far away."""

FINAL_REFUSALS = {
    Refusal.REJECTED: "a person has rejected this node",
    Refusal.REVOKED: "this node's key is revoked",
    Refusal.KEY_MISMATCH: "the gateway knows this node id with another key",
    Refusal.OWN_KEY: "this node shows the gateway's own key",
    Refusal.VERSION: "the gateway does not speak this node's ledger",
}
WAITING_REFUSALS = {
    Refusal.PAIRING_OFF: "pairing is off; on the gateway type: moltis node pairing enable",
    Refusal.PENDING_FULL: "too many nodes wait for approval",
    Refusal.UNKNOWN: "the gateway does not know this node",
    Refusal.NODE_ID_IN_USE: "another node has this node id",
    Refusal.EXPIRED: "nobody approved this node in time",
}


def this_boot() -> Id:
    """Returns the kernel's id of this boot."""
    return Id(bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip().replace("-", "")))


class Backoff:
    """The waits between two calls: from 0.5 s to 60 s, jittered, anew after a healthy minute."""

    def __init__(self) -> None:
        self._seconds_max = BACKOFF_SECONDS_MIN

    def healthy(self) -> None:
        self._seconds_max = BACKOFF_SECONDS_MIN

    def next_seconds(self) -> float:
        self._seconds_max = min(2 * self._seconds_max, BACKOFF_SECONDS_MAX)
        return random.uniform(BACKOFF_SECONDS_MIN, self._seconds_max)


class Node:
    """A machine that a gateway runs commands on."""

    def __init__(
        self,
        url: str,
        state: StateDir,
        identity: Identity,
        introduction: Introduction,
        runs: Runs,
        journal: Journal,
        tell: Callable[[str], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._url = url
        self._state = state
        self._identity = identity
        self._introduction = introduction
        self._runs = runs
        self._journal = journal
        self._tell = tell
        self._tls = tls
        self._boot_id = this_boot()
        self._instance_id = Id(secrets.token_bytes(16))
        self._telemetry = Telemetry()
        self._intent = Intent.PAIR if identity.gateway_key is None else Intent.CONNECT
        self._asking: Asking | None = None
        self._link: Link | None = None

    async def run(self) -> None:
        """Connects again and again; raises Final when that is of no use."""
        backoff = Backoff()
        while True:
            started_at = time.monotonic()
            words, seconds = await self._connect_once(backoff)
            if time.monotonic() - started_at >= HEALTHY_SECONDS and self._asking is None:
                backoff.healthy()
            self._tell(f"{words}; dialling again in {seconds:.1f} s")
            await asyncio.sleep(seconds)

    async def leave(self) -> None:
        """Ends the commands, hands over what is left of them, and says goodbye."""
        await self._runs.leave()
        if self._link is not None:
            await self._link.leave()

    async def _connect_once(self, backoff: Backoff) -> tuple[str, float]:
        """Holds one connection from the first byte to the last; returns why it ended and how long to wait."""
        try:
            async with self._dial() as socket:
                await self._speak(socket)
        except InvalidStatus as error:
            retry_after = error.response.headers.get("Retry-After", "")
            words = f"the gateway answers with status {error.response.status_code}"
            if retry_after.isdigit():
                return words, spread(int(retry_after))
            return words, backoff.next_seconds()
        except Advice as advice:
            return str(advice), spread(advice.wait_seconds)
        except Waiting as error:
            return str(error), random.uniform(*WAITING_SECONDS)
        except ConnectionClosed as error:
            return f"the connection is cut ({error})", backoff.next_seconds()
        except (ProtocolError, HandshakeError, InvalidHandshake, OSError, asyncio.TimeoutError) as error:
            return f"no connection: {error or type(error).__name__}", backoff.next_seconds()
        return "the connection ended", backoff.next_seconds()

    def _dial(self) -> connect:
        return connect(
            self._url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            max_size=FRAME_BYTES_MAX,
            ping_interval=None,
            close_timeout=2,
            proxy=None,
            ssl=self._tls,
            user_agent_header=f"moltis-node-python/{VERSION}",
        )

    async def _speak(self, socket: ClientConnection) -> None:
        if socket.subprotocol != SUBPROTOCOL:
            raise HandshakeError(f"the gateway does not speak {SUBPROTOCOL}")
        channel = await open_channel(socket)
        caller = Caller(self._identity, self._instance_id, self._boot_id, self._introduction, self._intent)
        expected = self._asking.gateway_key if self._asking else None
        gateway, proof = await prove(channel, caller, expected)
        verdict = await await_verdict(channel, gateway, proof, self._ask)
        if isinstance(verdict, Refused):
            self._refused(verdict.code)
        elif isinstance(verdict, Accepted):
            self._accepted(gateway.gateway_key)
            self._link = Link(channel, verdict, self._runs, self._boot_id, self._journal.id)
            try:
                await self._link.run(self._telemetry)
            finally:
                self._link = None

    def _ask(self, asking: Asking) -> None:
        if asking == self._asking:
            return
        self._asking = asking
        self._tell(f"gateway's key: {fingerprint(asking.gateway_key)}")
        self._tell(f"connection code: {asking.code} (the gateway must show the same)")
        self._tell(f"waiting for approval; on the gateway type: moltis node approve {asking.request_id.hex()}")

    def _accepted(self, gateway_key: bytes) -> None:
        self._identity = self._state.pin(self._identity, gateway_key)
        self._intent = Intent.CONNECT
        self._asking = None
        self._tell(f"connected to {self._url}, whose key is {fingerprint(gateway_key)}")

    def _refused(self, code: Refusal | RateLimited) -> None:
        if isinstance(code, RateLimited):
            raise Advice("the gateway has too much to do", code.retry_ms / 1000)
        if code in FINAL_REFUSALS:
            raise Final(FINAL_REFUSALS[code])
        if code is Refusal.UNKNOWN:
            self._intent = Intent.PAIR  # its record was forgotten: ask a person again, with the pin as it is
        raise Waiting(WAITING_REFUSALS[code])


def spread(seconds: float) -> float:
    """Returns a wait that is at least the advised one, so that many nodes do not come back at once."""
    advised = max(seconds, BACKOFF_SECONDS_MIN)
    return advised + random.uniform(0, max(advised, 1.0) / 2)
