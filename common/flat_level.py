"""The flat part of integer measurements, which both ends know and which therefore need not travel.

A coded aperture's sums of a nearly flat frame differ mostly because the blocks differ in how many holes are
open; that is known from the mask. So the measurement of a flat image of a whole-numbered level is taken off
before coding and put back after: still integers, still lossless, and one to two bits a number fewer on real
and simulated frames (docs/performance.md). The level is part of the codec, so of the configuration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.operators import LinearOperator


class FlatLevel:
    """What a flat image of one configuration's level measures.

    Parameters
    ----------
    operator : LinearOperator
        One whose measurements of integers are integers, if ``level`` is not 0.
    level : int
        Pixel value of the flat image; 0 leaves measurements as they are.
    """

    def __init__(self, operator: LinearOperator, level: int) -> None:
        self.level = level
        self._flat = np.zeros(1, np.int64)
        if level:
            ones = torch.ones(1, *operator.shape, dtype=torch.float64)
            self._flat = operator.A(ones).mul_(level).round().numpy().astype(np.int64)
        self._flat_as: dict[np.dtype[Any], NDArray[Any]] = {}

    def take_off(self, measurements: NDArray[Any]) -> NDArray[Any]:
        """Subtract it in place from integer measurements (B, *measurement_shape), and return them.

        Their dtype must hold the sums of any frame of the pixels' dtype, for then it holds the differences.
        """
        if self.level:
            measurements -= self._of(measurements.dtype)
        return measurements

    def put_back(self, measurements: NDArray[Any]) -> NDArray[Any]:
        """The measurements (B, *measurement_shape) as they were before ``take_off``."""
        return measurements + self._of(measurements.dtype) if self.level else measurements

    def _of(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        if dtype not in self._flat_as:
            self._flat_as[dtype] = self._flat.astype(dtype)
        return self._flat_as[dtype]
