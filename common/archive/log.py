"""The archive as its writer sees it: a log that is only ever appended to, of records that HDF5 can see into.

After the superblock the file is one record behind the other. A record is a fixed prefix (``MAGIC``, size of
the header, size of the body, CRC-32 of the header), a msgpack header that says what the body holds, and the
body: HDF5 chunks as the HDF5 library reads them, or a table of contents. So whatever is cut off or was never
written, everything up to the last whole record can be found again.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import msgspec

ARCHIVE_VERSION = 1
MAGIC = b"CFXA"
FIRST_RECORD = 64  # behind the superblock
LARGEST_HEADER_BYTES = 64 << 20

_PREFIX = struct.Struct("<4sIQI")


class RecordHeader(msgspec.Struct, frozen=True, tag_field="record", kw_only=True):
    """What every record has."""


class Opening(RecordHeader, frozen=True, kw_only=True, tag="opening"):
    """The first record: the session."""

    archive_version: int = ARCHIVE_VERSION
    software: str
    created_at: float  # Unix seconds
    start: dict[str, Any]  # common.wire.messages.Start
    specification: dict[str, Any]  # common.session.SessionSpec


class Part(RecordHeader, frozen=True, kw_only=True, tag="part"):
    """Measurements of one configuration, all kept alike; body: the chunk of ``offset``.

    A configuration has more than one part only where its measurements did not all fit one dtype, or their
    RELION columns differed.
    """

    configuration: dict[str, Any]  # common.configuration.Configuration
    dtype: str
    measurement_shape: tuple[int, ...]
    chunk_rows: int
    scale: float  # measurement = (data + offset) * scale
    centre: int  # what of the offset is not the flat level: data + centre is what was sent
    wire_dtype: str  # in which it was sent, before coding
    offset_shape: tuple[int, ...]
    columns: list[tuple[str, str]]  # RELION columns: name and NumPy dtype


class FrameChunk(RecordHeader, frozen=True, kw_only=True, tag="frames"):
    """Rows of a part; body: a chunk each of data, frame_id, acquired_at and, with columns, relion."""

    part: int
    row: int
    frames: int
    sizes: list[int]


class ReferenceChunk(RecordHeader, frozen=True, kw_only=True, tag="reference"):
    """A frame that was also sent whole; body: its chunk."""

    frame_id: int


class Contents(RecordHeader, frozen=True, kw_only=True, tag="contents"):
    """A table of contents for HDF5 readers, of all records before it."""


class Lost(msgspec.Struct, frozen=True):
    """Frames that were acquired and are not in the archive, from ``first`` to ``last``."""

    first: int
    last: int
    reason: str


class Ending(RecordHeader, frozen=True, kw_only=True, tag="ending"):
    """The archive is complete: only a table of contents comes after this."""

    finished_at: float
    frames_acquired: int
    lost: list[Lost]
    account: dict[str, Any]  # as session.json has it; empty: not known


Record = Opening | Part | FrameChunk | ReferenceChunk | Contents | Ending

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


class Placed(NamedTuple):
    """A record and where its body lies."""

    record: Record
    body: int
    size: int

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.body + self.size


def encode_header(record: Record, body_bytes: int) -> bytes:
    """What comes before a body of that size."""
    header = _encoder.encode(record)
    return _PREFIX.pack(MAGIC, len(header), body_bytes, zlib.crc32(header)) + header


def whole_records(file: BinaryIO, size: int) -> Iterator[Placed]:
    """The records of a file of ``size`` bytes, up to the first that is not whole."""
    at = FIRST_RECORD
    while at + _PREFIX.size <= size:
        file.seek(at)
        magic, header_bytes, body_bytes, check = _PREFIX.unpack(file.read(_PREFIX.size))
        body = at + _PREFIX.size + header_bytes
        if magic != MAGIC or header_bytes > LARGEST_HEADER_BYTES or body + body_bytes > size:
            return
        header = file.read(header_bytes)
        if zlib.crc32(header) != check:
            return
        try:
            record = _decoder.decode(header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        yield Placed(record, body, body_bytes)
        at = body + body_bytes
