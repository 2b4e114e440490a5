"""What the methods with a prior share: a spectrum to set their strength by, and the last data step."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from common.calibration import Calibration
from common.operators import LinearOperator
from reconstructor.recovery.base import MaskKind, Method, Parameters, column
from reconstructor.recovery.spectrum import FrameSpectrum, SpectrumEstimator

# Signal energy over noise variance of a frame above which its measured values are kept as they are; found on
# real and simulated particles, docs/fidelity.md.
KEPT_SIGNAL_ENERGY = 1400.0


class PriorParameters(Parameters):
    """Parameters of the last data step.

    x = P s + data_weight (x0 - P s) + null_weight (s - P s), where s is the prior's own image.
    """

    data_weight: float | None = Field(
        None, ge=0, le=1,
        description="1: the measured values exactly; 0: the prior's own; none: by the frame's signal",
    )  # fmt: skip
    null_weight: float | None = Field(
        None, ge=0, le=1, description="share of the prior's values taken where nothing was measured"
    )


P = TypeVar("P", bound=PriorParameters)
Prepared = TypeVar("Prepared")


class Prior(Method, Generic[P, Prepared]):
    """A method that finds its own image s near the measurement, then takes the relaxed data step.

    Attributes
    ----------
    defaults : dict
        Of the parameters, by the mask's kind; see docs/fidelity.md.
    op : LinearOperator
        Measures the frames.
    parameters : PriorParameters
        With every default filled in.
    estimate : SpectrumEstimator
        Tells a frame's spectrum.
    """

    defaults: ClassVar[dict[MaskKind, dict[str, Any]]]

    def __init__(self, op: LinearOperator, parameters: P, calibration: Calibration | None) -> None:
        self.op = op
        self.parameters = parameters.for_mask(self.defaults, op)
        self.estimate = SpectrumEstimator(op, calibration)
        self._kept: dict[tuple[torch.device, torch.dtype], Prepared] = {}

    @abstractmethod
    def prepare(self, spectrum: FrameSpectrum, like: Tensor) -> Prepared:
        """What follows from the spectrum alone, on the device and in the precision of ``like``."""

    @abstractmethod
    def solve(self, minimum_norm: Tensor, prepared: Prepared) -> Tensor:
        """The prior's own images s (B, H, W), from the minimum-norm images (B, H, W), left as they are."""

    def __call__(self, minimum_norm: Tensor) -> Tensor:
        """Solve, then take the relaxed data step."""
        spectrum = self.estimate(minimum_norm)
        prior = self.solve(minimum_norm, self._prepared(spectrum, minimum_norm))
        return self.relax(prior, minimum_norm, spectrum)

    def _prepared(self, spectrum: FrameSpectrum, like: Tensor) -> Prepared:
        if not self.estimate.is_calibrated:
            return self.prepare(spectrum, like)
        key = (like.device, like.dtype)
        if key not in self._kept:  # one spectrum for all frames
            self._kept[key] = self.prepare(spectrum, like)
        return self._kept[key]

    def relax(self, prior: Tensor, minimum_norm: Tensor, spectrum: FrameSpectrum) -> Tensor:
        """The last data step; overwrites and returns ``prior`` (B, H, W).

        Where ``data_weight`` is not given, it is E / 1400, at most 1, with E the signal energy of the frame
        in units of the noise variance: a particle that stands clear of the noise keeps its measured values,
        a weak one gives way to the prior's image of it.
        """
        null, weight = self.parameters.null_weight, self.parameters.data_weight
        assert null is not None  # for_mask has filled it in
        if weight is None:
            data = column((spectrum.signal_energy / KEPT_SIGNAL_ENERGY).clamp_max(1)).to(prior)
        else:
            data = prior.new_full((1, 1, 1), weight)
        measured = self.op.P(prior)
        return prior.mul_(null).addcmul_(measured, 1 - null - data).addcmul_(minimum_norm, data)
