"""Rings of an image's spatial frequencies, and shells of a volume's: integer, the field's convention."""

from __future__ import annotations

import torch
from torch import Tensor


def radial_bins(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Integer ring of every coefficient of ``rfftn``, int64: (H, W//2+1) for an image, (D, H, W//2+1).

    Rings are one frequency step of the *longest* side wide, so that oblong frames keep round rings.
    """
    axes = [torch.fft.fftfreq(side, device=device, dtype=torch.float64) for side in shape[:-1]]
    axes.append(torch.fft.rfftfreq(shape[-1], device=device, dtype=torch.float64))
    squares = torch.zeros((), device=device, dtype=torch.float64)
    for axis in axes:
        squares = squares[..., None] + axis**2
    return squares.sqrt().mul(max(shape)).round().long()


def ring_sums(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sums over the rings of the whole plane (or volume), (..., rings) float64.

    Parameters
    ----------
    values : Tensor
        (..., H, W//2+1), real, of each coefficient of ``rfftn``.
    shape : tuple of int
        (H, W) of the images, or (D, H, W) of the volumes.
    """
    # each column but kx=0 and Nyquist stands for two of the whole plane
    weight = torch.full((shape[-1] // 2 + 1,), 2.0, dtype=torch.float64, device=values.device)
    weight[0] = 1.0
    if shape[-1] % 2 == 0:
        weight[-1] = 1.0
    rings = radial_bins(shape, values.device).flatten()
    batch = values.shape[: values.ndim - len(shape)]
    sums = torch.zeros(*batch, int(rings.max()) + 1, dtype=torch.float64, device=values.device)
    return sums.index_add_(-1, rings, (values * weight).reshape(*batch, -1))


def ring_means(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Means over the rings, see ``ring_sums``; 0 where one is empty."""
    counts = ring_sums(torch.ones(values.shape[values.ndim - len(shape) :], device=values.device), shape)
    return ring_sums(values, shape) / counts.clamp_min(1)
