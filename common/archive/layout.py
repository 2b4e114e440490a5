"""What an archive holds, and where HDF5 readers find it; docs/archive.md describes it to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self, cast

import h5py
import numpy as np

from common.archive.checks import BrokenArchive, check_chunk, check_opening, check_part
from common.archive.hdf5 import ChunkedDataset, Dataset, Group, StoredChunk, text, texts
from common.archive.log import (
    ARCHIVE_VERSION,
    Contents,
    Ending,
    FrameChunk,
    Lost,
    Opening,
    Part,
    Placed,
    Record,
    ReferenceChunk,
)
from common.configuration import Configuration

FRAME_ID, ACQUIRED_AT = np.dtype("<i8"), np.dtype("<f8")
FORMULA = "measurement = (data + offset) * scale"


@dataclass
class PartIndex:
    """One part and its chunks."""

    part: Part
    configuration: Configuration
    offset: StoredChunk
    chunks: dict[int, tuple[FrameChunk, int]] = field(default_factory=dict[int, tuple[FrameChunk, int]])

    @property
    def frames(self) -> int:
        """How many rows there are."""
        return sum(header.frames for header, _ in self.chunks.values())

    @property
    def relion(self) -> np.dtype[Any]:
        """Of a row's RELION columns."""
        return relion_dtype(self.part.columns)


@dataclass
class Index:
    """What the records so far have said.

    Raises
    ------
    BrokenArchive
        If the first of them is not the beginning of a session.
    """

    opening: Opening
    parts: dict[int, PartIndex] = field(default_factory=dict[int, PartIndex])
    references: list[tuple[int, StoredChunk]] = field(default_factory=list[tuple[int, StoredChunk]])
    ending: Ending | None = None
    has_gap: bool = False  # records before the next one may be missing

    def __post_init__(self) -> None:
        check_opening(self.opening)

    @classmethod
    def of(cls, record: Record) -> Self:
        """That of a file whose first record is this one.

        Raises
        ------
        BrokenArchive
            If it does not begin a session.
        """
        if not isinstance(record, Opening):
            raise BrokenArchive("its first record is not that of a session")
        return cls(record)

    @property
    def frames(self) -> int:
        """How many frames' measurements there are."""
        return sum(part.frames for part in self.parts.values())

    def add(self, placed: Placed) -> None:
        """Take note of a record.

        Raises
        ------
        BrokenArchive
            If it contradicts those before it.
        """
        match placed.record:
            case Part() as part:
                self._add_part(part, placed)
            case FrameChunk() as chunk:
                indexed = self.parts.get(chunk.part)
                if indexed is not None:
                    check_chunk(chunk, indexed.part, placed.size)
                    indexed.chunks[chunk.row] = (chunk, placed.body)
                elif not self.has_gap:
                    raise BrokenArchive(f"the record at byte {placed.body} contradicts those before it")
            case ReferenceChunk(frame_id=frame):
                row = len(self.references)
                self.references.append((frame, StoredChunk(row, placed.body, placed.size)))
            case Ending() as ending:
                self.ending = ending
            case Opening() | Contents():
                pass

    def _add_part(self, part: Part, placed: Placed) -> None:
        configuration = check_part(part, self.opening)
        number = len(self.parts) if part.number is None else part.number
        if self.has_gap and part.number is None:
            return  # a part may be missing before it; earlier versions did not say which one it is
        if number in self.parts or (number != len(self.parts) and not self.has_gap):
            raise BrokenArchive(f"the part at byte {placed.body} is number {number}")
        self.parts[number] = PartIndex(part, configuration, StoredChunk(0, placed.body, placed.size))


def relion_dtype(columns: Sequence[tuple[str, str]]) -> np.dtype[Any]:
    """Of a row with these columns; strings are UTF-8."""
    kinds = [(name, np.dtype(kind)) for name, kind in columns]
    return np.dtype(
        [
            (name, h5py.string_dtype("utf-8", kind.itemsize) if kind.kind == "S" else kind)
            for name, kind in kinds
        ]
    )


def lost_ranges(frames: Sequence[int], reasons: Sequence[str]) -> list[Lost]:
    """Frames, ascending, each with the reason why it is lost, as ranges."""
    ranges: list[Lost] = []
    for frame, reason in zip(frames, reasons, strict=True):
        last = ranges[-1] if ranges else None
        if last is not None and last.last == frame - 1 and last.reason == reason:
            ranges[-1] = Lost(last.first, frame, reason)
        else:
            ranges.append(Lost(frame, frame, reason))
    return ranges


