"""Archives taken apart into their records, and put together again with right lengths and checksums."""

from __future__ import annotations

import contextlib
import struct
import zlib
from typing import Any

import msgspec

from common.archive.chunks import fletcher32
from common.archive.log import FIRST_RECORD, MAGIC

_PREFIX = struct.Struct("<4sIQI")


class Forged:
    """One record: its header as a plain dictionary (or what is in its place), and its body."""

    def __init__(self, header: Any, body: bytes) -> None:
        self.header, self.body = header, body

    def encoded(self) -> bytes:
        """As it stands in a file."""
        header = self.header if isinstance(self.header, bytes) else msgspec.msgpack.encode(self.header)
        return _PREFIX.pack(MAGIC, len(header), len(self.body), zlib.crc32(header)) + header + self.body


def taken_apart(data: bytes) -> tuple[bytes, list[Forged], bytes]:
    """What stands before the first record, the records, and what follows the last; nothing is checked."""
    at, records = FIRST_RECORD, list[Forged]()
    while at + _PREFIX.size <= len(data):
        magic, header_bytes, body_bytes, _ = _PREFIX.unpack_from(data, at)
        begin = at + _PREFIX.size
        end = begin + header_bytes + body_bytes
        if magic != MAGIC or end > len(data):
            break
        header: Any = data[begin : begin + header_bytes]
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            header = msgspec.msgpack.decode(header)
        records.append(Forged(header, data[begin + header_bytes : end]))
        at = end
    return data[:FIRST_RECORD], records, data[at:]


def put_together(head: bytes, records: list[Forged], tail: bytes = b"") -> bytes:
    """A file of these records."""
    return head + b"".join(record.encoded() for record in records) + tail


def of_kind(records: list[Forged], kind: str) -> list[Forged]:
    """Those of one kind (``opening``, ``part``, ``frames``, ``reference``, ``contents``, ``ending``)."""
    return [
        record
        for record in records
        if isinstance(record.header, dict) and record.header.get("record") == kind
    ]


def chunks_of(record: Forged) -> list[bytes]:
    """The chunks of a record of frames, or the one of another."""
    sizes = record.header.get("sizes", [len(record.body)])
    chunks, at = [], 0
    for size in sizes:
        chunks.append(record.body[at : at + size])
        at += size
    return chunks


def refill(record: Forged, chunks: list[bytes]) -> None:
    """Put other chunks into a record."""
    record.body = b"".join(chunks)
    if "sizes" in record.header:
        record.header["sizes"] = list(map(len, chunks))


def inflated(chunk: bytes) -> bytes:
    """What a chunk holds, shuffled; up to 64 KiB."""
    return zlib.decompressobj().decompress(chunk[:-4], 1 << 16)


def deflated(content: bytes) -> bytes:
    """A chunk with that content."""
    stream = zlib.compress(content, 6)
    return stream + struct.pack("<I", fletcher32(stream))
