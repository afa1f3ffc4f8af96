"""Who is who, and what the gateway says to that (docs/protocol.md, 3 and 4)."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from .channel import HANDSHAKE_FRAME_BYTES_MAX, STEP_SECONDS_MAX, SUBPROTOCOL, Channel, in_time
from .codec import Bytes32, Id, Signature
from .errors import Final, ProtocolError
from .identity import Identity, fingerprint, verifies
from .messages import (
    GATEWAY_PROOF,
    INTRODUCTION,
    NODE_PROOF,
    VERDICT,
    Accepted,
    GatewayProof,
    Intent,
    Introduction,
    NodeProof,
    Pending,
    Refused,
    Verdict,
)
from .noise import TAG_BYTES

LEDGERS = range(1, 3)
"""The numbers of the ledger that this node speaks."""
PENDING_SILENCE_SECONDS_MAX = 45.0

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def label(text: str) -> bytes:
    """Returns the domain of a signature or digest: ASCII, filled with zero bytes to 32."""
    return text.encode("ascii").ljust(32, b"\0")


def gateway_signs(chosen: str, h: bytes, proof: GatewayProof) -> bytes:
    """Returns the bytes under the gateway's signature."""
    return b"".join(
        [
            label("moltis gateway proof 1"),
            hashlib.sha256(chosen.encode()).digest(),
            h,
            proof.gateway_key,
            proof.nonce_g,
            proof.ledger_min.to_bytes(2, "big"),
            proof.ledger_max.to_bytes(2, "big"),
            proof.code_commit,
        ]
    )


def node_signs(chosen: str, h: bytes, proof: NodeProof, gateway: GatewayProof) -> bytes:
    """Returns the bytes under the node's signature."""
    return b"".join(
        [
            label("moltis node proof 1"),
            hashlib.sha256(chosen.encode()).digest(),
            h,
            proof.node_key,
            proof.device_id,
            proof.instance_id,
            proof.boot_id,
            b"\x01" if proof.intent is Intent.PAIR else b"\x00",
            proof.ledger.to_bytes(2, "big"),
            proof.nonce_n,
            gateway.gateway_key,
            gateway.nonce_g,
            gateway.code_commit,
        ]
    )


def connection_code(h: bytes, gateway_key: bytes, node_key: bytes, code_reveal: bytes, nonce_n: bytes) -> str:
    """Returns the code that both screens show: the first 60 bits of a digest, in three groups of four."""
    digest = hashlib.sha256(
        label("moltis connection code 1") + h + gateway_key + node_key + code_reveal + nonce_n
    ).digest()
    bits = int.from_bytes(digest[:8], "big") >> 4
    letters = "".join(CROCKFORD[bits >> shift & 31] for shift in range(55, -1, -5))
    return "-".join(letters[at : at + 4] for at in (0, 4, 8))


@dataclass(frozen=True)
class Caller:
    """Who asks to be let in."""

    identity: Identity
    instance_id: Id
    boot_id: Id
    introduction: Introduction
    intent: Intent


@dataclass(frozen=True)
class Asking:
    """The gateway asks a person; both screens show `code`."""

    request_id: Id
    code: str
    gateway_key: bytes


