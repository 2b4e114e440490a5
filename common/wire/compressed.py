"""Compressed payloads of strangers: looked at byte by byte before the library that decompresses sees them.

A payload is one chunk of blosc2's format, and that format can do far more than this wire needs: chunks of
uninitialised memory, delta filters, filters and compressors fetched from plug-ins, for which the library
runs the ``python`` it finds on the path. So only the one form is let through that our own encoder writes:
bit-shuffled LZ4 or Zstandard in whole blocks, or what it makes of data that do not shrink or are all zero.

Layout (little-endian): 32 bytes of header (format version, compressor's version, flags, bytes of an item,
decoded bytes, bytes of a block, chunk bytes, filters, flags), the offset of each block (int32), the blocks.
A block is its length (int32) and as many bytes; length 0 means zeros, -255 to -1 a byte repeated, told by
one byte more.
"""

from __future__ import annotations

import struct
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from common.wire.messages import MalformedMessage

_HEADER = struct.Struct("<BBBBiii16s")
_INT32 = struct.Struct("<i")
_FORMAT, _COMPRESSOR_FORMAT = 5, 1
_EXTENDED, _COPIED, _DELTA, _NOT_SPLIT = 0x05, 0x02, 0x08, 0x10  # of the flags
_ZEROS = 0x10  # of the last byte
_LARGEST_BLOCK_BYTES = 4 << 20  # eight times what the encoder takes: what the library allocates beside
_SMALLEST_BLOCK_BYTES = 64 << 10
_FILTERS = bytes((2, 0, 0, 0, 0, 0))  # bit shuffling alone
_LZ4, _ZSTD = 1, 5  # blosc2's numbers of the compressors
_SHORT = {_LZ4: 1, _ZSTD: 4}  # and in the flags
_ZSTD_MAGIC = bytes.fromhex("28b52ffd")
_REPEATED = 1

COMPRESSORS = {"bitshuffle-lz4": _LZ4, "bitshuffle-zstd": _ZSTD}


def decompress(raw: NDArray[np.uint8], out: NDArray[Any], coding: str) -> None:
    """Fill ``out``, contiguous, from a chunk (bytes,) that must hold exactly as many bytes of its items.

    Beside ``out`` at most a few blocks (4 MiB each) are allocated, whatever the chunk says.

    Raises
    ------
    MalformedMessage
        If the chunk is not of the form this wire uses, contradicts itself, or is spoiled.
    """
    if raw.size < _HEADER.size:
        raise MalformedMessage(f"compressed payload of {raw.size} bytes, shorter than its header")
    form, compressor_form, flags, item, size, block, length, rest = _HEADER.unpack_from(raw.data)
    compressor = COMPRESSORS[coding]
    if form != _FORMAT or compressor_form != _COMPRESSOR_FORMAT:
        raise MalformedMessage(f"compressed payload of format {form}.{compressor_form}, not {_FORMAT}.1")
    if size != out.nbytes or length != raw.size or item != out.itemsize:
        raise MalformedMessage(
            f"compressed payload of {raw.size} bytes says it has {length}, for {size} bytes in {item}s; "
            f"{out.nbytes} in {out.itemsize}s expected"
        )
    special = rest[15]
    plain_filters = rest[:15] == _FILTERS + bytes((compressor,)) + bytes(8)
    if flags & (_EXTENDED | _DELTA) != _EXTENDED or not plain_filters or special not in (0, _ZEROS):
        raise MalformedMessage("compressed payload with filters or features that are not of this protocol")
    memory = out.reshape(-1).view(np.uint8)
    if special == _ZEROS:
        if length != _HEADER.size:
            raise MalformedMessage(f"compressed payload of zeros has {length - _HEADER.size} bytes too many")
        memory[:] = 0
    elif flags & _COPIED:
        if length - _HEADER.size != size:
            raise MalformedMessage(f"payload of {length - _HEADER.size} bytes, {size} expected")
        memory[:] = raw[_HEADER.size :]
    else:
        if not flags & _NOT_SPLIT or flags >> 5 != _SHORT[compressor]:
            raise MalformedMessage("compressed payload by another compressor than its header says")
        _check_blocks(raw, size, block, item, compressor)
        _inflate(raw, out)


def _check_blocks(raw: NDArray[np.uint8], size: int, block: int, item: int, compressor: int) -> None:
    """Raise MalformedMessage unless every block lies in the payload and holds no more than its share."""
    in_bounds = min(size, _SMALLEST_BLOCK_BYTES) <= block <= min(size, _LARGEST_BLOCK_BYTES)
    if not in_bounds or block % item:
        raise MalformedMessage(f"compressed payload in blocks of {block} bytes")
    count = -(-size // block)
    first, end = _HEADER.size + 4 * count, raw.size
    if end < first + 4:
        raise MalformedMessage(f"compressed payload of {end} bytes, too short for its {count} blocks")
    memory = raw.data
    for number, start in enumerate(struct.unpack_from(f"<{count}i", memory, _HEADER.size)):
        if not first <= start <= end - 4:
            raise MalformedMessage(f"compressed payload of {end} bytes with a block at {start}")
        (length,) = _INT32.unpack_from(memory, start)
        room = block if number < count - 1 else size - number * block
        if not -255 <= length <= room or start + 4 + (length if length >= 0 else 1) > end:
            raise MalformedMessage(f"compressed payload with {length} bytes for a block of {room}")
        if length < 0 and memory[start + 4] != _REPEATED:
            raise MalformedMessage("compressed payload with a block of an unknown kind")
        is_coded = 0 < length < room
        if is_coded and compressor == _ZSTD and bytes(memory[start + 4 : start + 8]) != _ZSTD_MAGIC:
            raise MalformedMessage("compressed payload with a block that is not of Zstandard")


def _inflate(raw: NDArray[np.uint8], out: NDArray[Any]) -> None:
    try:
        blosc2.decompress2(raw, dst=out, dparams={"nthreads": 1})
    except (RuntimeError, ValueError) as error:
        raise MalformedMessage(f"payload cannot be decompressed: {error}") from error
