"""Every field of every message, at its bound and beyond: what is beyond is malformed, in one short line."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest

from common.wire.messages import (
    MAX_DEPTH,
    MAX_FRAME_ID,
    MAX_HEADER_BYTES,
    Event,
    Frames,
    MalformedMessage,
    Message,
    decode,
    encode,
    has_buffers,
)
from tests.fuzz.seeds import headers

MESSAGES = get_args(Message)


def fields_of(kind: type[Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field of a message, those of structures in it too, with its type as msgspec knows it."""
    known = msgspec.inspect.type_info(kind)
    assert isinstance(known, msgspec.inspect.StructType)
    for field in known.fields:
        types = field.type.types if isinstance(field.type, msgspec.inspect.UnionType) else (field.type,)
        for one in types:
            if isinstance(one, msgspec.inspect.StructType):
                yield from fields_of(one.cls, (*path, field.encode_name))
            else:
                yield (*path, field.encode_name), one


FIELDS = [(kind, path, info) for kind in MESSAGES for path, info in fields_of(kind)]
SAMPLES = {type(message): msgspec.to_builtins(message) for message in headers()}


def with_value(kind: type[Any], path: tuple[str, ...], value: Any) -> bytes:
    """A good message of a kind but for one value in it."""
    document = copy.deepcopy(SAMPLES[kind])
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return msgspec.msgpack.encode(document)


def beyond(info: Any) -> Iterator[Any]:
    """Values that a field of that type must not have."""
    match info:
        case msgspec.inspect.IntType(ge=low, le=high):
            yield from (1.5, "1", [1], {}, True)
            if low is not None:
                yield from (low - 1, -(2**63))
            if high is not None:
                yield high + 1
        case msgspec.inspect.FloatType():
            yield from ("1", [1.0], {}, None)
        case msgspec.inspect.BoolType():
            yield from (1, "true", None, [])
        case msgspec.inspect.StrType(max_length=most):
            yield from (1, b"bytes", ["x"], {})
            if most is not None:
                yield "x" * (most + 1)
        case msgspec.inspect.LiteralType():
            yield from ("another", 1, [], None)
        case msgspec.inspect.ListType(max_length=most, item_type=item):
            yield from (1, "text", {"a": 1})
            if most is not None:
                yield [0] * (most + 1)
            yield from ([value] for value in beyond(item))
        case msgspec.inspect.TupleType(item_types=items):
            yield from (1, [1], [1, 1, 1], "ab")
            for value in beyond(items[0]):
                yield [value, *[1] * (len(items) - 1)]
        case msgspec.inspect.DictType():
            yield from (1, "text", [1], None, {"a": b"bytes"}, {"a": msgspec.msgpack.Ext(1, b"x")})
            nest: Any = 1
            for _ in range(MAX_DEPTH + 1):
                nest = [nest]
            yield {"a": nest}
        case _:
            return


@pytest.mark.parametrize(
    ("kind", "path", "info"), FIELDS, ids=[f"{kind.__name__}-{'.'.join(path)}" for kind, path, _ in FIELDS]
)
def test_no_field_has_a_value_beyond_its_bounds(kind: type[Any], path: tuple[str, ...], info: Any) -> None:
    assert isinstance(decode(msgspec.msgpack.encode(SAMPLES[kind])), kind)
    known = [one for other, at, one in FIELDS if other is kind and at == path]
    may_be_none = any(isinstance(one, msgspec.inspect.NoneType) for one in known)
    for value in beyond(info):
        if value is None and may_be_none:
            continue
        with pytest.raises(MalformedMessage) as refusal:
            decode(with_value(kind, path, value))
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 8])
def test_only_frames_have_payloads(kind: type[Any], count: int) -> None:
    message = decode(msgspec.msgpack.encode(SAMPLES[kind]))
    assert has_buffers(message, count) == (count == (2 if kind is Frames else 0))
    if isinstance(message, Frames):
        alone = msgspec.structs.replace(message, reference_ids=[], reference_payload=None)
        assert has_buffers(decode(encode(alone)), count) == (count == 1)


@pytest.mark.parametrize("field", ["frame_ids", "reference_ids", "wanted"])
@pytest.mark.parametrize("number", [0, MAX_FRAME_ID, MAX_FRAME_ID + 1, -1, 2**63, 2**64 - 1])
def test_frame_numbers_end_where_results_do(field: str, number: int) -> None:
    document = SAMPLES[Frames] | {"frame_ids": [number, 7], "reference_ids": [7], "wanted": None}
    if field != "frame_ids":
        document[field] = [number]
    data = msgspec.msgpack.encode(document)
    if 0 <= number <= MAX_FRAME_ID:
        assert isinstance(decode(data), Frames)
    else:
        with pytest.raises(MalformedMessage):
            decode(data)


@pytest.mark.parametrize("size", [MAX_HEADER_BYTES, MAX_HEADER_BYTES + 1])
def test_only_frames_may_be_longer_than_a_megabyte(size: int) -> None:
    event = SAMPLES[Event] | {"message": ""}
    room = size - len(msgspec.msgpack.encode(event)) - 4  # what a longer text takes for its length
    data = msgspec.msgpack.encode(event | {"message": "x" * room})
    assert len(data) == size
    if size <= MAX_HEADER_BYTES:
        assert isinstance(decode(data), Event)
    else:
        with pytest.raises(MalformedMessage):
            decode(data)