async def prove(channel: Channel, caller: Caller, expected_key: bytes | None) -> tuple[GatewayProof, NodeProof]:
    """Checks who the gateway is, then says who we are: steps 3 to 5.

    `expected_key` is the key that was seen before while waiting for approval. Raises Final when another key
    appears than the pinned or expected one; nothing was sent then.
    """
    gateway = GATEWAY_PROOF.decode(await in_time(channel.receive(HANDSHAKE_FRAME_BYTES_MAX)))
    if gateway.gateway_key == caller.identity.public_key:
        raise Final("the gateway shows this node's own key")
    if not verifies(gateway.gateway_key, gateway.signature, gateway_signs(SUBPROTOCOL, channel.h, gateway)):
        raise ProtocolError("the gateway's proof is not valid")
    _check_pin(caller.identity, gateway.gateway_key, expected_key)
    spoken = [number for number in LEDGERS if gateway.ledger_min <= number <= gateway.ledger_max]
    if not spoken:
        theirs = f"{gateway.ledger_min} to {gateway.ledger_max}"
        raise Final(f"the gateway speaks ledger {theirs}, this node {LEDGERS[0]} to {LEDGERS[-1]}")
    proof = NodeProof(
        node_key=Bytes32(caller.identity.public_key),
        device_id=Id(caller.identity.device_id),
        instance_id=caller.instance_id,
        boot_id=caller.boot_id,
        intent=caller.intent,
        ledger=spoken[-1],
        nonce_n=Bytes32(secrets.token_bytes(32)),
        signature=Signature(bytes(64)),
    )
    signature = caller.identity.key.sign(node_signs(SUBPROTOCOL, channel.h, proof, gateway))
    proof = replace(proof, signature=Signature(signature))
    await channel.send(NODE_PROOF.encode(proof))
    await channel.send(INTRODUCTION.encode(caller.introduction))
    return gateway, proof


def check_introduction(introduction: Introduction) -> None:
    """Raises Final for what a gateway would close on without a word (section 3, Types)."""
    texts = [*dataclasses.astuple(introduction.platform), introduction.version, introduction.user]
    texts += [*introduction.env_allow, *introduction.capabilities]
    wrong = {
        "a node id": not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", introduction.node_id),
        "a name": not 1 <= len(introduction.name) <= 64 or not introduction.name.isprintable(),
        "an id or a name for a node": any(map(_is_reserved, (introduction.node_id, introduction.name))),
        "a set of labels": len(introduction.labels) > 32 or not all(map(_is_label, introduction.labels.items())),
        "a list of variables": len(introduction.env_allow) > 64,
        "a working directory": not introduction.working_dir.startswith("/"),
        "a description of this machine": any(len(text.encode()) > 256 for text in texts),
        "an introduction": len(INTRODUCTION.encode(introduction)) > HANDSHAKE_FRAME_BYTES_MAX - TAG_BYTES,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise Final(f"no gateway takes {what} like this: {introduction}")


def _is_reserved(text: str) -> bool:
    return text.lower() == "local" or text.startswith(("node:", "ssh:"))


def _is_label(label: tuple[str, str]) -> bool:
    key, value = label
    is_value = len(value) <= 63 and (value.isprintable() and not set(value) & set("=,"))
    return is_value and re.fullmatch("[A-Za-z0-9._/-]{1,63}", key) is not None


def _check_pin(identity: Identity, shown: bytes, expected: bytes | None) -> None:
    if not identity.trusts(shown):
        pinned = fingerprint(identity.gateway_key) if identity.gateway_key else identity.gateway_fingerprint
        raise Final(f"the gateway shows the key {fingerprint(shown)}, and {pinned} is pinned: nothing was sent")
    if expected not in (None, shown):
        raise Final(f"another gateway answers while this node waits: its key is {fingerprint(shown)}")


async def await_verdict(
    channel: Channel, gateway: GatewayProof, proof: NodeProof, tell: Callable[[Asking], None]
) -> Accepted | Refused:
    """Waits for the decision, which may take a person an hour; `tell` hears what both screens show (section 4)."""
    verdict = await _verdict(channel, STEP_SECONDS_MAX)
    while isinstance(verdict, Pending):
        if hashlib.sha256(verdict.code_reveal).digest() != gateway.code_commit:
            raise ProtocolError("the gateway reveals another code than it committed to")
        code = connection_code(channel.h, gateway.gateway_key, proof.node_key, verdict.code_reveal, proof.nonce_n)
        tell(Asking(verdict.request_id, code, gateway.gateway_key))
        verdict = await _verdict(channel, PENDING_SILENCE_SECONDS_MAX)
    if isinstance(verdict, Accepted) and verdict.ledger != proof.ledger:
        raise ProtocolError(f"the gateway accepts ledger {verdict.ledger}, and {proof.ledger} was signed")
    return verdict


async def _verdict(channel: Channel, seconds_max: float) -> Verdict:
    return VERDICT.decode(await in_time(channel.receive(HANDSHAKE_FRAME_BYTES_MAX), seconds_max))
