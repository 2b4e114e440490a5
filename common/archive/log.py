"""The archive as its writer sees it: a log that is only ever appended to, of records that HDF5 can see into.

After the superblock the file is one record behind the other. A record is a fixed prefix (``MAGIC``, size of
the header, size of the body, CRC-32 of the header), a msgpack header that says what the body holds, and the
body: HDF5 chunks as the HDF5 library reads them, or a table of contents. So whatever is cut off or was never
written, everything up to the last whole record can be found again, and so can what follows damage.

A file may come from anywhere: what a header says has types and bounds here, and is held against the others in
``layout`` before anything is made of it.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, NamedTuple

import msgspec

from common.wire.messages import MAX_FRAME_ID

ARCHIVE_VERSION = 1
MAGIC = b"CFXA"
FIRST_RECORD = 64  # behind the superblock
LARGEST_HEADER_BYTES = 4 << 20  # decoded, what has free form takes up to 100 times as many bytes
LARGEST_ENDING_BYTES = 64 << 20  # a million ranges of lost frames
LARGEST_ACCOUNT_BYTES = 4 << 20
LARGEST_CHUNK_ROWS = 4096
MOST_COLUMNS = 4096
SEARCHED_BYTES = 64 << 20  # of headers that turn out to be none, behind damage

Index = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
FrameNumber = Annotated[int, msgspec.Meta(ge=0, le=MAX_FRAME_ID)]
FrameCount = Annotated[int, msgspec.Meta(ge=0, le=MAX_FRAME_ID + 1)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=250_000_000_000)]  # Unix time, to the year 9892
Centre = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
Shape = Annotated[tuple[Index, ...], msgspec.Meta(max_length=8)]

_PREFIX = struct.Struct("<4sIQI")


class RecordHeader(msgspec.Struct, frozen=True, tag_field="record", kw_only=True):
    """What every record has."""


class Opening(RecordHeader, frozen=True, kw_only=True, tag="opening"):
    """The first record: the session."""

    archive_version: int = ARCHIVE_VERSION
    software: str
    created_at: Seconds
    start: dict[str, Any]  # common.wire.messages.Start
    specification: dict[str, Any]  # common.session.SessionSpec


class Part(RecordHeader, frozen=True, kw_only=True, tag="part"):
    """Measurements of one configuration, all kept alike; body: the chunk of ``offset``.

    A configuration has more than one part only where its measurements did not all fit one dtype, or their
    RELION columns differed.
    """

    configuration: dict[str, Any]  # common.configuration.Configuration
    dtype: str
    measurement_shape: Shape
    chunk_rows: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_CHUNK_ROWS)]
    scale: float  # measurement = (data + offset) * scale
    centre: Centre  # what of the offset is not the flat level: data + centre is what was sent
    wire_dtype: str  # in which it was sent, before coding
    offset_shape: Shape
    # RELION columns: name and NumPy dtype
    columns: Annotated[list[tuple[str, str]], msgspec.Meta(max_length=MOST_COLUMNS)]
    number: Index | None = None  # from 0 on; none: one more than that of the part before


class FrameChunk(RecordHeader, frozen=True, kw_only=True, tag="frames"):
    """Rows of a part; body: a chunk each of data, frame_id, acquired_at and, with columns, relion."""

    part: Index
    row: Index
    frames: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_CHUNK_ROWS)]
    sizes: Annotated[list[Size], msgspec.Meta(max_length=4)]


class ReferenceChunk(RecordHeader, frozen=True, kw_only=True, tag="reference"):
    """A frame that was also sent whole; body: its chunk."""

    frame_id: FrameNumber


class Contents(RecordHeader, frozen=True, kw_only=True, tag="contents"):
    """A table of contents for HDF5 readers, of all records before it."""


class Lost(msgspec.Struct, frozen=True):
    """Frames that were acquired and are not in the archive, from ``first`` to ``last``."""

    first: FrameNumber
    last: FrameNumber
    reason: str


class Ending(RecordHeader, frozen=True, kw_only=True, tag="ending"):
    """The archive is complete: only a table of contents comes after this."""

    finished_at: Seconds
    frames_acquired: FrameCount
    lost: list[Lost]
    account: dict[str, Any]  # as session.json has it; empty: not known


Record = Opening | Part | FrameChunk | ReferenceChunk | Contents | Ending

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


class _RawEnding(RecordHeader, frozen=True, kw_only=True, tag="ending"):
    """The same; what has free form is not looked into yet."""

    finished_at: Seconds
    frames_acquired: FrameCount
    lost: list[Lost]
    account: msgspec.Raw


_ending_decoder: msgspec.msgpack.Decoder[_RawEnding] = msgspec.msgpack.Decoder(_RawEnding)
_account_decoder: msgspec.msgpack.Decoder[dict[str, Any]] = msgspec.msgpack.Decoder(dict[str, Any])


class Placed(NamedTuple):
    """A record and where its body lies."""

    record: Record
    body: int
    size: int

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.body + self.size


class Gap(NamedTuple):
    """Bytes that are no record, and what comes behind them is one."""

    begin: int
    end: int


def encode_header(record: Record, body_bytes: int) -> bytes:
    """What comes before a body of that size.

    Raises
    ------
    ValueError
        In one line, if it would be larger than readers take.
    """
    header = _encoder.encode(record)
    most = LARGEST_ENDING_BYTES if isinstance(record, Ending) else LARGEST_HEADER_BYTES
    if len(header) > most:
        raise ValueError(f"a record's header of {len(header)} bytes; {most} at most")
    return _PREFIX.pack(MAGIC, len(header), body_bytes, zlib.crc32(header)) + header


def whole_records(file: BinaryIO, size: int) -> Iterator[Placed]:
    """The records of a file of ``size`` bytes, up to the first that is not whole."""
    at = FIRST_RECORD
    while (placed := _record_at(file, size, at)[0]) is not None:
        yield placed
        at = placed.end


def every_record(file: BinaryIO, size: int) -> Iterator[Placed | Gap]:
    """The same, and those behind damage: where a header is spoiled, the next whole record is looked for."""
    at, searched = FIRST_RECORD, 0
    while at + _PREFIX.size <= size:
        placed, _ = _record_at(file, size, at)
        if placed is None:
            begin = at
            for at in _places(file, begin + 1, size):
                placed, looked_at = _record_at(file, size, at)
                searched += looked_at
                if placed is not None or searched > SEARCHED_BYTES:
                    break
            if placed is None:
                return
            yield Gap(begin, at)
        yield placed
        at = placed.end


def _places(file: BinaryIO, at: int, size: int) -> Iterator[int]:
    """Where ``MAGIC`` stands, from ``at`` on."""
    while at < size:
        file.seek(at)
        window = file.read(1 << 20)
        found = window.find(MAGIC)
        while found >= 0:
            yield at + found
            found = window.find(MAGIC, found + 1)
        if len(window) < len(MAGIC):
            return
        at += len(window) - len(MAGIC) + 1


def _record_at(file: BinaryIO, size: int, at: int) -> tuple[Placed | None, int]:
    """The record that begins there, if it is whole, and how many bytes were read for that."""
    if at + _PREFIX.size > size:
        return None, 0
    file.seek(at)
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        return None, 0
    magic, header_bytes, body_bytes, check = _PREFIX.unpack(prefix)
    body = at + _PREFIX.size + header_bytes
    if magic != MAGIC or header_bytes > LARGEST_ENDING_BYTES or body + body_bytes > size:
        return None, _PREFIX.size
    header = file.read(header_bytes)
    record = None
    if zlib.crc32(header) == check:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError):
            record = _decoded(header)
    return None if record is None else Placed(record, body, body_bytes), header_bytes


def _decoded(header: bytes) -> Record | None:
    if len(header) <= LARGEST_HEADER_BYTES:
        return _decoder.decode(header)
    ending = _ending_decoder.decode(header)
    if len(ending.account) > LARGEST_ACCOUNT_BYTES:
        return None
    return Ending(
        finished_at=ending.finished_at,
        frames_acquired=ending.frames_acquired,
        lost=ending.lost,
        account=_account_decoder.decode(ending.account),
    )
