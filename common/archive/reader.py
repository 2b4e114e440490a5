"""Reads archives by their own log, without the HDF5 library; of one that was cut or damaged, what is whole.

The library can do far more than an archive needs: follow links into other files, load filters from plug-ins,
allocate what a header says; and it is a quarter of a million lines of C. So it never sees a file that comes
from elsewhere. Every chunk has a record before it that says what it holds (``log``), whose header has a
checksum, types and bounds, and the chunks are inflated by zlib, each up to the size it must have. The table
of contents in the file is for other programs; here it is not read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from common.archive.checks import MOST_SPARSE, one_line, row_dtype
from common.archive.chunks import decode_chunk
from common.archive.hdf5 import SIGNATURE, StoredChunk
from common.archive.layout import ACQUIRED_AT, FRAME_ID, BrokenArchive, Index, PartIndex
from common.archive.log import FrameChunk, Gap, Lost, every_record
from common.configuration import Configuration
from common.roots import ANYWHERE, NotAllowed, Roots
from common.wire.messages import MAX_FRAME_ID

MOST_FRAMES = 1 << 28
CUT = "not in the archive, which was cut or never completed"
DAMAGED = "not in the archive, which is damaged"


@dataclass(frozen=True)
class Rows:
    """Some measurements, in the order asked for."""

    frame_ids: list[int]
    acquired_at: list[float]
    values: NDArray[Any]  # (n, *measurement_shape): the integers that were sent, or float32
    metadata: dict[str, list[Any]] | None


class Part:
    """Measurements of one configuration.

    Attributes
    ----------
    configuration : Configuration
    frames : int
    chunk_rows : int
        Frames that are stored together; reading is fastest in multiples of these.
    frame_ids, acquired_at : (frames,) arrays
    """

    def __init__(self, where: str, file: int, indexed: PartIndex) -> None:
        self._where, self._file, part = where, file, indexed.part
        self.configuration: Configuration = indexed.configuration
        self.chunk_rows, self.scale = part.chunk_rows, part.scale
        self._chunks = [indexed.chunks[row] for row in sorted(indexed.chunks)]
        self.frames = sum(header.frames for header, _ in self._chunks)
        if self.frames > MOST_FRAMES:
            raise BrokenArchive(f"{where}: {self.frames} frames")
        if any(header.frames < part.chunk_rows for header, _ in self._chunks[:-1]):
            raise BrokenArchive(f"{where}: a chunk in the middle of a configuration is not full")
        self._shape, self._dtype = part.measurement_shape, np.dtype(part.dtype)
        self._columns = row_dtype(part) if part.columns else None
        self._centre, self._wire_dtype = part.centre, np.dtype(part.wire_dtype)
        kind = np.dtype("<f8") if self._dtype.kind == "f" else np.dtype("<i8")
        count = math.prod(part.offset_shape)
        offset = _chunk(where, "offset", file, (indexed.offset.address, indexed.offset.size), kind, count)
        self._offset: NDArray[Any] = offset.reshape(part.offset_shape)
        # every frame must be known by its number; what holds these may be damaged
        known = list[tuple[FrameChunk, int]]()
        ids, times = [np.zeros(0, FRAME_ID)], [np.zeros(0, ACQUIRED_AT)]
        for chunk in self._chunks:
            with suppress(BrokenArchive):
                columns = self._decoded(1, FRAME_ID, chunk), self._decoded(2, ACQUIRED_AT, chunk)
                ids.append(columns[0])
                times.append(columns[1])
                known.append(chunk)
        self._chunks, self.unreadable = known, len(self._chunks) - len(known)
        self.frame_ids: NDArray[Any] = np.concatenate(ids)
        self.acquired_at: NDArray[Any] = np.concatenate(times)
        self.frames = len(self.frame_ids)
        if not np.isfinite(self.acquired_at).all():
            raise BrokenArchive(f"{where}: a time that is no number")

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """Of one frame."""
        return self._shape

    def read(self, first: int, count: int) -> Rows:
        """Rows first .. first+count-1, fewer at the end.

        Raises
        ------
        BrokenArchive
            If a chunk is damaged.
        """
        rows = slice(first, min(first + count, self.frames))
        data = self._rows(0, rows)
        values = data if not self._centre else data.astype(np.int64) + self._centre
        values = values.astype(self._wire_dtype, copy=False)
        metadata = None
        if self._columns is not None:
            table = self._rows(3, rows)
            metadata = {name: _column(table[name]) for name in self._columns.names or ()}
        return Rows(self.frame_ids[rows].tolist(), self.acquired_at[rows].tolist(), values, metadata)

    def measurements(self, first: int, count: int) -> NDArray[Any]:
        """Measurements as the mask gives them: (data + offset) * scale."""
        data = self._rows(0, slice(first, min(first + count, self.frames)))
        return (data.astype(np.result_type(data, self._offset)) + self._offset) * self.scale

    def _rows(self, column: int, rows: slice) -> NDArray[Any]:
        """Some rows of ``data`` (0) or of the RELION columns (3)."""
        begin = rows.start // self.chunk_rows
        chunks = self._chunks[begin : -(-rows.stop // self.chunk_rows)]
        dtype, shape = (self._dtype, self._shape) if column == 0 else (self._columns, ())
        assert dtype is not None
        if not chunks:
            return np.zeros((0, *shape), dtype)
        every = self._joined(column, dtype, chunks, shape)
        at = begin * self.chunk_rows
        return every[rows.start - at : rows.stop - at]

    def _joined(
        self,
        column: int,
        dtype: np.dtype[Any],
        chunks: Iterable[tuple[FrameChunk, int]],
        shape: tuple[int, ...] = (),
    ) -> NDArray[Any]:
        """A column of whole chunks, (n, *shape)."""
        pieces = [self._decoded(column, dtype, chunk, shape) for chunk in chunks]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros((0, *shape), dtype), *pieces])

    def _decoded(
        self, column: int, dtype: np.dtype[Any], chunk: tuple[FrameChunk, int], shape: tuple[int, ...] = ()
    ) -> NDArray[Any]:
        header, body = chunk
        place = body + sum(header.sizes[:column]), header.sizes[column]
        name = ("data", "frame_id", "acquired_at", "relion")[column]
        values = _chunk(self._where, name, self._file, place, dtype, self.chunk_rows * math.prod(shape))
        return values.reshape(self.chunk_rows, *shape)[: header.frames]


class Archive:
    """An open archive.

    Parameters
    ----------
    path : Path
    inputs : Roots
        What may be read.

    Attributes
    ----------
    start : dict
        The wire's ``Start`` message of the session.
    specification : dict
        ``common.session.SessionSpec`` of the session.
    parts : list[Part]
    references : list[int]
        Frames that are also kept whole.
    lost : list[Lost]
        Frames that were acquired and are not here, with the reason, ascending.
    account : dict
        ``session.json`` of the session; empty if it was not known.
    whole : bool
        False: the file was cut, or its writer was stopped; what follows was not read.
    damaged_at : int, optional
        Byte of the first record that cannot be read though others follow.

    Raises
    ------
    BrokenArchive
        In one line, if the file cannot be used.
    OSError
        If it cannot be opened.
    """

    def __init__(self, path: Path, inputs: Roots = ANYWHERE) -> None:
        self.path = path
        try:
            with inputs.open(path) as file:
                self._file = os.dup(file.fileno())
        except IsADirectoryError:
            raise BrokenArchive(f"{path}: is a folder, not an archive") from None
        except NotAllowed as error:
            raise BrokenArchive(str(error)) from error
        try:
            self.size = os.fstat(self._file).st_size
            self._read()
        except BrokenArchive as error:
            self.close()
            message = str(error)
            raise BrokenArchive(message if str(path) in message else f"{path}: {message}") from error
        except BaseException:
            self.close()
            raise

    def _index(self) -> Index:
        """What the records say."""
        if os.pread(self._file, len(SIGNATURE), 0) != SIGNATURE:
            raise BrokenArchive("is not an HDF5 file")
        index: Index | None = None
        self.damaged_at: int | None = None
        with open(self._file, "rb", closefd=False) as stream:
            for placed in every_record(stream, self.size):
                if index is None:
                    if isinstance(placed, Gap):
                        break
                    index = Index.of(placed.record)
                elif isinstance(placed, Gap):
                    index.has_gap = True
                    self.damaged_at = placed.begin if self.damaged_at is None else self.damaged_at
                else:
                    index.add(placed)
        if index is None:
            raise BrokenArchive(
                "is an HDF5 file, but not an archive of CryoFlux, or was cut before its first frame, "
                "or rewritten by another program"
            )
        return index

    def _read(self) -> None:
        index = self._index()
        opening, ending = index.opening, index.ending
        self.whole = ending is not None
        self.start: dict[str, Any] = opening.start
        self.specification: dict[str, Any] = opening.specification
        self.account: dict[str, Any] = ending.account if ending is not None else {}
        self.parts = [
            Part(f"{self.path}: configuration_{number + 1:03d}", self._file, indexed)
            for number, indexed in index.parts.items()
        ]
        self.unreadable = sum(part.unreadable for part in self.parts)
        self._slots: dict[int, StoredChunk] = dict(index.references)
        if len(self._slots) < len(index.references):
            raise BrokenArchive("a reference stands in it twice")
        self.references = list(self._slots)
        ids = [np.zeros(0, np.int64), *(part.frame_ids for part in self.parts)]
        if sum(map(len, ids)) > MOST_FRAMES:
            raise BrokenArchive(f"more than {MOST_FRAMES} frames")
        every = np.sort(np.concatenate(ids))
        if len(every) and (every[0] < 0 or every[-1] > MAX_FRAME_ID):
            raise BrokenArchive("a frame of a number beyond all that there are")
        if (every[1:] == every[:-1]).any():
            raise BrokenArchive("a frame stands in it twice")
        self.frames = len(every)
        self._account_for(every, None if ending is None else (ending.frames_acquired, ending.lost))

    def _account_for(self, every: NDArray[Any], known: tuple[int, list[Lost]] | None) -> None:
        """Which frames were acquired, and which are lost; ``every``: those that are here, ascending."""
        highest = int(every[-1]) + 1 if len(every) else 0
        is_damaged = self.damaged_at is not None or self.unreadable > 0
        if known is None:
            self._require_dense(highest)
            self.frames_acquired = highest
            self.lost = _missing(every, highest, [], DAMAGED if is_damaged else CUT)
            return
        self.frames_acquired, lost = known
        self._require_dense(self.frames_acquired)
        last = -1
        for given in lost:
            if not last < given.first <= given.last < self.frames_acquired:
                raise BrokenArchive("its ranges of lost frames overlap, or are beyond the last frame")
            last = given.last
            if np.searchsorted(every, given.first) != np.searchsorted(every, given.last, "right"):
                raise BrokenArchive(f"frames {given.first} to {given.last}: lost, but some are there")
        count = sum(given.last - given.first + 1 for given in lost)
        missing = self.frames_acquired - self.frames - count
        if missing < 0 or highest > self.frames_acquired or (missing and not is_damaged):
            raise BrokenArchive(
                f"{self.frames_acquired} frames acquired, but {self.frames} are there and {count} lost"
            )
        self.lost = lost if not missing else _missing(every, self.frames_acquired, lost, DAMAGED)

    def _require_dense(self, acquired: int) -> None:
        """Results have a slot for every frame that was acquired."""
        if acquired > MOST_SPARSE * (self.frames + 1_000_000):
            raise BrokenArchive(f"{acquired} frames acquired, of which {self.frames} are there")

    @property
    def message(self) -> str:
        """What is to be said about an archive that is not whole, in one line; else nothing."""
        if self.damaged_at is not None or self.unreadable:
            where = f" at byte {self.damaged_at}" if self.damaged_at is not None else ""
            lost = sum(lost.last - lost.first + 1 for lost in self.lost if lost.reason == DAMAGED)
            return f"{self.path}: is damaged{where}; {self.frames} frames can be read, {lost} cannot"
        if self.whole:
            return ""
        lost = sum(lost.last - lost.first + 1 for lost in self.lost)
        missing = f"; {lost} before the last of them are missing" if lost else ""
        return f"{self.path}: was cut or never completed; {self.frames} frames in whole chunks{missing}"

    @property
    def lost_by_reason(self) -> dict[str, int]:
        """How many frames were lost, and why."""
        counts: dict[str, int] = {}
        for lost in self.lost:
            counts[lost.reason] = counts.get(lost.reason, 0) + lost.last - lost.first + 1
        return counts

    def read_reference(self, frame_id: int) -> NDArray[Any] | None:
        """A frame as it was acquired, (H, W), if it is also kept whole.

        Raises
        ------
        BrokenArchive
            If its chunk is damaged.
        """
        chunk = self._slots.get(frame_id)
        if chunk is None:
            return None
        height, width = self.start["shape"]
        dtype = np.dtype(self.start["dtype"]).newbyteorder("<")
        place = chunk.address, chunk.size
        name = f"reference {frame_id}"
        return _chunk(str(self.path), name, self._file, place, dtype, height * width).reshape(height, width)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _missing(every: NDArray[Any], acquired: int, lost: list[Lost], reason: str) -> list[Lost]:
    """``lost`` and, for that reason, all other frames that are not among ``every``, ascending."""
    begins = np.concatenate([every, [given.first for given in lost], [acquired]]).astype(np.int64)
    ends = np.concatenate([every, [given.last for given in lost], [acquired]]).astype(np.int64) + 1
    order = np.argsort(begins, kind="stable")
    before = np.concatenate([[0], ends[order][:-1]])
    gaps = np.flatnonzero(before < begins[order])
    found = [Lost(int(before[k]), int(begins[order][k]) - 1, reason) for k in gaps]
    return sorted([*lost, *found], key=lambda given: given.first)


def _chunk(
    where: str, name: str, file: int, place: tuple[int, int], dtype: np.dtype[Any], count: int
) -> NDArray[Any]:
    """The values of a chunk at (address, size), (count,)."""
    address, size = place
    try:
        data = os.pread(file, size, address)
        return decode_chunk(data, dtype, count)
    except (OSError, ValueError) as error:
        raise BrokenArchive(f"{where}: {name} is damaged: {one_line(error)}") from error


def _column(values: NDArray[Any]) -> list[Any]:
    if values.dtype.kind == "S":
        return [value.decode(errors="replace") for value in values.tolist()]
    return values.tolist()
