"""Every message survives the wire, and nothing else is taken for one."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Heartbeat,
    MalformedMessage,
    Message,
    Start,
    decode,
    encode,
)

MESSAGES = get_args(Message)

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def values_of(field_type: Any) -> st.SearchStrategy[Any]:
    """Values for a field as msgspec sees it."""
    match field_type:
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.AnyType():
            return plain
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.IntType():
            return st.integers(-(2**63), 2**64 - 1)
        case msgspec.inspect.FloatType():
            return st.floats(allow_nan=False)
        case msgspec.inspect.StrType():
            return st.text(max_size=10)
        case msgspec.inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case msgspec.inspect.ListType(item_type=item):
            return st.lists(values_of(item), max_size=4)
        case msgspec.inspect.TupleType(item_types=items):
            return st.tuples(*map(values_of, items))
        case msgspec.inspect.DictType(value_type=value):
            return st.dictionaries(st.text(max_size=5), values_of(value), max_size=3)
        case msgspec.inspect.UnionType(types=types):
            return st.one_of(map(values_of, types))
        case msgspec.inspect.StructType(cls=cls):
            return messages_of(cls)
    raise NotImplementedError(field_type)


def messages_of(cls: type[Any]) -> st.SearchStrategy[Any]:
    fields = msgspec.inspect.type_info(cls).fields  # pyright: ignore[reportAttributeAccessIssue]
    return st.builds(cls, **{f.name: values_of(f.type) for f in fields if f.name != "version"})


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_every_message_survives_the_wire(cls: type[Any]) -> None:
    @given(message=messages_of(cls))
    @settings(max_examples=40, deadline=None)
    def survives(message: Any) -> None:
        decoded = decode(encode(message))
        assert type(decoded) is cls
        assert decoded == message
        assert decoded.version == PROTOCOL_VERSION

    survives()


def test_every_message_has_its_own_name() -> None:
    tags = [cls.__struct_config__.tag for cls in MESSAGES]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, -1])
def test_another_protocol_version_is_refused(version: int) -> None:
    with pytest.raises(MalformedMessage, match=f"version {version}, this side speaks {PROTOCOL_VERSION}"):
        decode(encode(Heartbeat(version=version)))


def raw(**fields: Any) -> bytes:
    return msgspec.msgpack.encode(fields)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"not msgpack at all",
        raw(),
        raw(type="unknown", version=1),
        raw(version=1, worker="w", host="h", pid=1),
        raw(type="ack", version=1, series="s", block=1),
        raw(type="ack", version=1, series="s", block="1", frame_ids=[]),
        raw(type="ack", version=1, series="s", block=1, frame_ids=["x"]),
        raw(type="ack", version="1", series="s", block=1, frame_ids=[]),
        msgspec.msgpack.encode([1, 2, 3]),
        msgspec.msgpack.encode({1: 2}),
        b"\x91" * 100_000,
        b"\xa4\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        encode(Ack(series="s", block=1, frame_ids=[1, 2, 3]))[:-1],
        encode(Ack(series="s", block=1, frame_ids=[1, 2, 3])) + b"\0",
    ],
)
def test_anything_else_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(data)


@given(data=st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_random_bytes_never_do_more_than_raise_malformed(data: bytes) -> None:
    try:
        decode(data)
    except MalformedMessage:
        return
    assert msgspec.msgpack.decode(data)["type"]


@given(
    message=messages_of(Start), cut=st.integers(0, 400), place=st.integers(0, 400), byte=st.integers(0, 255)
)
@settings(max_examples=300, deadline=None)
def test_a_spoiled_message_is_a_message_or_malformed(message: Start, cut: int, place: int, byte: int) -> None:
    data = bytearray(encode(message))
    data[place % len(data)] = byte
    try:
        decoded = decode(bytes(data[: max(cut, 1)]))
    except MalformedMessage:
        return
    assert isinstance(decoded, MESSAGES)


def test_older_readers_ignore_fields_they_do_not_know() -> None:
    assert decode(raw(type="heartbeat", version=PROTOCOL_VERSION, mood="good")) == Heartbeat()
