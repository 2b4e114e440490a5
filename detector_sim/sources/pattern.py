"""Numbered test frames: cheap to make, noisy as counting frames are, and each tells its own number."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.session import PatternSource
from detector_sim.sources.base import BadFile, FrameBatch, Source, optics_row

NUMBER_PIXELS = 8
"""The first pixels of the first row hold the frame's number, one byte each, least significant first."""

_MEAN_COUNT = 20.0
_FIELDS = 16
_FIELD_PIXELS = 1 << 22  # fewer fields where frames are large, so that opening stays cheap
_DRAWN_SIDE = 1024  # and larger frames repeat what was drawn


def frame_number(frame: np.ndarray) -> int:
    """The number written into a pattern frame (H, W), exact for every dtype."""
    digits = frame[0, :NUMBER_PIXELS].astype(np.int64).tolist()
    return sum(digit << (8 * place) for place, digit in enumerate(digits))


class Pattern(Source):
    """Endless frames of Poisson counts (mean 20); frame n is the same whenever and however it is read.

    A few noise fields are drawn once (Philox, so the same on every platform) and taken in turn, with the
    frame's number written into its first pixels. Making a frame thus costs one copy.
    """

    def __init__(self, spec: PatternSource) -> None:
        self.shape = spec.shape
        self.dtype = np.dtype(spec.dtype)
        self.pixel_size_angstrom = 1.0
        self.frame_count = None
        self.optics: dict[str, Any] = optics_row(self.shape, self.pixel_size_angstrom)
        self.bad_files: list[BadFile] = []
        self._next = 0
        generator = np.random.Generator(np.random.Philox(key=20260))
        height, width = self.shape
        fields = min(_FIELDS, max(1, _FIELD_PIXELS // (height * width)))
        drawn = (fields, min(height, _DRAWN_SIDE), min(width, _DRAWN_SIDE))
        repeats = (1, -(-height // drawn[1]), -(-width // drawn[2]))
        noise = generator.poisson(_MEAN_COUNT, drawn).astype(self.dtype)
        self._fields = np.tile(noise, repeats)[:, :height, :width]

    def read(self, count: int) -> FrameBatch:
        """``count`` frames, always."""
        numbers = np.arange(self._next, self._next + count, dtype=np.int64)
        self._next += count
        frames = self._fields[numbers % len(self._fields)]
        places = 8 * np.arange(NUMBER_PIXELS)
        frames[:, 0, :NUMBER_PIXELS] = (numbers[:, None] >> places) & 0xFF
        return FrameBatch(frames)

    def seek(self, frame: int) -> bool:
        """Any frame can be made at any time."""
        self._next = frame
        return True

    def close(self) -> None:
        """Nothing to let go of."""
