"""The Noise pattern NN on X25519, ChaCha20-Poly1305 and BLAKE2s (docs/protocol.md, 2; Noise revision 34)."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .errors import ProtocolError

PATTERN = b"Noise_NN_25519_ChaChaPoly_BLAKE2s"
KEY_BYTES = 32
TAG_BYTES = 16


def prologue(offered: list[str], chosen: str) -> bytes:
    """Returns what both sides mix in before the first message: nobody in between chose the subprotocol."""
    return b"moltis/node-noise/1\0" + ",".join(offered).encode() + b"\0" + chosen.encode()


class Cipher:
    """One direction of the channel: a key and the number of the next frame."""

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._number = 0

    def seal(self, plaintext: bytes, associated: bytes = b"") -> bytes:
        """Returns the frame for `plaintext`, 16 bytes longer."""
        return self._aead.encrypt(self._nonce(), plaintext, associated)

    def open(self, sealed: bytes, associated: bytes = b"") -> bytes:
        """Returns what a frame holds; raises ProtocolError when it is not the next one of the peer."""
        try:
            return self._aead.decrypt(self._nonce(), sealed, associated)
        except InvalidTag as error:
            raise ProtocolError("a frame does not open") from error

    def _nonce(self) -> bytes:
        nonce = bytes(4) + self._number.to_bytes(8, "little")
        self._number += 1
        return nonce


class Initiator:
    """The node's side of the handshake: `-> e`, `<- e, ee`, both payloads empty."""

    def __init__(self, prologue: bytes, ephemeral: X25519PrivateKey | None = None) -> None:
        """`ephemeral` is for tests; without it the key is fresh, as it must be."""
        self._ephemeral = ephemeral or X25519PrivateKey.generate()
        self._hash = hashlib.blake2s(PATTERN).digest()
        self._chaining_key = self._hash
        self._mix_hash(prologue)

    def message_1(self) -> bytes:
        """Returns `-> e`, to be sent first."""
        public = self._ephemeral.public_key().public_bytes_raw()
        self._mix_hash(public)
        self._mix_hash(b"")
        return public

    def message_2(self, message: bytes) -> tuple[Cipher, Cipher, bytes]:
        """Takes `<- e, ee`; returns the cipher to send with, the one to receive with, and the hash `h`.

        Raises ProtocolError, also for an ephemeral key that is zero or of low order.
        """
        if len(message) != KEY_BYTES + TAG_BYTES:
            raise ProtocolError(f"the second message of Noise has {len(message)} bytes, expected 48")
        public, payload = message[:KEY_BYTES], message[KEY_BYTES:]
        self._mix_hash(public)
        try:
            shared = self._ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:  # the result is all zero
            raise ProtocolError("the gateway's ephemeral key is of low order") from error
        self._chaining_key, key = _hkdf(self._chaining_key, shared)
        if Cipher(key).open(payload, self._hash):
            raise ProtocolError("the second message of Noise has a payload")
        self._mix_hash(payload)
        send, receive = _hkdf(self._chaining_key, b"")
        return Cipher(send), Cipher(receive), self._hash

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.blake2s(self._hash + data).digest()


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    temporary = hmac.digest(chaining_key, material, "blake2s")
    first = hmac.digest(temporary, b"\x01", "blake2s")
    return first, hmac.digest(temporary, first + b"\x02", "blake2s")
