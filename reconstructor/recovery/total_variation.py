"""Anisotropic total variation: 1/2 |P x - x0|^2 + lambda sum |differences of neighbouring pixels|.

Source: cryoSENSE, supplement E, on the whitened misfit. Solved by the primal-dual method of Chambolle and
Pock (2011, algorithm 1) with the exact data step, so without an inner loop.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from reconstructor.recovery.base import MaskKind, column
from reconstructor.recovery.prior import Prior, PriorParameters
from reconstructor.recovery.spectrum import FrameSpectrum

# |gradient|^2 of a picture is at most 8; the steps' product must not be above its inverse
STEP_PRODUCT = 1 / 8


class TotalVariationParameters(PriorParameters):
    """Parameters of ``tv``."""

    strength: float | None = Field(None, ge=0, le=100, description="lambda in noise standard deviations")
    step: float | None = Field(None, gt=0, le=100, description="primal step")
    iterations: int | None = Field(None, ge=1, le=10_000)


class TotalVariation(Prior[TotalVariationParameters, Tensor]):
    """Primal-dual hybrid gradient for anisotropic TV."""

    parameters_model = TotalVariationParameters
    chunk_pixels = 65_536
    defaults: ClassVar[dict[MaskKind, dict[str, Any]]] = {
        "coded-aperture": {"strength": 0.8, "step": 0.1, "iterations": 80, "null_weight": 1.0},
        "phase-plate": {"strength": 0.8, "step": 0.1, "iterations": 80, "null_weight": 0.3},
        "none": {"strength": 0.8, "step": 0.1, "iterations": 80, "null_weight": 1.0},
    }

    def prepare(self, spectrum: FrameSpectrum, like: Tensor) -> Tensor:
        """lambda, (B,) or (1,)."""
        strength = self.parameters.strength
        assert strength is not None  # for_mask has filled it in
        return (strength * spectrum.noise_variance.sqrt()).to(like.dtype)

    def solve(self, minimum_norm: Tensor, prepared: Tensor) -> Tensor:
        """The prior's images after ``iterations`` from x0, (B, H, W)."""
        step, iterations = self.parameters.step, self.parameters.iterations
        assert step is not None
        assert iterations is not None
        dual_step = STEP_PRODUCT / step
        # in units of lambda, so that one bound holds for the dual of every image
        unit = column(prepared.clamp_min(torch.finfo(minimum_norm.dtype).tiny))
        x0 = minimum_norm / unit
        x, ahead, previous = x0.clone(), x0.clone(), torch.empty_like(x0)
        dual_rows, dual_columns = torch.zeros_like(x0[:, 1:]), torch.zeros_like(x0[:, :, 1:])
        for _ in range(iterations):
            dual_rows.add_(ahead[:, 1:], alpha=dual_step).sub_(ahead[:, :-1], alpha=dual_step).clamp_(-1, 1)
            dual_columns.add_(ahead[:, :, 1:], alpha=dual_step)
            dual_columns.sub_(ahead[:, :, :-1], alpha=dual_step).clamp_(-1, 1)
            previous.copy_(x)
            x[:, :-1].add_(dual_rows, alpha=step)
            x[:, 1:].sub_(dual_rows, alpha=step)
            x[:, :, :-1].add_(dual_columns, alpha=step)
            x[:, :, 1:].sub_(dual_columns, alpha=step)
            x.sub_(self.op.P(torch.sub(x, x0, out=ahead)), alpha=step / (1 + step))
            torch.sub(x, previous, out=ahead).add_(x)
        return x.mul_(unit)
