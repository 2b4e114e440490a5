"""What goes into a payload comes out of it, and a hostile payload comes out as one error."""

from __future__ import annotations

import itertools
import math
import struct
import tracemalloc
from typing import Any

import blosc2
import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from common.configuration import CodecSpec
from common.wire.codec import (
    COMPRESSOR_BLOCK_BYTES,
    INTEGER_DTYPES,
    MAX_ARRAY_BYTES,
    decode_array,
    encode_array,
)
from common.wire.messages import ArrayHeader, MalformedMessage

CODINGS = ("plain", "packed", "bitshuffle-lz4", "bitshuffle-zstd")
FLOAT_CODINGS = ("plain", "bitshuffle-lz4", "bitshuffle-zstd")

shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=40)


def spec(values: str, coding: str, step: float = 0.0) -> CodecSpec:
    return CodecSpec(values=values, coding=coding, step=step)  # pyright: ignore[reportArgumentType]


def over_the_wire(values: NDArray[Any], codec: CodecSpec) -> tuple[NDArray[Any], ArrayHeader, int]:
    """The array as the other side decodes it, its header and the payload's bytes."""
    header, buffer = encode_array(values, codec)
    header = msgspec.msgpack.decode(msgspec.msgpack.encode(header), type=ArrayHeader)
    payload = bytes(memoryview(buffer).cast("B"))
    return decode_array(header, memoryview(payload)), header, len(payload)


@st.composite
def integer_arrays(draw: st.DrawFn) -> NDArray[Any]:
    """Integers of any dtype whose range is as often narrow as wide."""
    dtype = np.dtype(draw(st.sampled_from(INTEGER_DTYPES)))
    info = np.iinfo(dtype)
    bits = draw(st.integers(0, 8 * dtype.itemsize))
    low = draw(st.integers(int(info.min), int(info.max) - (2**bits - 1)))
    elements = st.integers(low, low + 2**bits - 1)
    return draw(hnp.arrays(dtype, shapes, elements=elements))


@given(values=integer_arrays(), coding=st.sampled_from(CODINGS))
@settings(max_examples=300, deadline=None)
@example(values=np.array([-128, 127], np.int8), coding="bitshuffle-zstd")
@example(values=np.array([-(2**63), 2**63 - 1], np.int64), coding="packed")
@example(values=np.array([0, 2**64 - 1], np.uint64), coding="bitshuffle-lz4")
@example(values=np.array([7], np.uint8), coding="packed")
def test_integers_come_back_as_they_were(values: NDArray[Any], coding: str) -> None:
    decoded, _, _ = over_the_wire(values, spec("integer", coding))
    assert decoded.dtype == values.dtype
    assert np.array_equal(decoded, values)
    assert decoded.flags.writeable


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        (dtype, bits)
        for dtype in INTEGER_DTYPES
        for bits in range(1, min(8 * np.dtype(dtype).itemsize, 32) + 1)
    ],
)
def test_every_width_of_bits_packs_and_unpacks(dtype: str, bits: int) -> None:
    info = np.iinfo(dtype)
    low = max(int(info.min), -(2 ** (bits - 1)))
    # more columns than are worked at a time, and a last column that is not full
    values = np.random.default_rng(bits).integers(low, low + 2**bits, 33_333, dtype=dtype)
    values[:2] = low, low + 2**bits - 1
    decoded, header, size = over_the_wire(values, spec("integer", "packed"))
    assert np.array_equal(decoded, values)
    assert header.bits == bits
    # exactly the bits needed, to whole words of 32 values
    assert math.ceil(values.size * bits / 8) <= size <= math.ceil(values.size / 32) * 4 * bits


@pytest.mark.parametrize("dtype", [">i2", ">u4", "<i2"])
@pytest.mark.parametrize("coding", CODINGS)
def test_foreign_byte_order_and_strides_are_taken(dtype: str, coding: str) -> None:
    values = np.arange(-300, 300).astype(dtype).reshape(20, 30)[::2, ::-3].T
    decoded, _, _ = over_the_wire(values, spec("integer", coding))
    assert np.array_equal(decoded, values)
    assert decoded.dtype.isnative


