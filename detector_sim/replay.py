"""A recorded session once more: its measurements, masks, frame numbers and metadata, over a real wire."""

from __future__ import annotations

import sys
import time
import uuid
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.archive import Archive, BrokenArchive, Part, Rows
from common.configuration import Configuration
from common.operators.spec import MaskSpec
from common.roots import ANYWHERE, NotAllowed, Roots
from common.session import ArchiveSource, SessionSpec
from common.wire.control import Conflict
from common.wire.messages import Start
from detector_sim.assembler import Shots
from detector_sim.camera import Camera
from detector_sim.series import Series
from detector_sim.sources.base import BadFile

CHUNKS_KEPT = 16
LOST_AT_ONCE = 65_536
AS_RECORDED = "a replayed session's masks are as recorded"


@dataclass(frozen=True)
class RecordedBatch:
    """Consecutive frames that were taken with one configuration.

    Attributes
    ----------
    frame_ids : list[int]
        Of the frames that are there, ascending.
    values : (n, *measurement_shape) array
        As they are handed to the codec.
    lost : dict[int, str]
        Frames in between and just before that are not there, with the reason.
    """

    configuration: Configuration | None
    frame_ids: list[int]
    values: NDArray[Any]
    metadata: dict[str, list[Any]] | None
    lost: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame_ids) + len(self.lost)


