"""Writes an archive: gathers frames into chunks and appends them, and now and then renews HDF5's view."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from common.archive.checks import MOST_SPARSE, one_line
from common.archive.chunks import decode_chunk, encode_chunk
from common.archive.hdf5 import SIGNATURE, encode_tree, superblock
from common.archive.layout import (
    ACQUIRED_AT,
    FRAME_ID,
    BrokenArchive,
    Index,
    PartIndex,
    lost_ranges,
    tree,
)
from common.archive.log import (
    FIRST_RECORD,
    Contents,
    Ending,
    FrameChunk,
    Opening,
    Part,
    Placed,
    Record,
    ReferenceChunk,
    encode_header,
    whole_records,
)
from common.whole import write_all_at
from common.wire.messages import MAX_FRAME_ID

CHUNK_VALUES = 1 << 18
CHUNK_FRAMES = 128
CENTRE = 128  # where most values lie, so that they fit one byte
SMALLEST_VIEW_BYTES = 4 << 20  # HDF5's view is renewed when the file has grown by so much, and by half

Metadata = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Measured:
    """Frames of one configuration as they came over the wire.

    Attributes
    ----------
    configuration : dict
        ``common.configuration.Configuration`` as JSON.
    values : (n, *measurement_shape) array
        The integers that were sent, or float32.
    scale : float
        What one of the integers stands for.
    flat : array
        What was taken off before coding, integers of *measurement_shape*, or zeros of shape (1,).
    """

    configuration: dict[str, Any]
    values: NDArray[Any]
    scale: float
    flat: NDArray[Any]
    frame_ids: Sequence[int]
    acquired_at: Sequence[float]
    metadata: Metadata | None = None


@dataclass
class _Gathering:
    """A part, and its rows that do not fill a chunk yet."""

    number: int
    indexed: PartIndex
    centre: int
    rows: int  # in chunks
    values: list[NDArray[Any]] = field(default_factory=list[NDArray[Any]])
    frame_ids: list[int] = field(default_factory=list[int])
    acquired_at: list[float] = field(default_factory=list[float])
    relion: list[NDArray[Any]] = field(default_factory=list[NDArray[Any]])


class ArchiveWriter:
    """The only writer of an archive. Whatever happens to it, what it appended can be read.

    Use ``create`` or ``resume``. Not for several threads.
    """

    def __init__(self, path: Path, file: int, index: Index, end: int) -> None:
        self.path, self._file, self.index, self._end = path, file, index, end
        self._archived = np.zeros(1024, bool)  # by frame_id
        self._references = {frame for frame, _ in index.references}
        self._gathering: dict[str, _Gathering] = {}
        self._viewed_at = 0

    @classmethod
    def create(cls, path: Path, opening: Opening) -> Self:
        """Begin an archive; HDF5 readers can open it from now on.

        Raises
        ------
        FileExistsError
            If the file is there already.
        OSError
            If it cannot be written.
        """
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            _lock(file, path)
            writer = cls(path, file, Index(opening), FIRST_RECORD)
            os.pwrite(file, superblock(0, FIRST_RECORD).ljust(FIRST_RECORD, b"\0"), 0)
            writer._append(opening)
            writer.renew_view()
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)  # nothing is in it yet
            raise
        return writer

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Go on with an archive whose writer was stopped: behind its last whole chunk.

        Raises
        ------
        BrokenArchive
            If the file is no archive, or is complete.
        OSError
            If it cannot be written, or another process writes it.
        """
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _lock(file, path)
            with open(file, "rb", closefd=False) as stream:
                index, end = read_log(path, stream)
            if index.ending is not None:
                raise BrokenArchive(f"{path}: is complete; there is nothing to add")
            os.ftruncate(file, end)
            writer = cls(path, file, index, end)
            writer._take_up()
            writer.renew_view()
        except (OSError, ValueError, ArithmeticError, KeyError, TypeError, AttributeError) as error:
            os.close(file)
            if isinstance(error, BrokenArchive | OSError):
                raise
            raise BrokenArchive(f"{path}: {one_line(error)}") from error
        return writer

    # ---- frames

    def has(self, frame_id: int) -> bool:
        """Whether a frame's measurement was appended."""
        return frame_id < len(self._archived) and bool(self._archived[frame_id])

    @property
    def frames(self) -> int:
        """How many measurements were appended, those that wait for their chunk included."""
        return int(np.count_nonzero(self._archived))

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._end

    def append(self, measured: Measured) -> int:
        """Add the frames that are not there yet; returns how many those are."""
        new = [row for row, frame in enumerate(measured.frame_ids) if self._mark(frame)]
        if not new:
            return 0
        values = measured.values if len(new) == len(measured.values) else measured.values[new]
        table = measured.metadata or {}
        columns = {name: [column[row] for row in new] for name, column in table.items()}
        gathering = self._part_for(measured, values, columns)
        part = gathering.indexed.part
        kept = values if values.dtype.kind == "f" else values.astype(np.int64) - gathering.centre
        gathering.values.append(kept.astype(part.dtype))
        gathering.frame_ids += [measured.frame_ids[row] for row in new]
        gathering.acquired_at += [measured.acquired_at[row] for row in new]
        if part.columns:
            gathering.relion.append(_records(columns, gathering.indexed.relion, len(new)))
        while len(gathering.frame_ids) >= part.chunk_rows:
            self._write_chunk(gathering)
        return len(new)

    def add_reference(self, frame_id: int, frame: NDArray[Any]) -> None:
        """Add a whole frame, (H, W), unless it is there."""
        if frame_id not in self._references:
            self._append(ReferenceChunk(frame_id=frame_id), encode_chunk(frame[None], 1))
            self._references.add(frame_id)

    # ---- views and the end

    def renew_view_if_due(self) -> None:
        """Bring HDF5's view up to date if the file has grown enough."""
        grown = self._end - self._viewed_at
        if grown > max(SMALLEST_VIEW_BYTES, self._viewed_at // 2):
            self.renew_view()

    def renew_view(self) -> None:
        """Have HDF5 readers see everything that is in chunks."""
        contents = Contents()
        body = self._end + len(encode_header(contents, 1 << 40))
        data, root = encode_tree(tree(self.index), body)
        self._append(contents, data)
        os.fsync(self._file)
        os.pwrite(self._file, superblock(root, self._end), 0)
        os.fsync(self._file)
        self._viewed_at = self._end

    def finish(
        self, frames_acquired: int, reason: Callable[[int], str], account: dict[str, Any] | None = None
    ) -> None:
        """Write what is left and declare the archive complete.

        Parameters
        ----------
        frames_acquired : int
            Ids run from 0 to one less.
        reason : callable
            Why a frame that was acquired and is not here was lost.
        """
        for gathering in self._gathering.values():
            if gathering.frame_ids:
                self._write_chunk(gathering)
        acquired = max(frames_acquired, int(np.flatnonzero(self._archived).max(initial=-1)) + 1)
        here = np.zeros(acquired, bool)
        here[: len(self._archived)] = self._archived[:acquired]
        missing = np.flatnonzero(~here).tolist()
        lost = lost_ranges(missing, [reason(frame) for frame in missing])
        self._append(
            Ending(finished_at=time.time(), frames_acquired=acquired, lost=lost, account=account or {})
        )
        self.renew_view()

    def close(self) -> None:
        """Close the file; rows that do not fill a chunk are not in it unless ``finish`` was called."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- inside

    def _mark(self, frame_id: int) -> bool:
        """Take note of a frame; False if it was known."""
        if self.has(frame_id):
            return False
        if frame_id >= len(self._archived):
            self._archived = np.concatenate(
                [self._archived, np.zeros(max(len(self._archived), frame_id + 1), bool)]
            )
        self._archived[frame_id] = True
        return True

    def _append(self, record: Record, body: bytes = b"") -> int:
        """Write one record; where its body lies."""
        try:
            header = encode_header(record, len(body))
        except ValueError as error:
            raise BrokenArchive(f"{self.path}: {error}; what was appended before can be read") from error
        try:
            write_all_at(self._file, header + body, self._end)
        except OSError:
            os.ftruncate(self._file, self._end)  # a full disk: leave no half of a record
            raise
        placed = Placed(record, self._end + len(header), len(body))
        self._end = placed.end
        self.index.add(placed)
        return placed.body

    def _part_for(self, measured: Measured, values: NDArray[Any], columns: Metadata) -> _Gathering:
        """The part that takes these values, a new one if the present one does not."""
        config_id = str(measured.configuration["config_id"])
        gathering = self._gathering.get(config_id)
        if gathering is not None and _fits(gathering, values, columns):
            return gathering
        widest = gathering.indexed.part if gathering is not None else None
        if gathering is not None and gathering.frame_ids:
            self._write_chunk(gathering)
        dtype, centre = _storage(values, widest)
        offset = measured.flat.astype(np.float64 if dtype.kind == "f" else np.int64) + centre
        part = Part(
            configuration=measured.configuration,
            dtype=dtype.str,
            measurement_shape=values.shape[1:],
            chunk_rows=max(1, min(CHUNK_FRAMES, CHUNK_VALUES // max(1, values[0].size))),
            scale=measured.scale,
            centre=centre,
            wire_dtype=values.dtype.name,
            offset_shape=offset.shape,
            columns=_columns(columns, widest.columns if widest is not None else []),
            number=len(self.index.parts),
        )
        self._append(part, encode_chunk(offset, len(offset)))
        number = len(self.index.parts) - 1
        gathering = _Gathering(number, self.index.parts[number], centre, 0)
        self._gathering[config_id] = gathering
        return gathering

    def _write_chunk(self, gathering: _Gathering) -> None:
        part = gathering.indexed.part
        count = min(part.chunk_rows, len(gathering.frame_ids))
        values = gathering.values[0] if len(gathering.values) == 1 else np.concatenate(gathering.values)
        chunks = [
            encode_chunk(values[:count], part.chunk_rows),
            encode_chunk(np.array(gathering.frame_ids[:count], FRAME_ID), part.chunk_rows),
            encode_chunk(np.array(gathering.acquired_at[:count], ACQUIRED_AT), part.chunk_rows),
        ]
        gathering.values = [values[count:]] if count < len(values) else []
        gathering.frame_ids, gathering.acquired_at = (
            gathering.frame_ids[count:],
            gathering.acquired_at[count:],
        )
        if part.columns:
            relion = np.concatenate(gathering.relion)
            chunks.append(encode_chunk(relion[:count], part.chunk_rows))
            gathering.relion = [relion[count:]]
        sizes = [len(chunk) for chunk in chunks]
        record = FrameChunk(part=gathering.number, row=gathering.rows, frames=count, sizes=sizes)
        self._append(record, b"".join(chunks))
        gathering.rows += count

    def _take_up(self) -> None:
        """Know again which frames are there. Further ones go into parts of their own."""
        limit = MOST_SPARSE * (self.index.frames + 1_000_000)
        for indexed in self.index.parts.values():
            for header, body in indexed.chunks.values():
                chunk = os.pread(self._file, header.sizes[1], body + header.sizes[0])
                frames = decode_chunk(chunk, FRAME_ID, indexed.part.chunk_rows)[: header.frames]
                if frames.min() < 0 or frames.max() > min(limit, MAX_FRAME_ID):
                    raise BrokenArchive(f"{self.path}: frame {frames.max()} among {self.index.frames} frames")
                for frame in frames.tolist():
                    self._mark(frame)


def read_log(path: Path, file: io.BufferedReader) -> tuple[Index, int]:
    """What the whole records of an archive say, and where they end.

    Raises
    ------
    BrokenArchive
        If the file is not an archive, or of another version.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    if file.read(len(SIGNATURE)) != SIGNATURE:
        raise BrokenArchive(f"{path}: is not an HDF5 file")
    index, end = None, FIRST_RECORD
    for placed in whole_records(file, size):
        try:
            if index is None:
                index = Index.of(placed.record)
            else:
                index.add(placed)
        except BrokenArchive as error:
            raise BrokenArchive(f"{path}: {error}") from error
        end = placed.end
    if index is None:
        raise BrokenArchive(f"{path}: is no archive of a session, or was cut before its first frame")
    return index, end


def _lock(file: int, path: Path) -> None:
    """Keep other writers away; readers, and HDF5's own kind of lock, are not concerned."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise OSError(error.errno, f"{path}: another process is writing it") from error


def _storage(values: NDArray[Any], before: Part | None) -> tuple[np.dtype[Any], int]:
    """How values are kept, and what is taken off them first."""
    if values.dtype.kind == "f":
        return np.dtype("<f4"), 0
    if values.dtype.itemsize == 1:
        return values.dtype, 0
    low, high = int(values.min()), int(values.max())
    centre = int(np.median(values)) - CENTRE
    for name in ("<i2", "<i4"):
        limits = np.iinfo(name)
        wide_enough = before is None or np.dtype(before.dtype).itemsize <= np.dtype(name).itemsize
        if wide_enough and limits.min <= low - centre and high - centre <= limits.max:
            return np.dtype(name), centre
    return np.dtype("<i8"), 0


def _fits(gathering: _Gathering, values: NDArray[Any], columns: Metadata) -> bool:
    part = gathering.indexed.part
    dtype = np.dtype(part.dtype)
    if values.dtype.kind != "f" and dtype.kind != "f":
        limits = np.iinfo(dtype)
        if (
            int(values.min()) - gathering.centre < limits.min
            or int(values.max()) - gathering.centre > limits.max
        ):
            return False
    elif values.dtype.kind != dtype.kind:
        return False
    known = dict(part.columns)
    if list(columns) != list(known):
        return False
    return all(_wider(known[name], _column_dtype(column)) == known[name] for name, column in columns.items())


def _columns(columns: Metadata, before: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Names and dtypes of RELION columns, with room for longer strings."""
    known, result = dict(before), list[tuple[str, str]]()
    for name, column in columns.items():
        kind = _wider(known.get(name, "<i8"), _column_dtype(column))
        if kind.startswith("|S") and kind != known.get(name):
            kind = f"|S{max(32, 2 * int(kind[2:]))}"
        result.append((name, kind))
    return result


def _wider(one: str, other: str) -> str:
    """The dtype that holds the values of both."""
    ranks = ("<i8", "<f8")
    if one in ranks and other in ranks:
        return max(one, other, key=ranks.index)
    return f"|S{max(32, *(int(kind[2:]) for kind in (one, other) if kind not in ranks))}"


def _column_dtype(column: Sequence[Any]) -> str:
    if all(isinstance(value, int) and abs(value) < 2**63 for value in column):
        return "<i8"
    if all(value is None or isinstance(value, int | float) for value in column):
        return "<f8"
    return f"|S{max(1, *(len(_utf8(value)) for value in column))}"


def _records(columns: Metadata, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    records = np.zeros(count, dtype)
    for name, column in columns.items():
        kind = dtype[name].kind
        if kind == "S":
            records[name] = [_utf8(value) for value in column]
        else:
            records[name] = [np.nan if value is None else value for value in column]
    return records


def _utf8(value: Any) -> bytes:
    return b"" if value is None else str(value).encode()
