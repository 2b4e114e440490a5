"""Sparsity in an orthonormal basis, DCT or wavelets: 1/2 |P x - x0|^2 + sum_k lambda_k |(Psi x)_k|.

Source: cryoSENSE, section 2.2 and supplement E, on the whitened misfit. Solved by ADMM whose data step is
exact, x = v + (x0 - P v) / (1 + rho), so that a few iterations do (docs/performance.md).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import pad

from common.calibration import Calibration
from common.operators import LinearOperator
from reconstructor.recovery.base import MaskKind
from reconstructor.recovery.prior import Prior, PriorParameters
from reconstructor.recovery.spectrum import FrameSpectrum
from reconstructor.recovery.transforms import (
    CosineTransform,
    Transform,
    WaveletTransform,
    orthogonal_wavelet,
)

# Over-relaxation of ADMM (Boyd et al., 2011, section 3.4.3): saves about two iterations in five.
RELAXATION = 1.6


class SparseParameters(PriorParameters):
    """Parameters of the methods with a sparse prior."""

    strength: float | None = Field(
        None, ge=0, le=100,
        description="lambda in noise standard deviations, times noise over signal standard deviation of the "
        "coefficient where weighting is by the spectrum",
    )  # fmt: skip
    weighting: Literal["spectrum", "flat"] = Field(
        "spectrum", description="flat: one lambda for all coefficients, as in the papers"
    )
    penalty: float | None = Field(None, gt=0, le=100, description="rho of ADMM")
    iterations: int | None = Field(None, ge=1, le=10_000)


class CosineParameters(SparseParameters):
    """Parameters of ``dct``."""


class WaveletParameters(SparseParameters):
    """Parameters of ``wavelet``."""

    wavelet: str = Field("sym8", description="a discrete orthogonal wavelet of PyWavelets")
    levels: int = Field(5, ge=1, le=16)

    @field_validator("wavelet")
    @classmethod
    def _known(cls, value: str) -> str:
        orthogonal_wavelet(value)
        return value


class SparseRecovery(Prior[SparseParameters, tuple[Tensor, Tensor]]):
    """ADMM for a sparse prior in any orthonormal transform."""

    def __init__(
        self,
        op: LinearOperator,
        parameters: SparseParameters,
        calibration: Calibration | None,
        transform: Transform,
    ) -> None:
        super().__init__(op, parameters, calibration)
        self.transform = transform

    def prepare(self, spectrum: FrameSpectrum, like: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the dual's coefficients, lower and upper."""
        return self.bounds(self.thresholds(spectrum, like.dtype))

    def bounds(self, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the dual's coefficients for these lambda."""
        penalty = self.parameters.penalty
        assert penalty is not None
        return -thresholds / penalty, thresholds / penalty

    def thresholds(self, spectrum: FrameSpectrum, dtype: torch.dtype = torch.float64) -> Tensor:
        """lambda of each coefficient, (B or 1, Hp, Wp): zero for the mean level.

        With ``weighting="spectrum"`` it is strength * sigma^2 / sigma_k: for strength sqrt(2) the maximum
        a posteriori estimate under a Laplace law of standard deviation sigma_k, and the scale of BayesShrink
        (Chang, Yu and Vetterli, 2000).
        """
        strength = self.parameters.strength
        assert strength is not None  # for_mask has filled it in
        by_band = strength * spectrum.noise_variance.sqrt()[:, None]
        power = self.transform.band_power(spectrum.relative_power())
        by_band = by_band.expand_as(power) if self.parameters.weighting == "flat" else by_band * power.rsqrt()
        thresholds = self.transform.lay_out(by_band.to(dtype))
        rows, columns = self.transform.kept()
        thresholds[:, rows, columns] = 0
        return thresholds

    def solve(self, minimum_norm: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        """The prior's images, (B, H, W)."""
        height, width = self.op.shape
        return self.minimiser(minimum_norm, prepared)[:, :height, :width].contiguous()

    def minimiser(self, minimum_norm: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
        """Where ``iterations`` of ADMM from x0 arrive, with the transform's padding: (B, Hp, Wp).

        ``w`` is the sum of the data step's image and the scaled dual; soft thresholding in the basis leaves
        w - u, where u, the new dual, is what clamping cuts off.
        """
        penalty, iterations = self.parameters.penalty, self.parameters.iterations
        assert penalty is not None
        assert iterations is not None
        lower, upper = bounds
        height, width = self.op.shape
        below, right = (p - s for p, s in zip(self.transform.padded_shape, self.op.shape, strict=True))
        w = pad(minimum_norm, (0, right, 0, below)) if below or right else minimum_norm.clone()
        v = torch.empty_like(minimum_norm)
        for iteration in range(iterations):
            coefficients = self.transform.forward(w)
            u = self.transform.inverse(torch.clamp(coefficients, lower, upper, out=coefficients))
            if iteration == iterations - 1:
                w -= u
                break
            # padding is a part of the image that nobody measured: the data step leaves it alone
            inside, dual = w[:, :height, :width], u[:, :height, :width]
            torch.sub(inside, dual, alpha=2, out=v).sub_(minimum_norm)
            w.sub_(u, alpha=RELAXATION)
            inside.sub_(self.op.P(v), alpha=RELAXATION / (1 + penalty))
        return w


class CosineRecovery(SparseRecovery):
    """Sparse in the orthonormal DCT-II; DC is never thresholded."""

    parameters_model = CosineParameters
    defaults: ClassVar[dict[MaskKind, dict[str, Any]]] = {
        "coded-aperture": {"strength": 1.4, "penalty": 1.0, "iterations": 4, "null_weight": 1.0},
        "phase-plate": {"strength": 1.0, "penalty": 0.4, "iterations": 6, "null_weight": 0.0},
        "none": {"strength": 1.4, "penalty": 1.0, "iterations": 4, "null_weight": 1.0},
    }

    def __init__(
        self, op: LinearOperator, parameters: CosineParameters, calibration: Calibration | None
    ) -> None:
        super().__init__(op, parameters, calibration, CosineTransform(op.shape))


class WaveletRecovery(SparseRecovery):
    """Sparse in an orthonormal wavelet basis; the approximation band is never thresholded."""

    parameters_model = WaveletParameters
    defaults: ClassVar[dict[MaskKind, dict[str, Any]]] = {
        "coded-aperture": {"strength": 1.4, "penalty": 1.0, "iterations": 4, "null_weight": 1.0},
        "phase-plate": {"strength": 1.0, "penalty": 0.4, "iterations": 6, "null_weight": 0.05},
        "none": {"strength": 1.4, "penalty": 1.0, "iterations": 4, "null_weight": 1.0},
    }

    def __init__(
        self, op: LinearOperator, parameters: WaveletParameters, calibration: Calibration | None
    ) -> None:
        transform = WaveletTransform(op.shape, parameters.wavelet, parameters.levels)
        super().__init__(op, parameters, calibration, transform)
