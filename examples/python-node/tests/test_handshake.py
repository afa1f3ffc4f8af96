"""Each step of the handshakes of handshake.json that speak JSON, and the keys that nobody may show."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from moltis_node import messages
from moltis_node.channel import Channel
from moltis_node.codec import Codec
from moltis_node.errors import Final, ProtocolError
from moltis_node.handshake import (
    Asking,
    Caller,
    await_verdict,
    check_introduction,
    connection_code,
    gateway_signs,
    node_signs,
    prove,
)
from moltis_node.identity import FIELD_PRIME, Identity, fingerprint, verifies
from moltis_node.messages import Accepted, GatewayProof, Intent, Introduction, NodeProof, Platform, Policy
from moltis_node.noise import Cipher, Initiator, prologue

from .vectors import load

VECTORS = load("handshake.json")
CODECS: dict[str, Codec[Any]] = {
    "gateway_proof": messages.GATEWAY_PROOF,
    "node_proof": messages.NODE_PROOF,
    "introduction": messages.INTRODUCTION,
    "verdict": messages.VERDICT,
}
JSON_VECTORS = [handshake for handshake in VECTORS["handshakes"] if handshake["codec"] == "json"]
for_each_json_handshake = pytest.mark.parametrize("vector", JSON_VECTORS, ids=lambda vector: vector["name"])
for_each_handshake = pytest.mark.parametrize("vector", VECTORS["handshakes"], ids=lambda vector: vector["name"])


def noise_of(vector: dict[str, Any]) -> tuple[bytes, Cipher, Cipher, bytes]:
    """Runs Noise with the keys of a vector; returns the first message, both ciphers and the hash."""
    secret = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["node_ephemeral_secret"]))
    initiator = Initiator(prologue(vector["offered"].split(","), vector["chosen"]), secret)
    message_1 = initiator.message_1()
    return (message_1, *initiator.message_2(bytes.fromhex(vector["noise_message_2"])))


def plaintexts(vector: dict[str, Any], message: str) -> list[bytes]:
    return [bytes.fromhex(frame["plaintext"]) for frame in vector["frames"] if frame["message"] == message]


def proofs_of(vector: dict[str, Any]) -> tuple[GatewayProof, NodeProof]:
    frames = {frame["message"]: json.dumps(frame["reads"]).encode() for frame in vector["frames"]}
    return messages.GATEWAY_PROOF.decode(frames["gateway_proof"]), messages.NODE_PROOF.decode(frames["node_proof"])


@for_each_json_handshake
def test_noise_gives_the_bytes_of_the_vectors(vector: dict[str, Any]) -> None:
    assert prologue(vector["offered"].split(","), vector["chosen"]).hex() == vector["noise_prologue"]
    message_1, send, receive, h = noise_of(vector)
    assert message_1.hex() == vector["noise_message_1"]
    assert h.hex() == vector["h"]
    for frame in vector["frames"]:
        if frame["from"] == "node":
            assert send.seal(bytes.fromhex(frame["plaintext"])).hex() == frame["sealed"]
        else:
            assert receive.open(bytes.fromhex(frame["sealed"])).hex() == frame["plaintext"]


@for_each_json_handshake
def test_each_frame_reads_as_the_vectors_say(vector: dict[str, Any]) -> None:
    for frame in vector["frames"]:
        codec = CODECS[frame["message"]]
        plaintext = bytes.fromhex(frame["plaintext"])
        assert codec.decode(plaintext) == codec.decode(json.dumps(frame["reads"]).encode())
        assert codec.encode(codec.decode(plaintext)) == plaintext


@for_each_handshake
def test_the_signed_bytes_and_the_signatures_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    gateway, node = proofs_of(vector)
    h = bytes.fromhex(vector["h"])
    over_gateway = gateway_signs(vector["chosen"], h, gateway)
    over_node = node_signs(vector["chosen"], h, node, gateway)
    assert over_gateway.hex() == vector["gateway_signs"]
    assert over_node.hex() == vector["node_signs"]
    assert verifies(gateway.gateway_key, gateway.signature, over_gateway)
    assert verifies(node.node_key, node.signature, over_node)
    node_key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["node_seed"]))
    assert node_key.sign(over_node) == node.signature
    assert not verifies(gateway.gateway_key, node.signature, over_node)


@for_each_handshake
def test_the_code_and_the_fingerprints_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    gateway, node = proofs_of(vector)
    secret = bytes.fromhex(vector["code_secret"])
    assert hashlib.sha256(secret).digest() == gateway.code_commit
    code = connection_code(bytes.fromhex(vector["h"]), gateway.gateway_key, node.node_key, secret, node.nonce_n)
    assert code == vector["connection_code"]
    assert fingerprint(gateway.gateway_key) == vector["gateway_fingerprint"]
    assert fingerprint(node.node_key) == vector["node_fingerprint"]


class Recorded:
    """A WebSocket with a gateway's messages written down, that keeps what it is given."""

    def __init__(self, received: list[bytes]) -> None:
        self._received = received
        self.sent: list[bytes] = []

    async def send(self, message: bytes) -> None:
        self.sent.append(message)

    async def recv(self) -> bytes:
        return self._received.pop(0)


def recorded_gateway(vector: dict[str, Any]) -> tuple[Recorded, Channel, Caller]:
    """Returns the vector's gateway behind an open channel, and the vector's node."""
    _, send, receive, h = noise_of(vector)
    frames = [bytes.fromhex(frame["sealed"]) for frame in vector["frames"] if frame["from"] == "gateway"]
    socket = Recorded(frames)
    _, node = proofs_of(vector)
    introduction: Introduction = messages.INTRODUCTION.decode(plaintexts(vector, "introduction")[0])
    identity = Identity(bytes.fromhex(vector["node_seed"]), node.device_id, introduction.node_id, None, None)
    caller = Caller(identity, node.instance_id, node.boot_id, introduction, node.intent)
    return socket, Channel(socket, send, receive, h), caller