finite = st.floats(-1e6, 1e6, width=32)


@given(
    values=hnp.arrays(np.float32, shapes, elements=finite),
    step=st.floats(0.01, 1000),
    coding=st.sampled_from(CODINGS),
)
@settings(max_examples=150, deadline=None)
def test_quantised_values_err_by_half_a_step_at_most(
    values: NDArray[np.float32], step: float, coding: str
) -> None:
    decoded, header, _ = over_the_wire(values, spec("quantised", coding, step))
    assert decoded.dtype == np.float32
    assert header.step == step
    # and the rounding of the result to float32
    bound = step / 2 + 2.0**-24 * (np.abs(values).astype(np.float64) + step)
    assert (np.abs(decoded.astype(np.float64) - values) <= bound).all()


@given(
    values=hnp.arrays(np.float32, shapes, elements=st.floats(-(2.0**127), 2.0**127, width=32)),
    coding=st.sampled_from(FLOAT_CODINGS),
)
@settings(max_examples=150, deadline=None)
@example(values=np.array([1.7e38, 1.0, 0.0], np.float32), coding="plain")
@example(values=np.array([1e-45, 0.0], np.float32), coding="plain")
def test_half_precision_neither_overflows_nor_exceeds_its_bound(
    values: NDArray[np.float32], coding: str
) -> None:
    decoded, _, size = over_the_wire(values, spec("float16", coding))
    assert np.isfinite(decoded).all()
    exact = values.astype(np.float64)
    smallest_step = float(np.finfo(np.float32).smallest_subnormal)
    bound = np.maximum(np.abs(exact) * 2.0**-11, np.abs(exact).max() * 2.0**-39) + smallest_step
    assert (np.abs(decoded.astype(np.float64) - exact) <= bound).all()
    if coding == "plain":
        assert size == 2 * values.size


@given(
    values=hnp.arrays(np.float32, shapes, elements=st.floats(width=32)), coding=st.sampled_from(FLOAT_CODINGS)
)
@settings(max_examples=100, deadline=None)
def test_single_precision_comes_back_bit_by_bit(values: NDArray[np.float32], coding: str) -> None:
    decoded, _, _ = over_the_wire(values, spec("float32", coding))
    assert np.array_equal(decoded.view(np.uint32), values.view(np.uint32))


def test_noise_costs_little_more_than_its_entropy() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(20, 300_000).astype(np.uint16)
    share = np.bincount(counts) / counts.size
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum() / 8 * counts.size
    sizes = {coding: over_the_wire(counts, spec("integer", coding))[2] for coding in CODINGS}
    assert sizes["packed"] == math.ceil(counts.size / 32) * 4 * int(counts.max()).bit_length()
    assert entropy < sizes["bitshuffle-zstd"] < 1.25 * entropy
    assert sizes["bitshuffle-zstd"] < sizes["packed"] < sizes["plain"]


