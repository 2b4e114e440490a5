"""Every message survives the wire, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.wire.messages import (
    MAX_BLOCK_FRAMES,
    MAX_DEPTH,
    MAX_FRAME_ID,
    MAX_FRAMES_HEADER_BYTES,
    MAX_HEADER_BYTES,
    PROTOCOL_VERSION,
    Ack,
    ArrayHeader,
    Event,
    Frames,
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
        case msgspec.inspect.IntType(ge=low, le=high):
            return st.integers(-(2**63) if low is None else low, 2**64 - 1 if high is None else high)
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
    any_fields = st.builds(cls, **{f.name: values_of(f.type) for f in fields if f.name != "version"})
    return any_fields.flatmap(in_agreement) if cls is Frames else any_fields


@st.composite
def in_agreement(draw: st.DrawFn, frames: Frames) -> Frames:
    """The same with an entry a frame in every list."""
    ids = draw(st.lists(st.integers(0, MAX_FRAME_ID), min_size=1, max_size=4, unique=True))
    references = draw(st.lists(st.sampled_from(ids), unique=True))
    header = frames.payload
    whole = msgspec.structs.replace(header, shape=[len(references), 5, 5]) if references else None
    cells = st.lists(numbers | st.text(max_size=8), min_size=len(ids), max_size=len(ids))
    return msgspec.structs.replace(
        frames,
        frame_ids=ids,
        acquired_at=draw(
            st.lists(st.floats(-1e12, 1e12, allow_nan=False), min_size=len(ids), max_size=len(ids))
        ),
        payload=msgspec.structs.replace(header, shape=[len(ids), *header.shape]),
        reference_ids=references,
        reference_payload=whole,
        metadata=draw(st.none() | st.dictionaries(st.text(max_size=5), cells, max_size=3)),
        wanted=draw(st.none() | st.lists(st.sampled_from(ids))),
    )


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


# ---- bounds -----------------------------------------------------------------------------------------


def frames(count: int = 3, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(
        Frames(
            series="s",
            block=0,
            config_id="c",
            frame_ids=list(range(count)),
            acquired_at=[1.0] * count,
            payload=ArrayHeader(shape=[count, 4], dtype="uint8", coding="plain", bits=8),
        )
    )
    return fields | changes


def whole(count: int) -> dict[str, Any]:
    return {"shape": [count, 8, 8], "dtype": "uint8", "coding": "plain", "bits": 8}


def test_a_block_in_agreement_with_itself_is_taken() -> None:
    for fields in (
        frames(),
        frames(MAX_BLOCK_FRAMES),
        frames(metadata={"rlnImageName": ["a", "b", "c"], "rlnDefocusU": [1.0, 2, None]}),
        frames(wanted=[2]),
        frames(reference_ids=[1], reference_payload=whole(1)),
        frames(frame_ids=[0, 5, MAX_FRAME_ID]),
    ):
        assert isinstance(decode(raw(**fields)), Frames)


@pytest.mark.parametrize(
    "changes",
    [
        {"frame_ids": []},
        {"frame_ids": [0, 1, 1]},
        {"frame_ids": [0, 1, -1]},
        {"frame_ids": [0, 1, 2**31]},  # results stand in an MRC stack: such a slot is beyond its end
        {"frame_ids": [0, 1, 2**63]},
        {"frame_ids": [0, 1]},
        {"acquired_at": [1.0, 1.0]},
        {"acquired_at": [1.0, 1.0, float("nan")]},
        {"acquired_at": [1.0, 1.0, float("inf")]},
        {"payload": whole(2)},
        {"payload": whole(3) | {"shape": []}},
        {"payload": whole(3) | {"shape": [3] * 100}},
        {"metadata": {"rlnImageName": ["a", "b"]}},
        {"metadata": {"rlnImageName": ["a", "b", "c", "d"]}},
        {"metadata": {"rlnImageName": ["a", "b", ["c"]]}},
        {"metadata": {"rlnImageName": ["a", "b", {}]}},
        {"metadata": {"rlnImageName": ["a", "b", b"c"]}},
        {"wanted": [3]},
        {"reference_ids": [3], "reference_payload": whole(1)},
        {"reference_ids": [1, 1], "reference_payload": whole(2)},
        {"reference_ids": [1], "reference_payload": None},
        {"reference_ids": [1], "reference_payload": whole(2)},
        {"reference_ids": [], "reference_payload": whole(1)},
        {"block": -1},
        {"attempt": -1},
    ],
    ids=str,
)
def test_a_block_that_contradicts_itself_is_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        decode(raw(**frames(**changes)))


def test_a_block_of_too_many_frames_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="16384"):
        decode(raw(**frames(MAX_BLOCK_FRAMES + 1)))


def event(details: Any) -> bytes:
    return raw(type="event", component="c", name="n", kind="k", message="m", details=details)


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth - 1):
        value = {"a": value} if level % 2 else [value]
    return {"a": value}


def test_values_of_free_form_are_plain_and_not_deep() -> None:
    assert isinstance(decode(event(nested(MAX_DEPTH))), Event)
    for details in (
        nested(MAX_DEPTH + 1),
        nested(900),
        {"a": b"bytes"},
        {"a": msgspec.msgpack.Ext(5, b"")},
        {"a": [{(1, 2): 3}]},
    ):
        with pytest.raises(MalformedMessage):
            decode(event(details))
    with pytest.raises(MalformedMessage):
        decode(event({"a": msgspec.Raw(b"\xd6\xff\x00\x00\x00\x00")}))  # a time


def peak_bytes(data: bytes) -> int:
    tracemalloc.start()
    try:
        with contextlib.suppress(MalformedMessage):
            decode(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def array32(count: int, item: bytes) -> msgspec.Raw:
    return msgspec.Raw(b"\xdd" + count.to_bytes(4, "big") + item * count)


@pytest.mark.parametrize(
    "item", [b"\x90", b"\x80", b"\x81\xa0\x80", b"\xc0", b"\xa2ab", b"\xcb" + bytes(8)], ids=bytes.hex
)
def test_what_a_header_becomes_is_bounded_by_its_bytes(item: bytes) -> None:
    """The worst that fits is stated beside the bounds."""
    count = (MAX_HEADER_BYTES - 200) // len(item)
    data = event({"a": array32(count, item)})
    assert len(data) <= MAX_HEADER_BYTES
    assert peak_bytes(data) < 100 * MAX_HEADER_BYTES
    if item[0] >= 0xA0:  # a value that a table may hold
        count = 2_000_000 // len(item)
        data = raw(**frames(metadata={"a": array32(count, item)}))
        assert peak_bytes(data) < 21 * len(data)


def test_sizes_that_are_only_claimed_cost_nothing() -> None:
    for kind in (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"):
        claim = kind + b"\x05\xff\xff\xff"
        assert peak_bytes(event({"a": msgspec.Raw(claim)})) < 100_000
        assert peak_bytes(raw(**frames(frame_ids=msgspec.Raw(claim)))) < 100_000
        assert peak_bytes(raw(**frames(metadata=msgspec.Raw(claim)))) < 100_000


def test_headers_that_are_too_long_are_not_read() -> None:
    with pytest.raises(MalformedMessage, match="at most"):
        decode(bytes(MAX_FRAMES_HEADER_BYTES + 1))
    long = {"a": "x" * MAX_HEADER_BYTES}
    with pytest.raises(MalformedMessage):
        decode(event(long))
    columns = {"rlnImageName": ["x" * MAX_HEADER_BYTES] * 3}
    assert isinstance(decode(raw(**frames(metadata=columns))), Frames)


def test_what_is_wrong_is_told_in_one_short_printable_line() -> None:
    with pytest.raises(MalformedMessage) as caught:
        decode(raw(type="\x1b[31m\n" + "x" * 1000, version=1))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
