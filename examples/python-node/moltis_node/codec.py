"""Messages as `moltis.node.v1+json` writes them (docs/protocol.md, 3, Types).

A struct is a frozen dataclass, an enum is an `Enum` or a `Union` of dataclasses whose names are the variants.
Reading is strict: every field is there once, nothing else is, and each value is within its type.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import re
from functools import cache
from typing import Annotated, Any, ClassVar, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ProtocolError

T = TypeVar("T")
F = TypeVar("F", bound="FixedBytes")

INTEGER_MAX = 2**53 - 1
U16 = Annotated[int, (0, 2**16 - 1)]
U32 = Annotated[int, (0, 2**32 - 1)]
U64 = Annotated[int, (0, INTEGER_MAX)]
I32 = Annotated[int, (-(2**31), 2**31 - 1)]


class FixedBytes(bytes):
    """Bytes of one length, in base64."""

    LENGTH: ClassVar[int]

    def __new__(cls: type[F], value: bytes) -> F:
        if len(value) != cls.LENGTH:
            raise ProtocolError(f"{cls.__name__} of {len(value)} bytes, expected {cls.LENGTH}")
        return super().__new__(cls, value)


class Id(FixedBytes):
    """16 bytes, in JSON 32 lower-case hexadecimal digits."""

    LENGTH = 16


class Bytes32(FixedBytes):
    """A key, digest, nonce or secret."""

    LENGTH = 32


class Signature(FixedBytes):
    """An Ed25519 signature."""

    LENGTH = 64


class Codec(Generic[T]):
    """Reads and writes one kind of message.

    No type checker infers `T` from a `Union`, so each codec says it: `X: Codec[Verdict] = Codec(Verdict)`.
    """

    def __init__(self, kind: object) -> None:
        self._kind = kind

    def encode(self, message: T) -> bytes:
        """Returns the message in UTF-8."""
        return json.dumps(_write(message), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    def decode(self, data: bytes) -> T:
        """Returns the message that `data` holds, and nothing but it.

        Raises ProtocolError, naming the field.
        """
        try:
            value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a message that is not JSON: {error}") from error
        message: T = _read(self._kind, value, "message")
        return message


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ProtocolError("a field comes twice")
    return fields


def _no_constant(name: str) -> Any:
    raise ProtocolError(f"`{name}` is no number")


@cache
def tag_of(variant: Any) -> str:
    """Returns the name of a variant on the wire: the class's own `TAG`, else its name in snake case."""
    own = variant.__dict__.get("TAG")
    return own if isinstance(own, str) else re.sub(r"(?<!^)(?=[A-Z])", "_", variant.__name__).lower()


def is_newtype(kind: Any) -> bool:
    """Says whether a variant holds one value instead of fields: `run(ToKeeper)` is `{"run": <value>}`."""
    return bool(getattr(kind, "NEWTYPE", False))


@cache
def _fields(kind: Any) -> dict[str, tuple[str, Any]]:
    """Returns attribute and type by name on the wire; `from_` is `from` there."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name.rstrip("_"): (field.name, hints[field.name]) for field in dataclasses.fields(kind)}


@cache
def _variants(union: Any) -> frozenset[Any]:
    return frozenset(get_args(union))


def _write(value: Any) -> Any:
    if isinstance(value, Id):
        return value.hex()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_write(item) for item in value]
    if isinstance(value, dict):
        return {key: _write(value[key]) for key in sorted(value)}
    if dataclasses.is_dataclass(value):
        return _write_struct(value)
    return value


def _write_struct(value: Any) -> Any:
    kind: Any = type(value)
    fields = {name: _write(getattr(value, attribute)) for name, (attribute, _) in _fields(kind).items()}
    if not issubclass(kind, Variant):
        return fields
    if is_newtype(kind):
        return {tag_of(kind): next(iter(fields.values()))}
    return {tag_of(kind): fields} if fields else tag_of(kind)


class Variant:
    """Marks the dataclasses that are variants of an enum."""


def _read(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin is Annotated:
        return _read_integer(kind.__metadata__[0], value, where)
    if origin is Union:
        return _read_union(kind, value, where)
    if origin is tuple:
        return tuple(_read(get_args(kind)[0], item, where) for item in _expect(list, value, where))
    if origin is dict:
        entries = _expect(dict, value, where)
        return {_text(key, where): _read(get_args(kind)[1], item, where) for key, item in entries.items()}
    if kind is Id:
        text = _text(value, where)
        if not re.fullmatch("[0-9a-f]{32}", text):
            raise ProtocolError(f"{where}: an id is 32 lower-case hexadecimal digits")
        return Id(bytes.fromhex(text))
    if issubclass(kind, bytes):
        return kind(_base64(value, where))
    if issubclass(kind, enum.Enum):
        return _read_word(kind, value, where)
    if dataclasses.is_dataclass(kind):
        return _read_struct(kind, value, where)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ProtocolError(f"{where}: a number is missing")
        return float(value)
    if kind is str:
        return _text(value, where)
    return _expect(kind, value, where)


def _expect(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise ProtocolError(f"{where}: found {type(value).__name__}, expected {kind.__name__}")
    return value


def _text(value: Any, where: str) -> str:
    text: str = _expect(str, value, where)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ProtocolError(f"{where}: half of a surrogate pair") from error
    return text


def _base64(value: Any, where: str) -> bytes:
    text = _text(value, where)
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ProtocolError(f"{where}: not base64") from error
    if base64.b64encode(data).decode("ascii") != text:
        raise ProtocolError(f"{where}: not base64 with padding")
    return data


def _read_integer(bounds: tuple[int, int], value: Any, where: str) -> int:
    number: int = _expect(int, value, where)
    if not bounds[0] <= number <= bounds[1]:
        raise ProtocolError(f"{where}: {number} is not between {bounds[0]} and {bounds[1]}")
    return number


def _read_word(kind: type[enum.Enum], value: Any, where: str) -> enum.Enum:
    try:
        return kind(_text(value, where))
    except ValueError as error:
        raise ProtocolError(f"{where}: `{value}` is none of {[word.value for word in kind]}") from error


def _read_struct(kind: Any, value: Any, where: str) -> Any:
    found = _expect(dict, value, where)
    fields = _fields(kind)
    if found.keys() != fields.keys():
        raise ProtocolError(f"{where}: has fields {sorted(found)}, expected {sorted(fields)}")
    return kind(
        **{attribute: _read(hint, found[name], f"{where}.{name}") for name, (attribute, hint) in fields.items()}
    )


def _read_union(union: Any, value: Any, where: str) -> Any:
    """Reads an option, or an enum of variants: `{"variant": {fields}}`, or `"variant"` where it has no fields."""
    kinds = _variants(union)
    if type(None) in kinds:
        if value is None:
            return None
        rest = tuple(kind for kind in get_args(union) if kind is not type(None))
        return _read(Union[rest], value, where)
    if isinstance(value, str):
        for kind in kinds:
            if issubclass(kind, enum.Enum) and any(word.value == value for word in kind):
                return kind(value)
            if issubclass(kind, Variant) and tag_of(kind) == value and not _fields(kind):
                return kind()
    elif isinstance(value, dict) and len(value) == 1:
        ((tag, inner),) = value.items()
        for kind in kinds:
            if issubclass(kind, Variant) and tag_of(kind) == tag and _fields(kind):
                if is_newtype(kind):
                    ((_, hint),) = _fields(kind).values()
                    return kind(_read(hint, inner, f"{where}.{tag}"))
                return _read_struct(kind, inner, f"{where}.{tag}")
    raise ProtocolError(f"{where}: unknown variant {str(value)[:80]}")
