"""The node's key and what it has pinned (docs/protocol.md, 3, Signatures and Pins)."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import secrets
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .errors import Final

FIELD_PRIME = 2**255 - 19
# The y coordinates of the eight points of small order: of order 4, 1, 2, and twice 8.
SMALL_ORDER_Y = frozenset(
    [
        0,
        1,
        FIELD_PRIME - 1,
        int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
        int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
    ]
)


def fingerprint(key: bytes) -> str:
    """Returns what `ssh-keygen -lf` prints for the same Ed25519 key."""
    kind = b"ssh-ed25519"
    wire = len(kind).to_bytes(4, "big") + kind + len(key).to_bytes(4, "big") + key
    return "SHA256:" + base64.b64encode(hashlib.sha256(wire).digest()).decode("ascii").rstrip("=")


def is_strict_point(encoded: bytes) -> bool:
    """Says whether a point is written canonically and is not of small order."""
    y = int.from_bytes(encoded, "little") & (2**255 - 1)
    return y < FIELD_PRIME and y not in SMALL_ORDER_Y


def verifies(key: bytes, signature: bytes, message: bytes) -> bool:
    """Says whether the signature is by `key`, strictly.

    `cryptography` refuses a scalar that is not reduced, and compares R by its bytes; the encodings are checked here.
    """
    if len(key) != 32 or len(signature) != 64 or not is_strict_point(key) or not is_strict_point(signature[:32]):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Identity:
    """What makes a node the same node tomorrow, kept in `node.json`."""

    seed: bytes
    device_id: bytes
    node_id: str
    gateway_key: bytes | None
    """The pin: the key of the gateway that accepted this node first."""
    gateway_fingerprint: str | None
    """The pin that a person gave before the first connection."""

    @property
    def key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def trusts(self, gateway_key: bytes) -> bool:
        """Says whether a proof may go to the gateway that showed this key: it is pinned, or nothing is yet."""
        if self.gateway_key is not None:
            return gateway_key == self.gateway_key
        return self.gateway_fingerprint in (None, fingerprint(gateway_key))


class StateDir:
    """The folder with the node's key, journal and output; one process at a time."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self._file = path / "node.json"
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Final(f"another node runs with `{path}`") from error

    def identity(self, node_id: str | None, gateway_fingerprint: str | None) -> Identity:
        """Returns the identity that is kept here; the first time it is made, with `node_id` or a random one."""
        if not self._file.exists():
            made = Identity(secrets.token_bytes(32), secrets.token_bytes(16), node_id or str(uuid.uuid4()), None, None)
            self._write(made)
        identity = self._read()
        if node_id not in (None, identity.node_id):
            raise Final(f"`{self._file}` is of node `{identity.node_id}`; another --node-id wants another --state")
        if gateway_fingerprint is None:
            return identity
        pinned = fingerprint(identity.gateway_key) if identity.gateway_key else gateway_fingerprint
        if pinned != gateway_fingerprint:
            raise Final(f"`{self._file}` pins the gateway {pinned}, and --gateway-key says {gateway_fingerprint}")
        identity = replace(identity, gateway_fingerprint=gateway_fingerprint)
        self._write(identity)
        return identity

    def pin(self, identity: Identity, gateway_key: bytes) -> Identity:
        """Keeps the key of the gateway that accepted this node."""
        pinned = replace(identity, gateway_key=gateway_key)
        if pinned != identity:
            self._write(pinned)
        return pinned

    def _read(self) -> Identity:
        try:
            fields = json.loads(self._file.read_text("utf-8"))
            return Identity(
                seed=bytes.fromhex(fields["seed"]),
                device_id=bytes.fromhex(fields["device_id"]),
                node_id=fields["node_id"],
                gateway_key=bytes.fromhex(fields["gateway_key"]) if fields["gateway_key"] else None,
                gateway_fingerprint=fields["gateway_fingerprint"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Final(f"cannot read the identity in `{self._file}`: {error!r}") from error

    def _write(self, identity: Identity) -> None:
        fields = {
            "seed": identity.seed.hex(),
            "device_id": identity.device_id.hex(),
            "node_id": identity.node_id,
            "gateway_key": identity.gateway_key.hex() if identity.gateway_key else None,
            "gateway_fingerprint": identity.gateway_fingerprint,
        }
        write_atomically(self._file, json.dumps(fields, indent=2).encode() + b"\n")


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file by `data`, readable by its owner alone; a crash leaves the old one or the new one."""
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
