"""Gathers frames of one configuration into blocks of about a megabyte, or of what came in the linger time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from common.configuration import CodecSpec, Configuration
from common.wire.codec import encode_array
from common.wire.control import error_line
from common.wire.link import Buffer, as_bytes
from common.wire.messages import MAX_BLOCK_FRAMES, MAX_FRAMES_HEADER_BYTES, Frames

Metadata = dict[str, list[Any]]

LARGEST_METADATA_BYTES = MAX_FRAMES_HEADER_BYTES - (2 << 20)  # the rest of a header takes less than the rest


@dataclass(eq=False, slots=True)
class Shots:
    """Frames read out together: one measurement each, and the whole frame where it is a reference."""

    frame_ids: list[int]
    acquired_at: list[float]
    measurements: np.ndarray  # (n, *measurement_shape)
    reference_ids: list[int] = field(default_factory=list)
    references: np.ndarray | None = None  # (len(reference_ids), H, W)
    metadata: Metadata | None = None

    def part(self, first: int, last: int) -> Shots:
        """Some of the frames, those at [first, last)."""
        frame_ids = self.frame_ids[first:last]
        wanted = set(frame_ids)
        positions = [k for k, frame in enumerate(self.reference_ids) if frame in wanted]
        return Shots(
            frame_ids=frame_ids,
            acquired_at=self.acquired_at[first:last],
            measurements=self.measurements[first:last],
            reference_ids=[self.reference_ids[k] for k in positions],
            references=self.references[positions] if self.references is not None and positions else None,
            metadata=self.metadata and {name: column[first:last] for name, column in self.metadata.items()},
        )

    def with_headers_that_fit(self) -> Iterator[Shots]:
        """The frames in as many parts as their metadata needs, each in order; mostly one."""
        count = len(self.frame_ids)
        if count > 1 and self.metadata_bytes > LARGEST_METADATA_BYTES:
            yield from self.part(0, count // 2).with_headers_that_fit()
            yield from self.part(count // 2, count).with_headers_that_fit()
        else:
            yield self

    @property
    def metadata_bytes(self) -> int:
        """How much of a header the metadata take."""
        return len(msgspec.msgpack.encode(self.metadata)) if self.metadata else 0


def joined(tables: Sequence[Metadata | None]) -> Metadata | None:
    """The rows of several tables under one another; None where there are none."""
    present = [table for table in tables if table]
    if not present:
        return None
    return {column: [value for table in present for value in table[column]] for column in present[0]}


def _merged(gathered: Sequence[Shots]) -> Shots:
    if len(gathered) == 1:
        return gathered[0]
    references = [shots.references for shots in gathered if shots.references is not None]
    return Shots(
        frame_ids=[frame for shots in gathered for frame in shots.frame_ids],
        acquired_at=[time for shots in gathered for time in shots.acquired_at],
        measurements=np.concatenate([shots.measurements for shots in gathered]),
        reference_ids=[frame for shots in gathered for frame in shots.reference_ids],
        references=np.concatenate(references) if references else None,
        metadata=joined([shots.metadata for shots in gathered]),
    )


class Assembler:
    """One block at a time, for one configuration at a time.

    Parameters
    ----------
    block_bytes : int
        Payload of a block, about.
    block_frames : int
        No block has more frames, however small their measurements are.
    linger_seconds : float
        No frame waits longer for its block to fill.
    publish : callable
        ``publish(header, buffers)`` takes a block.
    lose : callable
        ``lose(frame_ids, reason)`` takes note of frames that cannot be coded.

    Attributes
    ----------
    bytes_per_frame : float
        Payload of one frame as the last block had it (before the first: the bare measurements).
    reference_bytes, reference_bytes_raw : int
        Whole frames sent: losslessly coded, and as they were.
    """

    def __init__(
        self,
        series: str,
        *,
        block_bytes: int,
        block_frames: int,
        linger_seconds: float,
        publish: Callable[[Frames, Sequence[Buffer]], None],
        lose: Callable[[list[int], str], None],
    ) -> None:
        self._series = series
        self._block_bytes, self._block_frames = block_bytes, min(block_frames, MAX_BLOCK_FRAMES)
        self._linger = linger_seconds
        self._publish, self._lose = publish, lose
        self._configuration: Configuration | None = None
        self._gathered: list[Shots] = []
        self._since = 0.0
        self.bytes_per_frame = 0.0
        self.reference_bytes = self.reference_bytes_raw = 0

    def configure(self, configuration: Configuration, bytes_per_frame: float) -> None:
        """Finish the block of the configuration before and begin with this one."""
        self.flush()
        self._configuration = configuration
        self.bytes_per_frame = bytes_per_frame

    @property
    def frames_per_block(self) -> int:
        """How many frames fill a block."""
        fill = round(self._block_bytes / max(self.bytes_per_frame, 1.0))
        return max(1, min(fill, self._block_frames))

    @property
    def missing(self) -> int:
        """How many frames the block that is gathering still takes."""
        return max(1, self.frames_per_block - self._count)

    def add(self, shots: Shots, now: float) -> None:
        """Add frames; a block that is full goes out."""
        if not self._gathered:
            self._since = now
        self._gathered.append(shots)
        if self._count >= self.frames_per_block:
            self.flush()

    def wait(self, now: float) -> float | None:
        """Seconds until the block that is gathering must go, full or not; None if there is none."""
        return max(0.0, self._since + self._linger - now) if self._gathered else None

    @property
    def _count(self) -> int:
        return sum(len(shots.frame_ids) for shots in self._gathered)

    def flush(self) -> None:
        """Send what is gathered; a frame that cannot be coded is lost without taking others with it."""
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        for shots in _merged(gathered).with_headers_that_fit():
            try:
                self._send(shots)
            except ValueError:
                for row in range(len(shots.frame_ids)):
                    try:
                        self._send(shots.part(row, row + 1))
                    except ValueError as error:
                        self._lose([shots.frame_ids[row]], error_line(error))

    def _send(self, shots: Shots) -> None:
        assert self._configuration is not None
        if len(shots.frame_ids) == 1 and (size := shots.metadata_bytes) > LARGEST_METADATA_BYTES:
            raise ValueError(
                f"its metadata take {size} bytes of the header, which has room for {LARGEST_METADATA_BYTES}"
            )
        payload, buffer = encode_array(shots.measurements, self._configuration.codec)
        buffers: list[Buffer] = [buffer]
        reference_payload = None
        if shots.references is not None:
            values = "integer" if shots.references.dtype.kind in "iu" else "float32"
            reference_payload, reference_buffer = encode_array(
                shots.references, CodecSpec(values=values, coding="bitshuffle-zstd")
            )
            buffers.append(reference_buffer)
            self.reference_bytes += len(as_bytes(reference_buffer))
            self.reference_bytes_raw += shots.references.nbytes
        self.bytes_per_frame = len(as_bytes(buffer)) / len(shots.frame_ids)
        self._publish(
            Frames(
                series=self._series,
                block=0,  # the ledger numbers it
                config_id=self._configuration.config_id,
                frame_ids=shots.frame_ids,
                acquired_at=shots.acquired_at,
                payload=payload,
                reference_ids=shots.reference_ids,
                reference_payload=reference_payload,
                metadata=shots.metadata,
            ),
            buffers,
        )