@for_each_json_handshake
def test_a_node_pairs_with_the_gateway_of_the_vectors(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_bytes", lambda length: bytes.fromhex(vector["nonce_n"])[:length])
    socket, channel, caller = recorded_gateway(vector)
    heard: list[Asking] = []

    async def pair() -> object:
        gateway, node = await prove(channel, caller, None)
        return await await_verdict(channel, gateway, node, heard.append)

    verdict = asyncio.run(pair())
    sealed = [frame["sealed"] for frame in vector["frames"] if frame["from"] == "node"]
    assert [message.hex() for message in socket.sent] == sealed
    assert isinstance(verdict, Accepted)
    assert [asking.code for asking in heard] == [vector["connection_code"]]


@for_each_json_handshake
def test_nothing_is_sent_to_a_gateway_with_another_key_than_the_pin(vector: dict[str, Any]) -> None:
    for pinned in ({"gateway_key": bytes(32)}, {"gateway_fingerprint": "SHA256:" + "A" * 43}):
        socket, channel, caller = recorded_gateway(vector)
        caller = replace(caller, identity=replace(caller.identity, **pinned))
        with pytest.raises(Final, match="pinned"):
            asyncio.run(prove(channel, caller, None))
        assert socket.sent == []


@for_each_json_handshake
def test_a_node_that_waits_stops_when_another_gateway_answers(vector: dict[str, Any]) -> None:
    socket, channel, caller = recorded_gateway(vector)
    with pytest.raises(Final, match="another gateway"):
        asyncio.run(prove(channel, caller, bytes(32)))
    assert socket.sent == []


@for_each_json_handshake
def test_a_gateway_that_shows_our_own_key_is_refused(vector: dict[str, Any]) -> None:
    socket, channel, caller = recorded_gateway(vector)
    own = replace(caller.identity, seed=bytes.fromhex(vector["gateway_seed"]))
    with pytest.raises(Final, match="own key"):
        asyncio.run(prove(channel, replace(caller, identity=own), None))
    assert socket.sent == []


@pytest.mark.parametrize("encoded", VECTORS["weak_keys"])
def test_a_weak_key_verifies_nothing(encoded: str) -> None:
    key = bytes.fromhex(encoded)
    for signature in (bytes(64), key + bytes(32), (1).to_bytes(32, "little") + bytes(32)):
        assert not verifies(key, signature, b"anything")


def test_a_signature_is_refused_when_it_is_written_in_a_second_way() -> None:
    secret = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
    key = secret.public_key().public_bytes_raw()
    signature = secret.sign(b"message")
    assert verifies(key, signature, b"message")
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(signature[32:], "little") + order
    assert not verifies(key, signature[:32] + scalar.to_bytes(32, "little"), b"message")
    assert not verifies(key, FIELD_PRIME.to_bytes(32, "little") + signature[32:], b"message")
    assert not verifies(key, signature[:63], b"message")
    assert not verifies(key, signature, b"messagf")


@pytest.mark.parametrize("key", [bytes(32), (1).to_bytes(32, "little"), (2**255 - 19).to_bytes(32, "little")])
def test_an_ephemeral_key_of_low_order_is_refused(key: bytes) -> None:
    initiator = Initiator(b"")
    initiator.message_1()
    with pytest.raises(ProtocolError, match="low order"):
        initiator.message_2(key + bytes(16))


@for_each_json_handshake
def test_a_frame_that_is_changed_or_comes_twice_does_not_open(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frames"][0]["sealed"])
    for sealed in (frame[:-1] + bytes([frame[-1] ^ 1]), frame[:-1], b""):
        _, _, receive, _ = noise_of(vector)
        with pytest.raises(ProtocolError):
            receive.open(sealed)
    _, _, receive, _ = noise_of(vector)
    receive.open(frame)
    with pytest.raises(ProtocolError):
        receive.open(frame)


def test_a_proof_says_whether_it_wants_to_pair() -> None:
    gateway, node = proofs_of(JSON_VECTORS[0])
    pair, connect = (
        node_signs("x", bytes(32), replace(node, intent=intent), gateway) for intent in (Intent.PAIR, Intent.CONNECT)
    )
    assert pair != connect


PLATFORM = Platform("linux", "x86_64", "Debian 12", "6.1", "box")
INTRODUCTION = Introduction("box", "Büro 2", {}, PLATFORM, "0", "me", "/", 0, Policy.FULL, (), ())


@pytest.mark.parametrize(
    "changes",
    [
        {"node_id": "-x"},
        {"node_id": "a" * 65},
        {"node_id": "Local"},
        {"name": ""},
        {"name": "x" * 65},
        {"name": "a\tb"},
        {"name": "ssh:x"},
        {"labels": {"a b": ""}},
        {"labels": {"a": "x=y"}},
        {"labels": {"a": "x" * 64}},
        {"labels": {f"k{number}": "" for number in range(33)}},
        {"env_allow": tuple(f"V{number}" for number in range(65))},
        {"working_dir": "relative"},
        {"user": "x" * 257},
        {"working_dir": "/" + "x" * 4096},
    ],
)
def test_an_introduction_that_no_gateway_takes_ends_the_node_with_words(changes: dict[str, Any]) -> None:
    check_introduction(INTRODUCTION)
    with pytest.raises(Final, match="no gateway takes"):
        check_introduction(replace(INTRODUCTION, **changes))
