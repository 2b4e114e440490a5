"""What a session's reference frames tell about the frames to come: level, spread, radial power spectrum.

Computed once, by the detector, from the first frames of the series, which are sent whole; it travels in the
start message, so every worker recovers with the same numbers and a redelivered frame comes out the same.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from common.rings import ring_means


class Calibration(BaseModel):
    """Statistics of the reference frames, in the frames' own units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: int
    mean: float
    standard_deviation: float
    percentile_1: float
    percentile_99: float
    radial_power: list[float]  # mean |F|^2 per ring of (frame - its mean), norm="ortho"; ring 0 is zero

    @classmethod
    def from_frames(cls, frames: Tensor) -> Calibration:
        """Statistics of whole frames (B, H, W)."""
        shape = (int(frames.shape[1]), int(frames.shape[2]))
        means, variances = [], []
        power = torch.zeros(shape[0], shape[1] // 2 + 1, dtype=torch.float64)
        for frame in frames:  # one at a time: transforms of micrographs in double precision are large
            x = frame.to(torch.float64)
            means.append(x.mean())
            variances.append(x.var(correction=0))
            power += torch.view_as_real(torch.fft.rfft2(x - means[-1], norm="ortho")).square().sum(-1)
        mean, count = torch.stack(means), frames.numel()
        variance = (torch.stack(variances).mean() + mean.var(correction=0)) * count / max(1, count - 1)
        step = max(1, count // 1_000_000)
        some = frames.flatten()[::step].to(torch.float64)
        low, high = torch.quantile(some, torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
        return cls(
            frames=len(frames), mean=float(mean.mean()), standard_deviation=float(variance.sqrt()),
            percentile_1=low, percentile_99=high,
            radial_power=ring_means(power / len(frames), shape).tolist(),
        )  # fmt: skip
