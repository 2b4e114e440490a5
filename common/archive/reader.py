"""Reads archives, with the HDF5 library alone; of one that was cut or not completed, what is whole.

The library refuses a file that ends before its superblock says, and a table of contents may be cut off or out
of date. The records of the log are all there up to the cut, so the table of contents is made again from them,
in memory, and laid behind the file for the library to see: nothing is copied, and reading is the same.
"""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from common.archive.hdf5 import encode_tree, superblock
from common.archive.layout import BrokenArchive, Index, tree
from common.archive.log import ARCHIVE_VERSION, FIRST_RECORD, Lost
from common.archive.writer import read_log
from common.configuration import Configuration
from common.wire.codec import MAX_ARRAY_BYTES

LARGEST_SIDE = 65536
LARGEST_FRAME_PIXELS = 1 << 29
LARGEST_TEXT_BYTES = 256 << 20
CUT = "not in the archive, which was cut or never completed"


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

    def __init__(self, group: Any) -> None:
        self._where = f"{group.file.filename}: {group.name}"
        self._group = group
        try:
            self.configuration = Configuration.model_validate(_json(group, "configuration"))
        except ValidationError as error:
            raise BrokenArchive(f"{self._where}: configuration: {error.errors()[0]['msg']}") from error
        _check_shape(self._where, self.configuration.shape)
        self._data = _dataset(group, "data")
        self._relion = _dataset(group, "relion") if "relion" in group else None
        self.frames = int(self._data.shape[0]) if self._data.shape else 0
        others = [_dataset(group, "frame_id"), _dataset(group, "acquired_at")]
        for other in [*others, *([self._relion] if self._relion is not None else [])]:
            if other.shape != (self.frames,):
                raise BrokenArchive(
                    f"{self._where}: {self.frames} measurements, but {other.name} is of shape {other.shape}"
                )
        for dataset in [self._data, *others, *([self._relion] if self._relion is not None else [])]:
            _check_chunks(self._where, dataset)
        if self._data.dtype.kind not in "iuf" or others[0].dtype.kind not in "iu":
            raise BrokenArchive(f"{self._where}: data of {self._data.dtype}, numbers expected")
        offset = _dataset(group, "offset")
        if offset.shape not in ((1,), self._data.shape[1:]) or offset.dtype.kind not in "iuf":
            raise BrokenArchive(f"{self._where}: offset of shape {offset.shape} does not go with the data")
        self.chunk_rows = int(self._data.chunks[0])
        self.frame_ids: NDArray[Any] = _read(self._where, others[0])
        self.acquired_at: NDArray[Any] = _read(self._where, others[1])
        self._offset: NDArray[Any] = _read(self._where, offset)
        self._centre = int(offset.attrs["centre"])
        self._wire_dtype = np.dtype(_text(self._data.attrs["wire_dtype"]))
        self.scale = float(_read(self._where, _dataset(group, "scale")))

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """Of one frame."""
        return tuple(self._data.shape[1:])

    def read(self, first: int, count: int) -> Rows:
        """Rows first .. first+count-1, fewer at the end.

        Raises
        ------
        BrokenArchive
            If a chunk is damaged.
        """
        rows = slice(first, min(first + count, self.frames))
        data = _read(self._where, self._data, rows)
        values = data if not self._centre else data.astype(np.int64) + self._centre
        values = values.astype(self._wire_dtype, copy=False)
        metadata = None
        if self._relion is not None:
            table = _read(self._where, self._relion, rows)
            metadata = {name: _column(table[name]) for name in table.dtype.names or ()}
        return Rows(self.frame_ids[rows].tolist(), self.acquired_at[rows].tolist(), values, metadata)

    def measurements(self, first: int, count: int) -> NDArray[Any]:
        """Measurements as the mask gives them: (data + offset) * scale."""
        rows = slice(first, min(first + count, self.frames))
        data = _read(self._where, self._data, rows)
        return (data.astype(np.result_type(data, self._offset)) + self._offset) * self.scale


