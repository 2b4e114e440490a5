"""How well two maps agree: Fourier shell correlation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reconstructor.quality import ring_correlation


def fsc(first: Tensor, second: Tensor) -> Tensor:
    """Fourier shell correlation of two maps over integer shells, the field's convention.

    Parameters
    ----------
    first, second : Tensor
        (D, H, W).

    Returns
    -------
    Tensor
        (max(D, H, W) // 2 + 1,) float64, in [-1, 1]; shell 0 is 1 by definition; the last is Nyquist.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if first.shape != second.shape or first.ndim != 3:
        raise ValueError(f"maps of shape {tuple(first.shape)} and {tuple(second.shape)}: must be alike")
    depth, height, width = first.shape
    transforms = torch.fft.rfftn(first), torch.fft.rfftn(second)
    return ring_correlation(*transforms, (depth, height, width))


def soft_sphere(side: int, radius: float, edge: float) -> Tensor:
    """A mask (side, side, side) float32: 1 up to ``radius`` pixels from the centre, 0 ``edge`` beyond."""
    axis = torch.arange(side, dtype=torch.float32) - side // 2
    distance = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2).sqrt()
    return (1 + torch.cos(((distance - radius) / edge).clamp(0, 1) * math.pi)) / 2