def tree(index: Index) -> Group:
    """The archive as HDF5 readers see it."""
    opening, ending, start = index.opening, index.ending, index.opening.start
    measurements = {f"configuration_{number + 1:03d}": _part(part) for number, part in index.parts.items()}
    pixel_size = float(start["pixel_size_angstrom"])
    detector = Group(
        {
            "x_pixel_size": Dataset(np.array(pixel_size), {"units": "angstrom"}),
            "y_pixel_size": Dataset(np.array(pixel_size), {"units": "angstrom"}),
            "frame_shape": Dataset(np.array(start["shape"], np.int64)),
            "frame_dtype": Dataset(text(str(start["dtype"]))),
            "calibration": _json(start["calibration"]),
        },
        {"NX_class": "NXdetector"},
    )
    members: dict[str, Group | Dataset | ChunkedDataset] = {
        "entry_identifier": Dataset(text(str(start["session"]))),
        "start_time": Dataset(text(_iso(opening.created_at))),
        "instrument": Group(
            {"detector": detector, "optics": _json(start["optics"])}, {"NX_class": "NXinstrument"}
        ),
        "sample": Group({"name": Dataset(text(_sample(opening.specification)))}, {"NX_class": "NXsample"}),
        "measurements": Group(measurements, {"NX_class": "NXcollection"}),
        "references": _references(index),
        "session": Group(
            {
                "specification": _json(opening.specification),
                "start": _json(start),
                "software": Dataset(text(opening.software)),
                **({"account": _json(ending.account)} if ending is not None and ending.account else {}),
            },
            {"NX_class": "NXcollection"},
        ),
    }
    if ending is not None:
        members["end_time"] = Dataset(text(_iso(ending.finished_at)))
        members["lost"] = _lost(ending)
    attributes = {"NX_class": "NXentry", "complete": int(ending is not None), "frames": index.frames}
    root = {
        "NX_class": "NXroot",
        "default": "entry",
        "creator": "CryoFlux",
        "cryoflux_archive_version": ARCHIVE_VERSION,
    }
    return Group({"entry": Group(members, attributes)}, root)


def _part(indexed: PartIndex) -> Group:
    part, frames = indexed.part, indexed.frames
    columns: list[list[StoredChunk]] = [[], [], [], []]
    for header, body in indexed.chunks.values():
        for chunks, size in zip(columns, header.sizes, strict=False):
            chunks.append(StoredChunk(header.row, body, size))
            body += size

    def dataset(
        dtype: np.dtype[Any], shape: tuple[int, ...], column: int, **attributes: Any
    ) -> ChunkedDataset:
        return ChunkedDataset(dtype, (frames, *shape), part.chunk_rows, columns[column], attributes)

    configuration = part.configuration
    offset_dtype = np.dtype("<i8") if np.dtype(part.dtype).kind != "f" else np.dtype("<f8")
    offset_shape = part.offset_shape
    members: dict[str, Group | Dataset | ChunkedDataset] = {
        "data": dataset(
            np.dtype(part.dtype), part.measurement_shape, 0, formula=FORMULA, wire_dtype=part.wire_dtype
        ),
        "offset": ChunkedDataset(
            offset_dtype, offset_shape, offset_shape[0], [indexed.offset], {"centre": part.centre}
        ),
        "scale": Dataset(np.array(part.scale)),
        "frame_id": dataset(FRAME_ID, (), 1),
        "acquired_at": dataset(ACQUIRED_AT, (), 2, units="s", description="Unix time of the exposure's end"),
        "configuration": _json(configuration),
    }
    if part.columns:
        members["relion"] = dataset(indexed.relion, (), 3)
    return Group(
        members,
        {
            "NX_class": "NXdata",
            "signal": "data",
            "config_id": configuration["config_id"],
            "mask": json.dumps(configuration["mask"]),
            "mask_hash": configuration["mask_hash"],
            "compression_factor": float(configuration["compression_factor"]),
            "printed_compression_factor": float(configuration["printed_compression_factor"]),
        },
    )


def _references(index: Index) -> Group:
    shape, dtype = tuple(index.opening.start["shape"]), np.dtype(index.opening.start["dtype"])
    chunks = [chunk for _, chunk in index.references]
    return Group(
        {
            "data": ChunkedDataset(dtype.newbyteorder("<"), (len(chunks), *shape), 1, chunks),
            "frame_id": Dataset(np.array([frame for frame, _ in index.references], FRAME_ID)),
        },
        {"NX_class": "NXdata", "signal": "data"},
    )


def _lost(ending: Ending) -> Group:
    return Group(
        {
            "first": Dataset(np.array([lost.first for lost in ending.lost], FRAME_ID)),
            "last": Dataset(np.array([lost.last for lost in ending.lost], FRAME_ID)),
            "reason": Dataset(texts([lost.reason for lost in ending.lost])),
        },
        {"NX_class": "NXcollection", "frames_acquired": ending.frames_acquired},
    )


def _json(value: Any) -> Dataset:
    return Dataset(text(json.dumps(value, separators=(",", ":"))), {"media_type": "application/json"})


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _sample(specification: dict[str, Any]) -> str:
    source = specification.get("source")
    if not isinstance(source, dict):
        return ""
    known = cast(dict[str, Any], source)
    specimen = known.get("specimen")
    structure = cast(dict[str, Any], specimen).get("structure") if isinstance(specimen, dict) else None
    return str(known.get("path") or structure or known.get("kind", ""))