class Archive:
    """An open archive.

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
        Frames that were acquired and are not here, with the reason.
    account : dict
        ``session.json`` of the session; empty if it was not known.
    whole : bool
        False: the file was cut, or its writer was stopped; what follows was not read.

    Raises
    ------
    BrokenArchive
        In one line, if the file cannot be used.
    OSError
        If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise BrokenArchive(f"{path}: is a folder, not an archive")
        size = path.stat().st_size
        if not h5py.is_hdf5(path):
            raise BrokenArchive(f"{path}: is not an HDF5 file")
        self._overlay: _Completed | None = None
        self._file = self._open()
        try:
            self._read()
        except BrokenArchive:
            self.close()
            raise
        except (KeyError, TypeError, ValueError, OSError, RuntimeError, AttributeError) as error:
            self.close()
            raise BrokenArchive(f"{path}: cannot be read: {_line(error)}") from error
        self.size = size

    def _open(self) -> Any:
        """The file as it is, or with a table of contents of what is whole."""
        reason = ""
        try:
            file: Any = h5py.File(self.path, "r")
        except OSError as error:
            reason = _line(error)
        else:
            if "entry" not in file or "complete" not in file["entry"].attrs:
                file.close()
                raise BrokenArchive(f"{self.path}: is an HDF5 file, but not an archive of CryoFlux")
            if file["entry"].attrs["complete"]:
                return file
            file.close()
        with self.path.open("rb") as stream:
            try:
                index, end = read_log(self.path, stream)
            except BrokenArchive as error:
                raise BrokenArchive(f"{error}; HDF5 says: {reason}" if reason else str(error)) from error
        self._overlay = _Completed(self.path, index, end)
        return h5py.File(self._overlay, "r")

    def _read(self) -> None:
        root: Any = self._file
        version = int(root.attrs.get("cryoflux_archive_version", 0))
        if version != ARCHIVE_VERSION:
            raise BrokenArchive(
                f"{self.path}: an archive of version {version}; this CryoFlux reads version {ARCHIVE_VERSION}"
            )
        entry = root["entry"]
        self.whole = bool(entry.attrs["complete"])
        for name in ("session", "measurements", "references"):
            if not isinstance(entry.get(name), h5py.Group):
                raise BrokenArchive(f"{self.path}: has no group /entry/{name}")
        session = entry["session"]
        self.start: dict[str, Any] = _json(session, "start")
        self.specification: dict[str, Any] = _json(session, "specification")
        self.account: dict[str, Any] = _json(session, "account") if "account" in session else {}
        _check_shape(str(self.path), self.start["shape"])
        self.parts = [Part(group) for _, group in sorted(entry["measurements"].items())]
        for part in self.parts:
            if list(part.configuration.shape) != list(self.start["shape"]):
                raise BrokenArchive(f"{self.path}: a configuration for frames of another shape")
        self._references = _dataset(entry["references"], "data")
        _check_chunks(str(self.path), self._references)
        ids = _read(str(self.path), _dataset(entry["references"], "frame_id"))
        if ids.shape != self._references.shape[:1] or list(self._references.shape[1:]) != list(
            self.start["shape"]
        ):
            raise BrokenArchive(f"{self.path}: references of shape {self._references.shape}, {len(ids)} ids")
        self.references: list[int] = ids.tolist()
        self._slots = {frame: slot for slot, frame in enumerate(self.references)}
        every = np.concatenate([np.zeros(0, np.int64), *(part.frame_ids for part in self.parts)])
        if len(np.unique(every)) != len(every) or (len(every) and every.min() < 0):
            raise BrokenArchive(f"{self.path}: a frame stands in it twice, or has a negative number")
        self.frames = len(every)
        self._account_for(entry, every)

    def _account_for(self, entry: Any, every: NDArray[Any]) -> None:
        """Which frames were acquired, and which of them are lost."""
        highest = int(every.max(initial=-1)) + 1
        if not self.whole:
            if highest > 64 * (self.frames + 1_000_000):
                raise BrokenArchive(f"{self.path}: frame {highest - 1} among {self.frames} frames")
            here = np.zeros(highest, bool)
            here[every] = True
            self.lost = [Lost(k, k, CUT) for k in np.flatnonzero(~here).tolist()]
            self.frames_acquired = highest
            return
        lost = entry["lost"]
        names = ("first", "last", "reason")
        first, last, reason = (_read(str(self.path), _dataset(lost, name)) for name in names)
        if not len(first) == len(last) == len(reason):
            raise BrokenArchive(f"{self.path}: /entry/lost: tables of different lengths")
        self.frames_acquired = int(lost.attrs["frames_acquired"])
        self.lost = [
            Lost(int(a), int(b), why.decode(errors="replace"))
            for a, b, why in zip(first, last, reason, strict=True)
        ]
        count = sum(lost.last - lost.first + 1 for lost in self.lost)
        if self.frames + count != self.frames_acquired or highest > self.frames_acquired:
            raise BrokenArchive(
                f"{self.path}: {self.frames_acquired} frames acquired, but {self.frames} are there "
                f"and {count} lost"
            )

    @property
    def message(self) -> str:
        """What is to be said about an archive that is not whole, in one line; else nothing."""
        if self.whole:
            return ""
        missing = f"; {len(self.lost)} before the last of them are missing" if self.lost else ""
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
        slot = self._slots.get(frame_id)
        return None if slot is None else _read(str(self.path), self._references, slot)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._overlay is not None:
            self._overlay.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Completed(io.RawIOBase):
    """The whole records of a file with a new superblock, and a new table of contents behind them."""

    def __init__(self, path: Path, index: Index, end: int) -> None:
        super().__init__()
        self._path, self._end, self._at = path, end, 0
        self._file = os.open(path, os.O_RDONLY)
        self._contents, root = encode_tree(tree(index), end)
        self._size = end + len(self._contents)
        self._head = superblock(root, self._size).ljust(FIRST_RECORD, b"\0")
        self.name = os.fspath(path)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._at < self._size:
            data = self._piece(len(view) - done)
            view[done : done + len(data)] = data
            done, self._at = done + len(data), self._at + len(data)
        return done

    def _piece(self, count: int) -> bytes:
        if self._at < FIRST_RECORD:
            return self._head[self._at : self._at + count]
        if self._at < self._end:
            data = os.pread(self._file, min(count, self._end - self._at), self._at)
            if not data:
                raise OSError(f"{self._path}: is shorter than it was")
            return data
        return self._contents[self._at - self._end :][:count]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()


def _dataset(group: Any, name: str) -> Any:
    found = group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise BrokenArchive(f"{group.file.filename}: has no dataset {group.name}/{name}")
    return found


def _check_shape(where: str, shape: Any) -> None:
    if len(shape) != 2 or not all(0 < side <= LARGEST_SIDE for side in shape):
        raise BrokenArchive(f"{where}: frames of shape {shape!s:.60}")
    if math.prod(shape) > LARGEST_FRAME_PIXELS:
        raise BrokenArchive(f"{where}: frames of shape {shape!s:.60} are larger than {LARGEST_FRAME_PIXELS}")


def _check_chunks(where: str, dataset: Any) -> None:
    """Every chunk must be there, so that a shape cannot claim more than the file has."""
    if not dataset.chunks or dataset.chunks[1:] != dataset.shape[1:]:
        raise BrokenArchive(f"{where}: {dataset.name} is not in chunks of whole frames")
    if math.prod(dataset.chunks) * dataset.dtype.itemsize > MAX_ARRAY_BYTES:
        raise BrokenArchive(f"{where}: {dataset.name} has chunks of shape {dataset.chunks}, which is absurd")
    there, needed = dataset.id.get_num_chunks(), -(-dataset.shape[0] // dataset.chunks[0])
    if there != needed:
        raise BrokenArchive(
            f"{where}: {dataset.name} of shape {dataset.shape} has {there} of {needed} chunks"
        )


def _read(where: str, dataset: Any, what: Any = ()) -> Any:
    try:
        return dataset[what]
    except (OSError, RuntimeError) as error:
        raise BrokenArchive(f"{where}: {dataset.name} is damaged: {_line(error)}") from error


def _json(group: Any, name: str) -> Any:
    dataset = _dataset(group, name)
    if dataset.shape != () or dataset.dtype.kind not in "SO" or dataset.dtype.itemsize > LARGEST_TEXT_BYTES:
        raise BrokenArchive(f"{group.file.filename}: {dataset.name} is no text")
    try:
        document = json.loads(_read(str(group.file.filename), dataset))
    except ValueError as error:
        raise BrokenArchive(f"{group.file.filename}: {dataset.name} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise BrokenArchive(f"{group.file.filename}: {dataset.name} is no JSON object")
    return document


def _column(values: NDArray[Any]) -> list[Any]:
    if values.dtype.kind in "SO":
        return [value.decode(errors="replace") for value in values.tolist()]
    return values.tolist()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
