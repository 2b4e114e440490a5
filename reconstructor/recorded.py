"""Recorded measurements as blocks to be recovered again: of a session's folder, or of its archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import msgspec
import numpy as np

from common.archive import Archive, BrokenArchive
from common.configuration import Configuration
from common.wire.link import as_bytes
from common.wire.messages import (
    MAX_BLOCK_FRAMES,
    ArrayHeader,
    ConfigurationNotice,
    Frames,
    MalformedMessage,
    Start,
    Values,
)
from reconstructor.archive import MAGIC, archives, read_reference, read_start, record_at, records
from reconstructor.batches import Block

BLOCK_PIXELS = 2_097_152  # of an archive's frames that are recovered together, about


class Unit(NamedTuple):
    """Frames of one configuration that are recovered together, and where they are; small, to be sent."""

    config_id: str
    frame_ids: list[int]
    file: str  # of the folder, or nothing
    at: int  # byte of the record in that file, or the number of the archive's part
    first: int = 0  # row in that part


class Recording(Protocol):
    """A session's measurements.

    Attributes
    ----------
    start : Start
        As it went over the wire.
    message : str
        What is to be said about it, in one line; empty: nothing.
    frames_acquired : int
    lost_by_reason : dict[str, int]
        Of the frames that were acquired and are not here.
    """

    start: Start
    message: str
    frames_acquired: int
    lost_by_reason: Mapping[str, int]

    def configurations(self) -> list[Configuration]:
        """All that any frame was taken with."""
        ...

    def units(self) -> Iterator[Unit]:
        """Every frame once."""
        ...

    def block(self, unit: Unit, frames: list[int]) -> Block:
        """Some frames of a unit as they would come over the wire.

        Raises
        ------
        ValueError, OSError
            If they cannot be read.
        """
        ...

    def reference(self, frame_id: int) -> np.ndarray | None:
        """A frame that was also kept whole, (H, W)."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class FolderRecording(Recording):
    """``measurements/*.cfx`` of a session's folder.

    Parameters
    ----------
    account : mapping
        What ``session.json`` says.

    Raises
    ------
    BrokenArchive
        If there are no measurements, or they cannot be read.
    """

    def __init__(self, session: Path, account: Mapping[str, Any]) -> None:
        self._session, self.message = session, ""
        self._configurations: dict[str, Configuration] = {}
        self._units: list[Unit] = []
        seen: set[int] = set()
        try:
            start = read_start(session)
            for path in archives(session):
                if path.stat().st_size > len(MAGIC):
                    self._look_through(path, seen)
        except MalformedMessage as error:
            raise BrokenArchive(str(error)) from error
        if start is None:
            raise BrokenArchive(f"{session}: there are no measurements")
        self.start = start
        self.frames_acquired = max(account["frames"]["acquired"], max(seen, default=-1) + 1)
        self.lost_by_reason = _less(account["frames"]["lost_by_reason"], self.frames_acquired - len(seen))

    def _look_through(self, path: Path, seen: set[int]) -> None:
        for record in records(path):
            match record.message:
                case ConfigurationNotice(configuration=document):
                    configuration = Configuration.model_validate(document)
                    self._configurations[configuration.config_id] = configuration
                case Frames() as header:
                    new = [frame for frame in header.frame_ids if frame not in seen]
                    seen.update(new)
                    if new:
                        self._units.append(Unit(header.config_id, new, path.name, record.span.offset))
                case _:
                    pass

    def configurations(self) -> list[Configuration]:
        """All that any frame was taken with."""
        return list(self._configurations.values())

    def units(self) -> Iterator[Unit]:
        """One for each block that came over the wire."""
        return iter(self._units)

    def block(self, unit: Unit, frames: list[int]) -> Block:
        """The block as it came, of which ``frames`` are wanted."""
        record = record_at(self._session / "measurements" / unit.file, unit.at)
        assert isinstance(record.message, Frames)
        header = msgspec.structs.replace(record.message, wanted=frames)
        return Block(header, [memoryview(record.buffer(part)) for part in range(len(record.payloads))])

    def reference(self, frame_id: int) -> np.ndarray | None:
        """A frame that was also sent whole."""
        return read_reference(self._session, frame_id)

    def close(self) -> None:
        """Nothing is kept open."""


