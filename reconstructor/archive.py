"""What came over the wire, kept as it came: ``measurements/<worker>.cfx``, so that it can be recovered again.

A file is ``MAGIC`` and then records, only ever appended. A record is one message: the number of its parts
(uint32), the length of each (uint64), all little-endian, and the parts, the first of which is the msgpack
header. *start* and each *configuration* stand before the first frames that need them, so every file can be
read on its own. A torn last record, left by a worker that was killed, is ignored.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from common.configuration import Configuration
from common.flat_level import FlatLevel
from common.whole import write_all
from common.wire.codec import decode_array
from common.wire.link import MAX_PARTS, Buffer, as_bytes
from common.wire.messages import ConfigurationNotice, Frames, MalformedMessage, Message, Start, decode, encode
from reconstructor.journal import find_row

MAGIC = b"CRYOFLX1"
FOLDER = "measurements"
LARGEST_HEADER_BYTES = 64 << 20

_COUNT = struct.Struct("<I")


class Span(NamedTuple):
    """Where a record lies in its file, bytes."""

    offset: int
    length: int


class Record(NamedTuple):
    """A record and its header; the payloads are read when asked for."""

    path: Path
    span: Span
    message: Message
    payloads: list[Span]

    def buffer(self, part: int) -> bytes:
        """One payload."""
        with self.path.open("rb") as file:
            file.seek(self.payloads[part].offset)
            return file.read(self.payloads[part].length)


class ArchiveWriter:
    """Appends messages to one worker's archive; only one process writes a file.

    Raises
    ------
    FileExistsError
        If the file is there already.
    """

    def __init__(self, output: Path, worker: str) -> None:
        folder = output / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{worker}.cfx"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._size = 0
        try:
            write_all(self._file, [MAGIC])
        except OSError:
            self.discard()
            raise
        self._size = len(MAGIC)

    def append(self, message: Message, buffers: Sequence[Buffer] = ()) -> Span:
        """Write one record; it is durable after ``sync``."""
        parts = [encode(message), *(as_bytes(buffer) for buffer in buffers)]
        lengths = [memoryview(part).nbytes for part in parts]
        prefix = struct.pack(f"<I{len(parts)}Q", len(parts), *lengths)
        try:
            write_all(self._file, [prefix, *parts])
        except OSError:
            self.cut(self._size)  # a torn record would hide those that follow it
            raise
        span = Span(self._size, len(prefix) + sum(lengths))
        self._size += span.length
        return span

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._size

    def cut(self, size: int) -> None:
        """Have nothing beyond ``size`` bytes: what stood there was not written whole."""
        os.ftruncate(self._file, size)
        self._size = size

    def sync(self) -> None:
        """Have everything appended so far on disk."""
        os.fsync(self._file)

    def discard(self) -> None:
        """Close the file and have it gone."""
        os.close(self._file)
        self.path.unlink()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def records(path: Path, offset: int = 0) -> Iterator[Record]:
    """The records of one archive in order, from the one at ``offset`` on; stops at a torn one.

    Raises
    ------
    MalformedMessage
        If the file is no archive, or a whole record in it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise MalformedMessage(f"{path}: not an archive of measurements")
        size = os.fstat(file.fileno()).st_size
        offset = max(offset, len(MAGIC))
        while (record := _record_at(path, file.fileno(), offset, size)) is not None:
            yield record
            offset += record.span.length


def record_at(path: Path, offset: int) -> Record:
    """The record that begins at ``offset``.

    Raises
    ------
    MalformedMessage
        If there is no whole record.
    """
    with path.open("rb") as file:
        record = _record_at(path, file.fileno(), offset, os.fstat(file.fileno()).st_size)
    if record is None:
        raise MalformedMessage(f"{path}: no whole record at byte {offset}")
    return record


def _record_at(path: Path, file: int, offset: int, size: int) -> Record | None:
    prefix = os.pread(file, _COUNT.size + 8 * MAX_PARTS, offset)
    if len(prefix) < _COUNT.size:
        return None
    (count,) = _COUNT.unpack_from(prefix)
    if not 1 <= count <= MAX_PARTS:
        raise MalformedMessage(f"{path}: a record of {count} parts at byte {offset}")
    if len(prefix) < _COUNT.size + 8 * count:
        return None
    lengths = struct.unpack_from(f"<{count}Q", prefix, _COUNT.size)
    begin = offset + _COUNT.size + 8 * count
    if begin + sum(lengths) > size:
        return None
    if lengths[0] > LARGEST_HEADER_BYTES:
        raise MalformedMessage(f"{path}: a header of {lengths[0]} bytes at byte {offset}")
    message = decode(os.pread(file, lengths[0], begin))
    payloads: list[Span] = []
    at = begin + lengths[0]
    for length in lengths[1:]:
        payloads.append(Span(at, length))
        at += length
    return Record(path, Span(offset, at - offset), message, payloads)


def archives(output: Path) -> list[Path]:
    """The archives of a session, in the order of their names."""
    return sorted((output / FOLDER).glob("*.cfx"))


def read_start(output: Path) -> Start | None:
    """The *start* message of the session in ``output``; None if no worker got one."""
    for path in archives(output):
        for record in records(path):
            if isinstance(record.message, Start):
                return record.message
    return None


def read_configurations(output: Path) -> dict[str, Configuration]:
    """Every configuration of the session by its id."""
    found: dict[str, Configuration] = {}
    for path in archives(output):
        for record in records(path):
            if isinstance(record.message, ConfigurationNotice):
                configuration = Configuration.model_validate(record.message.configuration)
                found[configuration.config_id] = configuration
    return found


def read_frame(output: Path, frame_id: int) -> tuple[Configuration, np.ndarray]:
    """A frame's configuration and its measurement (*measurement_shape), as its operator gives it.

    Raises
    ------
    KeyError
        If no worker has recovered that frame (yet).
    """
    row, record, frames = _frames_of(output, frame_id)
    notice = record_at(record.path, int(row["configuration_offset"])).message
    if (
        not isinstance(notice, ConfigurationNotice)
        or notice.configuration.get("config_id") != frames.config_id
    ):
        raise MalformedMessage(f"{record.path}: configuration {frames.config_id} is not where it should be")
    configuration = Configuration.model_validate(notice.configuration)
    position = frames.frame_ids.index(frame_id)
    measurement = decode_array(frames.payload, record.buffer(0))[position : position + 1]
    operator = configuration.mask.build(configuration.shape)
    return configuration, FlatLevel(operator, configuration.codec.level).put_back(measurement)[0]


def read_reference(output: Path, frame_id: int) -> np.ndarray | None:
    """A frame as it was acquired, (H, W), if it was also sent whole, else None.

    Raises
    ------
    KeyError
        If no worker has recovered that frame (yet).
    """
    _, record, frames = _frames_of(output, frame_id)
    if frames.reference_payload is None or frame_id not in frames.reference_ids:
        return None
    return decode_array(frames.reference_payload, record.buffer(1))[frames.reference_ids.index(frame_id)]


def _frames_of(output: Path, frame_id: int) -> tuple[dict[str, str], Record, Frames]:
    row = find_row(output, frame_id)
    if Path(row["worker"]).name != row["worker"]:
        raise MalformedMessage(f"{output}: a journal names a worker {row['worker']!r:.80}: no name of a file")
    record = record_at(output / FOLDER / f"{row['worker']}.cfx", int(row["archive_offset"]))
    if not isinstance(record.message, Frames):
        raise MalformedMessage(f"{record.path}: no frames at byte {record.span.offset}")
    return row, record, record.message