@pytest.mark.parametrize(
    ("values", "codec", "message"),
    [
        (np.zeros((0, 4), np.uint8), spec("integer", "plain"), "empty"),
        (np.zeros(4, np.float32), spec("integer", "packed"), "integers expected"),
        (np.zeros(4, np.bool_), spec("integer", "packed"), "integers expected"),
        (np.zeros(4, np.float32), spec("float32", "packed"), "packed"),
        (np.zeros(4, np.float32), spec("float16", "packed"), "packed"),
        (np.zeros(4, np.float32), spec("quantised", "plain", 0.0), "positive step"),
        (np.array([0, np.nan], np.float32), spec("quantised", "plain", 1.0), "not finite"),
        (np.array([0, np.inf], np.float32), spec("quantised", "plain", 1.0), "not finite"),
        (np.array([0, 1e10], np.float32), spec("quantised", "plain", 1.0), "too large"),
        (np.array([0, np.nan], np.float32), spec("float16", "plain"), "not finite"),
        (np.array([0, -np.inf], np.float32), spec("float16", "plain"), "not finite"),
        (
            np.broadcast_to(np.zeros(1, np.uint8), (MAX_ARRAY_BYTES + 1,)),
            spec("integer", "bitshuffle-lz4"),
            "larger than",
        ),
    ],
)
def test_what_cannot_be_coded_is_refused(values: NDArray[Any], codec: CodecSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_array(values, codec)


# ---- hostile headers and buffers --------------------------------------------------------------------


def good(coding: str, values: str = "integer") -> tuple[ArrayHeader, bytes]:
    header, buffer = encode_array(np.arange(-500, 500, dtype=np.int16), spec(values, coding, step=0.5))
    return header, bytes(memoryview(buffer).cast("B"))


def peak_bytes_of_refusal(header: ArrayHeader, buffer: bytes) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode_array(header, buffer)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    "change",
    [
        {"shape": []},
        {"shape": [0, 1000]},
        {"shape": [-1000]},
        {"shape": [-10, -100]},
        {"shape": [900]},
        {"shape": [10**9, 10**9]},
        {"shape": [2**63, 2]},
        {"shape": [1] * 100},
        {"shape": [MAX_ARRAY_BYTES]},
        {"dtype": "object"},
        {"dtype": "float64"},
        {"dtype": "int16, int16"},
        {"dtype": "nonsense" * 1000},
        {"bits": 0},
        {"bits": -8},
        {"bits": 7},
        {"bits": 33},
        {"bits": 10**30},
        {"values": "quantised"},
        {"values": "float16"},
        {"offset": 2**70},
    ],
    ids=str,
)
def test_contradicting_headers_are_refused_without_allocating(coding: str, change: dict[str, Any]) -> None:
    header, buffer = good(coding)
    assert peak_bytes_of_refusal(msgspec.structs.replace(header, **change), buffer) < 1_000_000


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_impossible_steps_are_refused(coding: str, step: float) -> None:
    header, buffer = good(coding, "quantised")
    with pytest.raises(MalformedMessage, match="step"):
        decode_array(msgspec.structs.replace(header, step=step), buffer)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("cut", [0, 1, 15, 40, -1])
def test_truncated_and_overlong_payloads_are_refused(coding: str, cut: int) -> None:
    header, buffer = good(coding)
    with pytest.raises(MalformedMessage):
        decode_array(header, buffer[:cut])
    with pytest.raises(MalformedMessage):
        decode_array(header, buffer + b"\0")


@pytest.mark.parametrize("coding", ["bitshuffle-lz4", "bitshuffle-zstd"])
def test_compressed_payload_of_another_size_is_refused(coding: str) -> None:
    """A small payload that unpacks to a great deal."""
    header, _ = good(coding)
    _, bomb = encode_array(np.zeros(50_000_000, np.int8), spec("integer", coding))
    assert len(bomb) < 100_000
    assert peak_bytes_of_refusal(header, bytes(bomb)) < 1_000_000


@given(
    coding=st.sampled_from(CODINGS),
    place=st.integers(0, 2000),
    byte=st.integers(0, 255),
)
@settings(max_examples=300, deadline=None)
def test_a_spoiled_payload_gives_an_array_or_malformed(coding: str, place: int, byte: int) -> None:
    header, buffer = good(coding)
    spoiled = bytearray(buffer)
    spoiled[place % len(spoiled)] = byte
    try:
        decoded = decode_array(header, bytes(spoiled))
    except MalformedMessage:
        return
    assert decoded.shape == (1000,)
    assert decoded.dtype == np.int16


headers = st.builds(
    ArrayHeader,
    shape=st.lists(st.integers(-2, 2**64 - 1) | st.integers(1, 20), max_size=10),
    dtype=st.sampled_from([*INTEGER_DTYPES, "float32"]) | st.text(max_size=5),
    coding=st.sampled_from(CODINGS),
    values=st.sampled_from(["integer", "float32", "float16", "quantised"]),
    bits=st.integers(-1, 70),
    offset=st.integers(-(2**63), 2**64 - 1),
    step=st.floats(),
    signed=st.booleans(),
)


