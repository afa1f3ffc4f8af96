"""A WebSocket that speaks Noise: one binary message is one frame (docs/protocol.md, 1 and 2)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from .errors import HandshakeError, ProtocolError
from .noise import Cipher, Initiator, prologue

SUBPROTOCOL = "moltis.node.v1+json"
FRAME_BYTES_MAX = 65_535
PLAINTEXT_BYTES_MAX = 65_519
HANDSHAKE_FRAME_BYTES_MAX = 4 * 1024
STEP_SECONDS_MAX = 10.0


class Socket(Protocol):
    """What a channel needs of a WebSocket."""

    async def send(self, message: bytes) -> None: ...

    async def recv(self) -> str | bytes: ...


class Channel:
    """Frames in both directions: one binary WebSocket message is one Noise message."""

    def __init__(self, socket: Socket, sending: Cipher, receiving: Cipher, h: bytes) -> None:
        self._socket = socket
        self._sending = sending
        self._receiving = receiving
        self.h = h

    async def send(self, plaintext: bytes) -> None:
        """Sends one frame. Not to be called by two tasks at once: frames are numbered in the order of sending."""
        await self._socket.send(self._sending.seal(plaintext))

    async def receive(self, bytes_max: int = FRAME_BYTES_MAX) -> bytes:
        """Returns the plaintext of the next frame."""
        return self._receiving.open(await receive_binary(self._socket, bytes_max))


async def receive_binary(socket: Socket, bytes_max: int) -> bytes:
    """Returns the next message; raises ProtocolError when it is text or too long."""
    message = await socket.recv()
    if isinstance(message, str):
        raise ProtocolError("a text message")
    if len(message) > bytes_max:
        raise ProtocolError(f"a frame of {len(message)} bytes, expected at most {bytes_max}")
    return message


async def open_channel(socket: Socket) -> Channel:
    """Runs Noise NN over a fresh WebSocket (section 2)."""
    initiator = Initiator(prologue([SUBPROTOCOL], SUBPROTOCOL))
    await socket.send(initiator.message_1())
    answer = await in_time(receive_binary(socket, HANDSHAKE_FRAME_BYTES_MAX))
    return Channel(socket, *initiator.message_2(answer))


async def in_time(frame: Coroutine[Any, Any, bytes], seconds_max: float = STEP_SECONDS_MAX) -> bytes:
    """Returns the frame, or raises HandshakeError when the gateway is silent for too long."""
    try:
        return await asyncio.wait_for(frame, seconds_max)
    except asyncio.TimeoutError as error:
        raise HandshakeError(f"the gateway said nothing for {seconds_max:.0f} s") from error
