"""What can go wrong, told apart by what the caller does about it."""

from __future__ import annotations


class ProtocolError(Exception):
    """The peer broke a rule of the page: the connection is closed with `protocol`."""


class HandshakeError(Exception):
    """The handshake came to nothing; dialling again may help."""


class Advice(Exception):
    """The gateway asks to be left alone for a while (section 7)."""

    def __init__(self, words: str, wait_seconds: float) -> None:
        super().__init__(words)
        self.wait_seconds = wait_seconds


class Waiting(Exception):
    """A refusal that changes when somebody acts: dial again in 30 to 60 seconds (section 4)."""


class Final(Exception):
    """Nothing changes by waiting: the program ends and says why."""