@given(header=headers, buffer=st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_any_header_over_any_buffer_gives_an_array_or_malformed(header: ArrayHeader, buffer: bytes) -> None:
    try:
        decoded = decode_array(header, buffer)
    except MalformedMessage:
        return
    assert list(decoded.shape) == header.shape
    assert decoded.dtype.name == header.dtype


def test_payload_at_an_odd_address_is_read() -> None:
    values = np.arange(1000, dtype=np.int32) - 500
    for coding in CODINGS:
        header, buffer = encode_array(values, spec("integer", coding))
        payload = memoryview(b"x" + bytes(memoryview(buffer).cast("B")))[1:]
        assert np.array_equal(decode_array(header, payload), values)


# ---- compressed payloads: only the one form that the encoder writes is let through ------------------


def repeated_blocks() -> list[NDArray[np.uint8]]:
    """Blocks of the compressor's size that it codes in every way it has, and a short one at the end."""
    rng = np.random.default_rng(0)
    size = COMPRESSOR_BLOCK_BYTES
    return [
        np.zeros(size, np.uint8),
        np.full(size, 255, np.uint8),
        rng.integers(0, 3, size, dtype=np.uint8),
        rng.integers(0, 256, size, dtype=np.uint8),
    ]


@pytest.mark.parametrize("coding", ["bitshuffle-lz4", "bitshuffle-zstd"])
@pytest.mark.parametrize("last", [1, 8, 100, COMPRESSOR_BLOCK_BYTES - 8])
def test_every_kind_of_block_is_let_through(coding: str, last: int) -> None:
    blocks = repeated_blocks()
    for order in itertools.permutations(range(4), 2):
        for tail in blocks:
            values = np.concatenate([*(blocks[k] for k in order), tail[:last]])
            decoded, _, _ = over_the_wire(values, spec("integer", coding))
            assert np.array_equal(decoded, values)


def spoil(payload: bytes, place: int, layout: str, value: int) -> bytes:
    spoiled = bytearray(payload)
    struct.pack_into(layout, spoiled, place, value)
    return bytes(spoiled)


def first_block(payload: bytes) -> int:
    return struct.unpack_from("<i", payload, 32)[0]


@pytest.mark.parametrize("coding", ["bitshuffle-lz4", "bitshuffle-zstd"])
@pytest.mark.parametrize(
    ("place", "layout", "value", "message"),
    [
        (0, "B", 4, "format"),
        (0, "B", 9, "format"),
        (1, "B", 2, "format"),
        (2, "B", 0x9D, "features"),  # a delta filter
        (2, "B", 0x95 & ~0x01, "features"),  # an older header
        (2, "B", 0x85, "another compressor"),  # split blocks
        (2, "B", 0x55, "another compressor"),  # zlib
        (3, "B", 0, "in 0s"),
        (3, "B", 255, "in 255s"),
        (4, "<i", 2**31 - 1, "2147483647 bytes"),
        (4, "<i", -1, "-1 bytes"),
        (8, "<i", 0, "blocks of 0"),
        (8, "<i", 1, "blocks of 1"),
        (8, "<i", -1, "blocks of -1"),
        (8, "<i", 2**30, "blocks of 1073741824"),
        (12, "<i", 31, "says it has 31"),
        (16, "B", 1, "filters"),  # byte shuffle
        (16, "B", 36, "filters"),  # integer truncation, one of the library's own plug-ins
        (17, "B", 3, "filters"),  # a delta after the shuffle
        (22, "B", 36, "filters"),  # a compressor for which the library runs `python -c "import blosc2_…"`
        (30, "B", 1, "filters"),
        (31, "B", 0x08, "filters"),  # a lazy chunk, the rest of which is a file's
        (31, "B", 0x01, "filters"),  # a dictionary
        (31, "B", 0x10, "zeros"),
        (31, "B", 0x30, "filters"),  # a repeated value
        (31, "B", 0x40, "filters"),  # memory as it happens to be
        (32, "<i", -4, "a block at -4"),
        (32, "<i", 0, "a block at 0"),
        (32, "<i", 2**31 - 1, "a block at 2147483647"),
        (-1, "<i", -1, "unknown kind"),
        (-1, "<i", -256, "-256 bytes"),
        (-1, "<i", 2**31 - 1, "2147483647 bytes"),
        (-1, "<i", -(2**31), "-2147483648 bytes"),
    ],
)
def test_other_forms_of_compressed_payloads_are_refused_unseen(
    coding: str, place: int, layout: str, value: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library that decompresses does far more than this wire needs; it must not see these at all."""
    values = np.random.default_rng(0).integers(0, 4, 70_000, dtype=np.uint8)
    header, buffer = encode_array(values, spec("integer", coding))
    payload = bytes(memoryview(buffer).cast("B"))
    at = first_block(payload) if place < 0 else place

    def never(*_: object, **__: object) -> None:
        pytest.fail("the payload reached the library")

    monkeypatch.setattr(blosc2, "decompress2", never)
    with pytest.raises(MalformedMessage, match=message):
        decode_array(header, spoil(payload, at, layout, value))


def test_uninitialised_memory_is_never_handed_out() -> None:
    """A chunk of 32 bytes may say "whatever is there": the result would be what this process last held."""
    header, buffer = encode_array(np.zeros(70_000, np.uint8), spec("integer", "bitshuffle-zstd"))
    payload = bytes(memoryview(buffer).cast("B"))
    assert len(payload) == 32
    assert payload[31] == 0x10
    for special in (0x20, 0x30, 0x40, 0x50, 0x70):
        with pytest.raises(MalformedMessage):
            decode_array(header, spoil(payload, 31, "B", special))


def test_another_compressor_inside_is_refused() -> None:
    values = np.random.default_rng(0).integers(0, 4, 70_000, dtype=np.uint8)
    header, buffer = encode_array(values, spec("integer", "bitshuffle-zstd"))
    payload = bytes(memoryview(buffer).cast("B"))
    with pytest.raises(MalformedMessage, match="not of Zstandard"):
        decode_array(header, spoil(payload, first_block(payload) + 4, "<i", 0x184D2A50))  # a skippable frame
    other = msgspec.structs.replace(header, coding="bitshuffle-lz4")
    with pytest.raises(MalformedMessage):
        decode_array(other, payload)


@pytest.mark.parametrize("coding", CODINGS)
def test_an_array_of_another_shape_than_expected_is_refused_before_it_is_made(coding: str) -> None:
    header, _ = encode_array(np.zeros(70_000_000, np.int8), spec("integer", coding))
    small, buffer = good(coding)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage, match=r"70000000.* \[1000\] expected"):
            decode_array(header, buffer, [1000])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert decode_array(small, buffer, (1000,)).shape == (1000,)


@pytest.mark.parametrize(
    ("values", "coding"),
    [
        *((values, coding) for values in ("float32", "float16") for coding in FLOAT_CODINGS),
        ("integer", "plain"),
        ("integer", "packed"),
    ],
)
def test_signed_items_are_for_compressed_integers_alone(values: str, coding: str) -> None:
    array = np.arange(70_000, dtype=np.int32 if values == "integer" else np.float32)
    header, buffer = encode_array(array, spec(values, coding))
    with pytest.raises(MalformedMessage, match="signed"):
        decode_array(msgspec.structs.replace(header, signed=True), buffer)


@pytest.mark.parametrize("coding", ["packed", "bitshuffle-zstd"])
def test_decoding_holds_two_arrays_at_most(coding: str) -> None:
    for dtype, values in (("int64", "integer"), ("float32", "quantised")):
        array = np.random.default_rng(0).integers(-1000, 1000, 1_000_000).astype(dtype)
        header, buffer = encode_array(array, spec(values, coding, step=1.0))
        decode_array(header, buffer)
        tracemalloc.start()
        try:
            decode_array(header, buffer)
            assert tracemalloc.get_traced_memory()[1] <= 2 * array.nbytes + 200_000  # and strips
        finally:
            tracemalloc.stop()
