"""Every message of messages.json, read and written; and what a reader must refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moltis_node import messages
from moltis_node.codec import Codec
from moltis_node.errors import ProtocolError

from .vectors import load

CODECS: dict[str, Codec[Any]] = {
    "gateway_proof": messages.GATEWAY_PROOF,
    "node_proof": messages.NODE_PROOF,
    "introduction": messages.INTRODUCTION,
    "verdict": messages.VERDICT,
    "to_node": messages.TO_NODE,
    "to_gateway": messages.TO_GATEWAY,
    "to_keeper": messages.TO_KEEPER,
}
VECTORS = load("messages.json")["messages"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_each_message_of_the_vectors_is_read_and_written(vector: dict[str, Any]) -> None:
    codec = CODECS[vector["type"]]
    message = codec.decode(json.dumps(vector["json"]).encode())
    assert json.loads(codec.encode(message)) == vector["json"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_no_message_is_read_with_a_field_too_many_or_too_few(vector: dict[str, Any]) -> None:
    codec = CODECS[vector["type"]]
    for changed in _with_one_change(vector["json"]):
        with pytest.raises(ProtocolError):
            codec.decode(json.dumps(changed).encode())


def _with_one_change(value: Any) -> list[Any]:
    """Returns copies of a message: in each, one object has a field more or one less, wherever it is not a map."""
    if not isinstance(value, dict):
        return []
    changed: list[Any] = [{**value, "surprise": 1}]
    changed += [{key: item for key, item in value.items() if key != gone} for gone in value]
    for key, item in value.items():
        if key not in ("labels", "env"):
            changed += [{**value, key: inner} for inner in _with_one_change(item)]
    return changed


REFUSED = [vector for vector in load("refused.json")["refused"] if "json" in vector]


@pytest.mark.parametrize("vector", REFUSED, ids=lambda vector: vector["name"])
def test_what_the_vectors_say_is_no_message_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        CODECS[vector["type"]].decode(vector["json"].encode("utf-8"))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b'"ping"',
        b'{"sample":{}}',
        b'{"ping":{"number":-1}}',
        b'{"ping":{"number":1.0}}',
        b'{"ping":{"number":true}}',
        b'{"ping":{"number":NaN}}',
        b'{"ping":{"number":9007199254740992}}',
        b'{"ping":{"number":1}}{"ping":{"number":1}}',
        b'{"ping":{"number":1,"number":1}}',
        b'{"ping":{"number":1},"ping":{"number":1}}',
        b'{"ping":{"number":1},"pong":{"number":1}}',
        b'{"run":{"forget":{"run_id":"00112233445566778899AABBCCDDEEFF"}}}',
        b'{"run":{"forget":{"run_id":"00"}}}',
        b'{"run":{"stdin":{"run_id":"00112233445566778899aabbccddeeff","offset":0,"bytes":"AP8","eof":false}}}',
        b'{"run":{"stdin":{"run_id":"00112233445566778899aabbccddeeff","offset":0,"bytes":"AP9=","eof":false}}}',
        b'\xff\xfe{\x00"\x00',
        b"[" * 60_000,
        b'{"close":{"code":"\\ud800"}}',
    ],
)
def test_what_is_no_message_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.TO_NODE.decode(text)
