"""Frames made by the specimen simulator as they are asked for; the truth goes along as metadata."""

from __future__ import annotations

from typing import Any

from common.roots import ANYWHERE, Roots
from common.session import SpecimenSpec
from detector_sim.sources.base import BadFile, FrameBatch, Source, SourceError, optics_row
from detector_sim.specimen import Specimen

_PIXELS_AT_A_TIME = 1 << 22


class SpecimenFrames(Source):
    """Endless; frame n depends on the specimen's seed and n alone.

    Raises
    ------
    SourceError
        One line: the structure cannot be read or does not fit, or the dose overflows.
    """

    def __init__(self, spec: SpecimenSpec, inputs: Roots = ANYWHERE) -> None:
        try:
            self._specimen = Specimen(spec, inputs)
        except ValueError as error:
            raise SourceError(str(error)) from error
        self.shape = self._specimen.shape
        self.dtype = self._specimen.dtype
        self.pixel_size_angstrom = spec.pixel_size_angstrom
        self.frame_count = None
        known = self._specimen.optics
        self.optics: dict[str, Any] = optics_row(self.shape, spec.pixel_size_angstrom, **known)
        self.bad_files: list[BadFile] = []
        self._next = 0

    def read(self, count: int) -> FrameBatch:
        """The next frames: ``count``, or as many as make 4 million pixels."""
        count = min(count, max(1, _PIXELS_AT_A_TIME // (self.shape[0] * self.shape[1])))
        batch = self._specimen.batch(self._next, count)
        self._next += count
        return FrameBatch(batch.frames, batch.metadata)

    def seek(self, frame: int) -> bool:
        """Any frame can be made at any time."""
        self._next = frame
        return True

    def close(self) -> None:
        """Nothing to let go of."""