class RecordedFrames:
    """An archive's frames in the order of their ids.

    Parameters
    ----------
    path : Path
    inputs : Roots
        What may be read.

    Raises
    ------
    ValueError
        In one line, if the archive cannot be used.
    """

    def __init__(self, path: Path, inputs: Roots = ANYWHERE) -> None:
        try:
            self.archive = archive = Archive(path, inputs)
        except (FileNotFoundError, NotADirectoryError):
            raise BrokenArchive(f"{path}: no such file; check the path") from None
        except BrokenArchive as error:
            if isinstance(error.__cause__, NotAllowed):
                raise BrokenArchive(f"source.path: {error}") from error
            raise
        self.shape: tuple[int, int] = (int(archive.start["shape"][0]), int(archive.start["shape"][1]))
        self.dtype = np.dtype(archive.start["dtype"])
        self.bad_files = [BadFile(str(path), archive.message)] if archive.message else []
        ids = np.concatenate([np.zeros(0, np.int64), *(part.frame_ids for part in archive.parts)])
        parts = [np.full(part.frames, number) for number, part in enumerate(archive.parts)]
        rows = [np.arange(part.frames) for part in archive.parts]
        times = np.concatenate([np.zeros(0), *(part.acquired_at for part in archive.parts)])
        order = np.argsort(ids)
        if not len(order):
            archive.close()
            raise BrokenArchive(f"{path}: there is not a single frame in it")
        self.frame_ids: NDArray[Any] = ids[order]
        self._parts, self._rows = np.concatenate(parts)[order], np.concatenate(rows)[order]
        self.ends: NDArray[Any] = np.maximum.accumulate(times[order] - times[order][0])
        self._lost_from = [lost.first for lost in archive.lost]  # ascending
        self._chunks: OrderedDict[tuple[int, int], Rows] = OrderedDict()
        self._next = 0  # frame_id
        self.end = archive.frames_acquired  # no frame from this on is given

    @property
    def first_configuration(self) -> Configuration:
        """The one that the first frame was taken with."""
        return self.archive.parts[self._parts[0]].configuration

    def seek(self, frame: int) -> bool:
        """Go on with this frame."""
        self._next = frame
        return True

    @property
    def position(self) -> int:
        """How many of the frames that are there come before the next."""
        return int(np.searchsorted(self.frame_ids, self._next))

    def read(self, count: int) -> RecordedBatch | None:
        """The next frames, up to ``count`` and of one configuration; None at the end.

        Where many are lost one behind the other, these come by themselves, ``LOST_AT_ONCE`` at a time.
        """
        at = self.position
        if self._next >= self.end:
            return None
        following = int(self.frame_ids[at]) if at < len(self.frame_ids) else self.end
        if min(following, self.end) - self._next > LOST_AT_ONCE:
            begin, self._next = self._next, self._next + LOST_AT_ONCE
            gap = {frame: self._reason(frame) for frame in range(begin, self._next)}
            return RecordedBatch(None, [], np.zeros(0), None, gap)
        configuration = self._part(at).configuration if at < len(self.frame_ids) else None
        taken: list[int] = []
        while at < len(self.frame_ids) and len(taken) < count and self.frame_ids[at] < self.end:
            if self._part(at).configuration != configuration:
                break
            if taken and self.frame_ids[at] - self._next > LOST_AT_ONCE:
                break
            taken.append(at)
            at += 1
        until = int(self.frame_ids[taken[-1]]) + 1 if taken else min(following, self.end)
        here = set(self.frame_ids[taken].tolist())
        missing = (frame for frame in range(self._next, until) if frame not in here)
        lost = {frame: self._reason(frame) for frame in missing}
        self._next = until
        rows: list[tuple[int, Rows, int]] = []
        for position in taken:
            frame = int(self.frame_ids[position])
            try:
                rows.append((frame, *self._row(position)))
            except BrokenArchive as error:
                lost[frame] = f"damaged in the archive: {error}"
        if not rows:
            return RecordedBatch(configuration, [], np.zeros(0), None, lost)
        assert configuration is not None
        values = np.stack([chunk.values[row] for _, chunk, row in rows])
        if configuration.codec.values == "quantised":
            step = configuration.codec.step
            values = np.multiply(values, step, dtype=np.float64).astype(np.float32)
        metadata = None
        if all(chunk.metadata for _, chunk, _ in rows):
            names = list(rows[0][1].metadata or ())
            metadata = {
                name: [(chunk.metadata or {}).get(name, [None] * (row + 1))[row] for _, chunk, row in rows]
                for name in names
            }
        return RecordedBatch(configuration, [frame for frame, _, _ in rows], values, metadata, lost)

    def _reason(self, frame: int) -> str:
        """Why a frame is not there."""
        place = bisect_right(self._lost_from, frame) - 1
        lost = self.archive.lost[place] if place >= 0 else None
        return lost.reason if lost is not None and frame <= lost.last else "not recorded"

    def _part(self, position: int) -> Part:
        return self.archive.parts[self._parts[position]]

    def _row(self, position: int) -> tuple[Rows, int]:
        """The chunk that holds a frame, and where in it."""
        part = self._part(position)
        row = int(self._rows[position])
        key = (int(self._parts[position]), row // part.chunk_rows)
        if key not in self._chunks:
            self._chunks[key] = part.read(key[1] * part.chunk_rows, part.chunk_rows)
            if len(self._chunks) > CHUNKS_KEPT:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(key)
        return self._chunks[key], row % part.chunk_rows

    def close(self) -> None:
        """Close the archive."""
        self.archive.close()


class RecordedCamera(Camera):
    """Exposures that end as they once did.

    Parameters
    ----------
    ends : (n,) array
        Seconds from the end of the first exposure to that of each, ascending.
    """

    def __init__(self, ends: NDArray[Any], now: float) -> None:
        super().__init__(None, now)
        self._period = sys.float_info.min  # there is a clock, but how far apart exposures are differs
        self._ends, self._taken = ends, 0

    def due(self, now: float, limit: int) -> int:
        """How many exposures, up to ``limit``, are there to be read."""
        if self.wait(now) != 0.0:
            return 0
        self._next_end = max(self._next_end, now - self._buffer)
        if self._taken >= len(self._ends):
            return limit
        ahead = self._ends[self._taken : self._taken + limit] - self._ends[self._taken]
        return max(1, int(np.searchsorted(ahead, now - self._next_end, side="right")))

    def take(self, count: int, now: float) -> list[float]:
        """The end times of the next ``count`` exposures, which are being read."""
        known = self._ends[self._taken : self._taken + count + 1]
        if not len(known):
            return [now] * count
        ends = (self._next_end + known - known[0]).tolist()
        self._taken += count
        self._next_end = ends[-1]
        return (ends + [ends[-1]] * count)[:count]


def open_series(spec: SessionSpec, *arguments: Any) -> Series:
    """A series of new frames, or of recorded ones; arguments as ``Series`` takes them."""
    kind = Replay if isinstance(spec.source, ArchiveSource) else Series
    return kind(spec, *arguments)


class Replay(Series):
    """A series whose frames were measured before.

    What was lost then is lost again, for the same reason; exposure times are those of the replay.
    """

    def _begin(self, spec: SessionSpec, session: str) -> None:
        output = self._new_output(spec)
        recorded = self._open(spec)
        try:
            archive = recorded.archive
            self._setting = self._requested = self._set_up(recorded.first_configuration)
        except Exception:
            recorded.close()
            raise
        self.start_message = Start(
            series=str(uuid.uuid4()),
            session=session,
            frames_expected=recorded.end,
            shape=self.shape,
            dtype=self.dtype.name,
            pixel_size_angstrom=float(archive.start["pixel_size_angstrom"]),
            output=str(output),
            optics=archive.start["optics"],
            calibration=archive.start["calibration"],
        )

    def _reopen(self, frame: int) -> None:
        self._open(self._spec, frame)

    def _open(self, spec: SessionSpec, frame: int = 0) -> RecordedFrames:
        assert isinstance(spec.source, ArchiveSource)
        assert spec.source.path is not None
        recorded = self._source = RecordedFrames(Path(spec.source.path), self._inputs)  # type: ignore[assignment]
        recorded.seek(frame)
        recorded.end = min(recorded.end, spec.camera.frames or recorded.end)
        self.shape, self.dtype = recorded.shape, recorded.dtype
        self._first_frames = np.zeros((1, *self.shape), self.dtype)
        if spec.camera.rate is None and spec.source.speed is not None:
            ends = recorded.ends[recorded.position :] / spec.source.speed
            self._camera = RecordedCamera(ends, time.monotonic())
        return recorded

    def _set_up(self, configuration: Configuration) -> Any:
        """The setting of a recorded configuration."""
        known = self._configured.get(configuration.config_id)
        if known is not None:
            return known
        operator = configuration.mask.build(configuration.shape)
        if operator.mask_hash != configuration.mask_hash:
            raise ValueError(
                f"source: the mask of configuration {configuration.config_id} is drawn otherwise by this "
                "version than by the one that recorded it"
            )
        return self._read_out(configuration, operator)

    def change(self, mask: MaskSpec | None, compression_factor: float | None) -> dict[str, Any]:
        """There is no mask to be changed.

        Raises
        ------
        Conflict
            Always.
        """
        raise Conflict(AS_RECORDED)

    def _read(self, count: int) -> Any:
        return self._source.read(count)

    def _expose(self, batch: Any) -> Shots | None:
        """Send what was recorded of these frames; what was lost is lost again."""
        recorded: RecordedBatch = batch
        configuration = recorded.configuration
        if configuration is not None and configuration != self._setting.configuration:
            setting = self._set_up(configuration)
            self._use(setting)
            told = f"C = {configuration.compression_factor:.4g} from frame {self._next_frame} on, as recorded"
            self._event("acquisition", told)
        every = sorted([*recorded.frame_ids, *recorded.lost])
        until = every[-1] + 1
        fresh = until - self._exposed
        if fresh > 0:
            self._publisher.expose(until)
        with self._publisher.changed:
            now = time.monotonic()
            ends = self._camera.take(len(recorded.frame_ids), now)
            acquired_at = [self._publisher.clock.at(end) for end in ends]
            if fresh > 0:
                self._publisher.ledger.acquire(fresh)
                self._exposed += fresh
            if self._setting.first_frame is None:
                self._setting.first_frame = self._next_frame
            self._setting.frames += len(every)
            self._next_frame = until
        for reason in dict.fromkeys(recorded.lost.values()):
            frames = [frame for frame, why in recorded.lost.items() if why == reason]
            self._lose(frames, reason, "other")
        if not recorded.frame_ids:
            return None
        archive: Archive = self._source.archive  # type: ignore[attr-defined]
        references = {
            frame: image
            for frame in recorded.frame_ids
            if (image := archive.read_reference(frame)) is not None
        }
        return Shots(
            frame_ids=recorded.frame_ids,
            acquired_at=acquired_at,
            measurements=recorded.values,
            reference_ids=list(references),
            references=np.stack(list(references.values())) if references else None,
            metadata=recorded.metadata,
        )
