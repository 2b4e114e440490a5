"""Minimum norm: of all images with these measurements, the one nearest to a flat image."""

from __future__ import annotations

from torch import Tensor

from common.calibration import Calibration
from common.operators import LinearOperator
from reconstructor.recovery.base import Method, Parameters


class MinimumNormParameters(Parameters):
    """There are none."""


class MinimumNorm(Method):
    """A_dagger of the measurement about its mean level: the closed form every prior is judged against."""

    parameters_model = MinimumNormParameters

    def __init__(
        self, op: LinearOperator, parameters: MinimumNormParameters, calibration: Calibration | None
    ) -> None:
        pass

    def __call__(self, minimum_norm: Tensor) -> Tensor:
        """The minimum-norm images themselves, (B, H, W)."""
        return minimum_norm
