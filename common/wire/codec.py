"""Arrays to payload buffers and back: two pure functions.

First the values: integers stay as they are, real numbers become float32, float16 times a power of two, or
integers of a stated step. Then the coding of the stored numbers: *plain* (little-endian items), *packed*
(value minus the smallest, in exactly the bits the largest needs), or *bitshuffle* with lz4 or zstd (blosc2).

Layout of packed values, where the bits are not those of a whole item (8, 16, 32, 64): the values are laid in
32 rows of L = ceil(count / 32); the 32 values of a column fill as many 32-bit little-endian words as each has
bits, lowest bits first; word w of all columns lies together. So neighbouring values do the same work, which
compilers turn into vector instructions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from common.compiled import compiled
from common.configuration import CodecSpec
from common.wire.compressed import decompress
from common.wire.messages import MAX_ARRAY_BYTES, ArrayHeader, MalformedMessage

Array = NDArray[Any]
Buffer = bytes | memoryview | Array

MAX_DIMENSIONS = 8

INTEGER_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
ROWS = 32  # of values that share words
STRIP = 1024  # columns worked at a time, so that their words stay in the cache

# Compressor and level. Higher levels of zstd take twice the time for less than 1 % fewer bytes on noise;
# large blocks, not split by byte, save 2 to 10 % against blosc2's own choice.
COMPRESSORS = {"bitshuffle-lz4": (blosc2.Codec.LZ4, 5), "bitshuffle-zstd": (blosc2.Codec.ZSTD, 3)}
COMPRESSOR_BLOCK_BYTES = 1 << 19


def encode_array(values: Array, codec: CodecSpec) -> tuple[ArrayHeader, Buffer]:
    """An array as a header and one contiguous buffer.

    Parameters
    ----------
    values : array, any shape
        Integers of any width where ``codec.values`` is "integer", else real numbers.
    codec : CodecSpec
        Its error bound: none for integers, 2^-24 relative for float32; quantised: half a step; float16:
        2^-11 relative, or 2^-40 of the largest value where that is more.

    Raises
    ------
    ValueError
        If the array is empty or too large, if its dtype does not go with the codec, or if real numbers are
        not finite or too large for the step.
    """
    if values.size == 0:
        raise ValueError("an empty array cannot be sent")
    shape = list(values.shape)
    if values.size * (values.dtype.itemsize if codec.values == "integer" else 4) > MAX_ARRAY_BYTES:
        raise ValueError(f"array of shape {shape} is larger than the {MAX_ARRAY_BYTES} bytes of one payload")
    step = 0.0
    match codec.values:
        case "integer":
            if values.dtype.name not in INTEGER_DTYPES:
                raise ValueError(f"integers expected for lossless coding, got {values.dtype}")
            dtype, stored = values.dtype.name, np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        case "quantised":
            dtype, step, stored = "float32", codec.step, _quantised(values, codec.step)
        case "float16":
            dtype = "float32"
            step, stored = _scaled_half(values)
        case "float32":
            dtype, stored = "float32", np.ascontiguousarray(values, "<f4")
    offset, signed = 0, False
    stored = stored.reshape(-1)
    if codec.coding == "packed":
        if stored.dtype.kind == "f":
            raise ValueError(
                f"coding 'packed' is for integers; use 'plain' or 'bitshuffle-zstd' for {codec.values}"
            )
        offset, bits, buffer = _packed(stored)
    elif codec.coding == "plain":
        bits, buffer = 8 * stored.dtype.itemsize, stored
    else:
        if stored.dtype.kind != "f":
            signed, stored = _narrowed(stored)
        bits = 8 * stored.dtype.itemsize
        buffer = _compressed(stored, codec.coding)
    header = ArrayHeader(
        shape=shape,
        dtype=dtype,
        coding=codec.coding,
        values=codec.values,
        bits=bits,
        offset=offset,
        step=step,
        signed=signed,
    )
    return header, buffer


def decode_array(header: ArrayHeader, buffer: Buffer, shape: Sequence[int] | None = None) -> Array:
    """The array that ``encode_array`` was given (integers), or its float32 within the error bound.

    The result owns its memory. Whatever the header says, nothing larger than ``MAX_ARRAY_BYTES`` is ever
    allocated, and no more than two such arrays at a time; where ``shape`` is given, no more than two arrays
    of that shape.

    Parameters
    ----------
    header, buffer
        As ``encode_array`` gave them.
    shape : sequence of int, optional
        What the array must have; a header that says otherwise is refused before anything is allocated.

    Raises
    ------
    MalformedMessage
        If the header contradicts itself or the buffer.
    """
    _check(header)
    if shape is not None and list(shape) != header.shape:
        raise MalformedMessage(f"array of shape {header.shape!s:.80}, {list(shape)} expected")
    count = math.prod(header.shape)
    raw = np.frombuffer(buffer, np.uint8)
    kind = "f" if header.values.startswith("float") else "u"
    if header.coding == "packed":
        target = np.dtype(header.dtype if header.values == "integer" else "int32")
        stored = _unpacked(raw, count, header.bits, header.offset, target)
    elif header.coding == "plain":
        item = np.dtype(f"<{'f' if kind == 'f' else 'i'}{header.bits // 8}")
        if raw.size != count * item.itemsize:
            raise MalformedMessage(f"payload of {raw.size} bytes, {count * item.itemsize} expected")
        stored = np.empty(count, item)
        stored.view(np.uint8)[:] = raw
        if header.values == "integer":
            stored = stored.view(np.dtype(header.dtype).newbyteorder("<"))
    else:
        stored = np.empty(count, f"<{kind}{header.bits // 8}")
        decompress(raw, stored, header.coding)
        if header.signed:
            stored = _unzigzag(stored)
    match header.values:
        case "integer":
            decoded = stored.astype(header.dtype, copy=False)
        case "float32":
            decoded = stored.astype(np.float32, copy=False)
        case "float16" | "quantised":
            decoded = np.empty(count, np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # only where the payload is spoiled
                np.multiply(stored, header.step, out=decoded, dtype=np.float64, casting="unsafe")
    return decoded.reshape(header.shape)


def _check(header: ArrayHeader) -> None:
    """Raise MalformedMessage unless the header makes sense by itself."""
    dtypes = INTEGER_DTYPES if header.values == "integer" else ("float32",)
    if header.dtype not in dtypes:
        raise MalformedMessage(f"dtype {header.dtype!r:.40} does not go with {header.values} values")
    itemsize = np.dtype(header.dtype).itemsize
    if not 0 < len(header.shape) <= MAX_DIMENSIONS or min(header.shape) < 1:
        raise MalformedMessage(
            f"shape {header.shape!s:.80} is empty or has more than {MAX_DIMENSIONS} dimensions"
        )
    if math.prod(header.shape) * itemsize > MAX_ARRAY_BYTES:
        raise MalformedMessage(f"shape {header.shape!s:.80} exceeds {MAX_ARRAY_BYTES} bytes")
    widths = {
        "integer": (*range(1, 33), 64) if header.coding == "packed" else (8, 16, 32, 64),
        "quantised": range(1, 33) if header.coding == "packed" else (8, 16, 32),
        "float16": (16,),
        "float32": (32,),
    }[header.values]
    if header.values == "integer" and header.coding == "plain":
        widths = (8 * itemsize,)
    if header.bits not in widths or header.bits > 8 * itemsize:
        raise MalformedMessage(f"{header.bits} bits do not go with {header.values} values, {header.coding}")
    if header.coding == "packed" and header.values.startswith("float"):
        raise MalformedMessage("floating-point values cannot be packed")
    if header.signed and (header.values.startswith("float") or header.coding in ("plain", "packed")):
        raise MalformedMessage(f"signed items do not go with {header.values} values, {header.coding}")
    if header.values in ("quantised", "float16") and not (math.isfinite(header.step) and header.step > 0):
        raise MalformedMessage(f"step {header.step} is not a positive number")
    limits = np.iinfo(header.dtype if header.values == "integer" else "int32")
    if not limits.min <= header.offset <= limits.max:
        raise MalformedMessage(f"offset {header.offset} is outside {limits.dtype}")


# ---- values -----------------------------------------------------------------------------------------


def _quantised(values: Array, step: float) -> NDArray[np.int32]:
    if not step > 0:
        raise ValueError(f"quantised values need a positive step, got {step}")
    precision = np.float32 if values.dtype.name in ("float16", "float32") else np.float64
    flat = np.ascontiguousarray(values, precision).reshape(-1)
    steps = np.empty(flat.size, np.int32)
    if not _quantise(_read_only(flat), step, steps):
        largest = float(np.abs(values).max())
        raise ValueError(f"values up to {largest:g} are not finite or too large for steps of {step:g}")
    return steps


@compiled
def _quantise(values, step, steps):  # pyright: ignore  # compiled
    """values (count,) to the nearest steps (count,) int32; False if one does not fit or is not a number."""
    fits = True
    for i in range(values.size):
        nearest = np.rint(values[i] / step)
        fits &= abs(nearest) < 2147483648.0
        steps[i] = np.int32(nearest)
    return fits


def _scaled_half(values: Array) -> tuple[float, NDArray[np.float16]]:
    """Values as float16 with the largest scaled into [2^14, 2^15], so that none overflows; and the scale."""
    largest = float(np.abs(values).max())
    if not math.isfinite(largest):
        raise ValueError("values are not finite")
    step = 2.0 ** (math.frexp(largest)[1] - 15) if largest > 0 else 1.0
    scaled = np.empty(values.shape, "<f2")
    return step, np.divide(values, step, out=scaled, dtype=np.float64, casting="unsafe")


def _narrowed(stored: Array) -> tuple[bool, Array]:
    """Integers as the smallest unsigned items that hold them; zigzag (0, -1, 1 ...) if any is negative."""
    signed = bool(stored.dtype.kind == "i" and stored.min() < 0)
    if signed:
        shift = 8 * stored.dtype.itemsize - 1
        stored = ((stored << 1) ^ (stored >> shift)).view(stored.dtype.str.replace("i", "u"))
    width = _bits_needed(int(stored.max()))
    item = next(size for size in (1, 2, 4, 8) if 8 * size >= width)
    return signed, stored.astype(f"<u{item}", copy=False)


def _unzigzag(stored: Array) -> Array:
    """In place but for one array of the same size; ``stored`` is spoiled."""
    half = stored >> 1
    stored &= 1
    np.negative(stored, out=stored)
    half ^= stored
    return half.view(stored.dtype.str.replace("u", "i"))


def _read_only(array: Array) -> Array:
    """A view that cannot be written: memory-mapped frames cannot either, and one compilation serves both."""
    view = array.view()
    view.flags.writeable = False
    return view


def _bits_needed(largest: int) -> int:
    return max(largest.bit_length(), 1)


# ---- coding -----------------------------------------------------------------------------------------


def _packed(stored: Array) -> tuple[int, int, Array]:
    """(offset, bits per value, buffer) of integers."""
    offset = int(stored.min())
    bits = _bits_needed(int(stored.max()) - offset)
    if bits > 32:
        bits = 64
    unsigned = stored.view(f"<u{stored.dtype.itemsize}")
    if bits in (8, 16, 32, 64):
        # differences are right modulo the width of the input, which is at least that of the output
        start = unsigned.dtype.type(offset % 2 ** (8 * stored.dtype.itemsize))
        return offset, bits, (unsigned - start).astype(f"<u{bits // 8}")
    words = np.zeros((bits, _columns(stored.size)), np.uint32)
    _pack(_read_only(unsigned), np.uint32(offset % 2**32), bits, words)
    return offset, bits, words.reshape(-1)


def _unpacked(raw: NDArray[np.uint8], count: int, bits: int, offset: int, dtype: np.dtype[Any]) -> Array:
    """Integers of ``dtype`` from a packed buffer."""
    whole_item = bits in (8, 16, 32, 64)
    expected = count * bits // 8 if whole_item else 4 * bits * _columns(count)
    if raw.size != expected:
        raise MalformedMessage(
            f"payload of {raw.size} bytes, {expected} expected for {count} values of {bits} bits"
        )
    unsigned = np.dtype(f"<u{dtype.itemsize}")
    start = unsigned.type(offset % 2 ** (8 * dtype.itemsize))
    if whole_item:
        items = np.empty(count, f"<u{bits // 8}")
        items.view(np.uint8)[:] = raw
        out = items.astype(unsigned, copy=False)
        out += start
        return out.view(dtype)
    # a copy: what comes off the wire lies at odd addresses, which compiled loops do not take
    words = np.empty((bits, _columns(count)), np.uint32)
    words.reshape(-1).view(np.uint8)[:] = raw
    out = np.empty(count, unsigned)
    _unpack(words, bits, start, out)
    return out.view(dtype)


def _columns(count: int) -> int:
    return -(-count // ROWS)


@compiled
def _pack(values, offset, bits, words):  # pyright: ignore  # compiled
    """values (count,) unsigned -> words (bits, columns) uint32, zero on entry."""
    count, columns = values.size, words.shape[1]
    mask = np.uint32((np.uint64(1) << np.uint64(bits)) - np.uint64(1))
    for first in range(0, columns, STRIP):
        for row in range(ROWS):
            start = row * columns + first
            length = min(STRIP, columns - first, count - start)
            word, shift = row * bits // 32, np.uint32(row * bits % 32)
            low = words[word, first:]
            if shift + bits <= 32:
                for i in range(length):
                    low[i] |= ((np.uint32(values[start + i]) - offset) & mask) << shift
            else:
                high = words[word + 1, first:]
                rest = np.uint32(32) - shift
                for i in range(length):
                    value = (np.uint32(values[start + i]) - offset) & mask
                    low[i] |= value << shift
                    high[i] |= value >> rest


@compiled
def _unpack(words, bits, offset, values):  # pyright: ignore  # compiled
    """words (bits, columns) uint32 -> values (count,) unsigned."""
    count, columns = values.size, words.shape[1]
    mask = np.uint32((np.uint64(1) << np.uint64(bits)) - np.uint64(1))
    for first in range(0, columns, STRIP):
        for row in range(ROWS):
            start = row * columns + first
            length = min(STRIP, columns - first, count - start)
            word, shift = row * bits // 32, np.uint32(row * bits % 32)
            low = words[word, first:]
            if shift + bits <= 32:
                for i in range(length):
                    values[start + i] = ((low[i] >> shift) & mask) + offset
            else:
                high = words[word + 1, first:]
                rest = np.uint32(32) - shift
                for i in range(length):
                    values[start + i] = (((low[i] >> shift) | (high[i] << rest)) & mask) + offset


def _compressed(stored: Array, coding: str) -> bytes:
    compressor, level = COMPRESSORS[coding]
    compressed = blosc2.compress2(
        stored,
        cparams={
            "codec": compressor,
            "clevel": level,
            "typesize": stored.dtype.itemsize,
            "filters": [blosc2.Filter.BITSHUFFLE],
            "blocksize": COMPRESSOR_BLOCK_BYTES,
            "splitmode": blosc2.SplitMode.NEVER_SPLIT,
            "nthreads": 1,
        },
    )
    assert isinstance(compressed, bytes)
    return compressed
