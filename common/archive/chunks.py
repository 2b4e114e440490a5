"""Rows of an array to the bytes of an HDF5 chunk: shuffle, deflate, Fletcher-32, which every library has.

Measurements are mostly noise: there is hardly anything repeated for deflate to find, but the values are not
equally frequent, and a Huffman code of the low bytes is within a few per cent of their entropy at a hundred
megabytes a second. High bytes are nearly all the same, so runs are what counts. The byte planes are therefore
deflated each in its own way; together they are one zlib stream.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_BYTES = 1 << 14
MOST_INFLATED = 1040  # times as many bytes as deflate takes at least for anything
SMALL_BYTES = 1 << 16  # below this, what each stream takes for itself is more than what it saves
WORDS_PER_SUM = 1 << 20  # so many 16-bit words are summed without overflow

_HUFFMAN, _RUNS, _MATCHES = (zlib.Z_HUFFMAN_ONLY, 1), (zlib.Z_RLE, 1), (zlib.Z_DEFAULT_STRATEGY, 6)


def encode_chunk(rows: NDArray[Any], chunk_rows: int) -> bytes:
    """Rows (n, ...), n at most ``chunk_rows``, as one filtered chunk; what is missing is zero."""
    rows = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    planes = rows.reshape(-1).view(np.uint8).reshape(-1, rows.dtype.itemsize).T
    padding = bytes((chunk_rows - len(rows)) * (planes.shape[1] // max(1, len(rows))))
    if rows.nbytes < SMALL_BYTES:
        stream = zlib.compress(b"".join(plane.tobytes() + padding for plane in planes), 9)
        return stream + struct.pack("<I", fletcher32(stream))
    stream = bytearray(b"\x78\x9c")
    check = 1
    for plane in planes:
        data = plane.tobytes()
        check = zlib.adler32(padding, zlib.adler32(data, check))
        stream += _deflated(data, *_best(data))
        if padding:
            stream += _deflated(padding, *_RUNS)
    stream += zlib.compressobj(1, zlib.DEFLATED, -15).flush()  # an empty last block
    stream += struct.pack(">I", check)
    return bytes(stream) + struct.pack("<I", fletcher32(bytes(stream)))


def decode_chunk(chunk: bytes, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """The ``count`` values of a filtered chunk, (count,), without the HDF5 library.

    No more memory is taken than those values need (twice), whatever the stream would inflate to.

    Raises
    ------
    ValueError
        In one line, if it is damaged or holds something else.
    """
    stream, size = memoryview(chunk)[:-4], count * dtype.itemsize
    if len(chunk) < 4 or chunk[-4:] != struct.pack("<I", fletcher32(stream)):
        raise ValueError("the checksum of a chunk is wrong")
    if size > MOST_INFLATED * len(stream):
        raise ValueError(f"a chunk of {len(stream)} bytes cannot hold {size}")
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(stream, size + 1)
    except zlib.error as error:
        raise ValueError(f"a chunk that cannot be inflated ({error})") from error
    if len(data) != size or not inflater.eof:
        raise ValueError(f"a chunk that does not hold {size} bytes")
    planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1)


def _deflated(data: bytes, strategy: int, level: int) -> bytes:
    """Deflate blocks that end on a byte and look back at nothing before them."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)


def _best(data: bytes) -> tuple[int, int]:
    """Which way is smallest, judged by a sample from the middle."""
    middle = max(0, len(data) - SAMPLE_BYTES) // 2
    sample = data[middle : middle + SAMPLE_BYTES]
    return min((_HUFFMAN, _RUNS, _MATCHES), key=lambda way: len(_deflated(sample, *way)))


def fletcher32(data: bytes | memoryview) -> int:
    """HDF5's checksum of chunks: Fletcher's, of big-endian 16-bit words; an odd last byte is a high one."""
    low = high = 0
    for at in range(0, len(data), 2 * WORDS_PER_SUM):
        piece = data[at : at + 2 * WORDS_PER_SUM]
        words = bytes(piece) + b"\0" if len(piece) % 2 else piece
        part = np.frombuffer(words, ">u2").astype(np.int64)
        total = int(part.sum())
        high += len(part) * low + int(part @ np.arange(len(part), 0, -1))
        low += total
    return _folded(high) << 16 | _folded(low)


def _folded(value: int) -> int:
    """Modulo 65535, as adding the carries does it: only nothing at all gives 0."""
    return value % 65535 or (65535 if value else 0)