class ArchiveRecording(Recording):
    """An archive.

    Raises
    ------
    BrokenArchive, OSError
        In one line, if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._archive = archive = Archive(path)
        try:
            self.start = msgspec.convert({**archive.start, "type": "start"}, Start)
        except msgspec.ValidationError as error:
            archive.close()
            raise BrokenArchive(f"{path}: /entry/session/start: {error}") from error
        self.message, self.account = archive.message, archive.account
        self.frames_acquired, self.lost_by_reason = archive.frames_acquired, archive.lost_by_reason
        self._references = set(archive.references)

    def configurations(self) -> list[Configuration]:
        """All that any frame was taken with."""
        return list(
            {part.configuration.config_id: part.configuration for part in self._archive.parts}.values()
        )

    def units(self) -> Iterator[Unit]:
        """A few chunks each."""
        pixels = self.start.shape[0] * self.start.shape[1]
        for number, part in enumerate(self._archive.parts):
            together = min(BLOCK_PIXELS // pixels, MAX_BLOCK_FRAMES)
            step = part.chunk_rows * max(1, together // part.chunk_rows)
            for first in range(0, part.frames, step):
                frame_ids = part.frame_ids[first : first + step].tolist()
                yield Unit(part.configuration.config_id, frame_ids, "", number, first)

    def block(self, unit: Unit, frames: list[int]) -> Block:
        """Rows of a part, uncoded."""
        part = self._archive.parts[unit.at]
        rows = part.read(unit.first, len(unit.frame_ids))
        values = part.configuration.codec.values
        references = [frame for frame in frames if frame in self._references]
        whole = [self._archive.read_reference(frame) for frame in references]
        images = np.stack([image for image in whole if image is not None]) if whole else None
        buffers = [memoryview(as_bytes(np.ascontiguousarray(rows.values)))]
        if images is not None:
            buffers.append(memoryview(as_bytes(images)))
        header = Frames(
            series=self.start.series,
            block=0,
            config_id=unit.config_id,
            frame_ids=rows.frame_ids,
            acquired_at=rows.acquired_at,
            payload=_plain(rows.values, values, part.scale),
            reference_ids=references,
            reference_payload=None if images is None else _plain(images, "integer", 0.0),
            metadata=rows.metadata,
            wanted=frames,
        )
        return Block(header, buffers)

    def reference(self, frame_id: int) -> np.ndarray | None:
        """A frame that was also kept whole."""
        return self._archive.read_reference(frame_id)

    def close(self) -> None:
        """Close the file."""
        self._archive.close()


def _plain(array: np.ndarray, values: Values, step: float) -> ArrayHeader:
    """The header of an array that is not coded."""
    if array.dtype.kind == "f":
        values, dtype = "float32", "float32"
    elif values != "quantised":
        values, dtype = "integer", array.dtype.name
    else:
        dtype = "float32"
    return ArrayHeader(
        shape=list(array.shape),
        dtype=dtype,
        coding="plain",
        values=values,
        bits=8 * array.dtype.itemsize,
        step=step if values == "quantised" else 0.0,
    )


def _less(lost_by_reason: Mapping[str, int], count: int) -> dict[str, int]:
    """Reasons of ``count`` lost frames: some that no worker could recover are here all the same."""
    left = dict(lost_by_reason)
    surplus = sum(left.values()) - count
    for reason in list(left):
        taken = min(max(0, surplus), left[reason])
        left[reason] -= taken
        surplus -= taken
    if surplus < 0:
        left["there is no measurement"] = left.get("there is no measurement", 0) - surplus
    return {reason: number for reason, number in left.items() if number}
