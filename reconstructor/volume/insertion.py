"""Adding central slices to a volume's Fourier transform, sample by sample, by trilinear weights.

Two ways of doing the same: compiled for the processor, without the interpreter's lock; with PyTorch's own
operations on any device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.compiled import compiled


def insert(
    sums: Tensor, values: Tensor, weights: Tensor, matrices: Tensor, halves: Tensor, padding: int
) -> None:
    """Add slices (B, N, N//2+1) to ``sums``, in place.

    Parameters
    ----------
    sums : Tensor
        (2, P, P, P//2+1, 3) float32, P = padding N: for each half, real and imaginary part of the sum of
        values and the sum of weights, in the order of ``rfftn``.
    values : Tensor
        (B, N, N//2+1) complex64, in the order of ``rfft2``, about the images' centres.
    weights : Tensor
        (B, N, N//2+1) float32, what a value counts; ``values`` hold it already.
    matrices : Tensor
        (B, 3, 3) float32, RELION's, specimen to image.
    halves : Tensor
        (B,) int64, 0 or 1.
    padding : int
        Samples of the volume's transform for one of the image's, along each axis.
    """
    if sums.device.type == "cpu":
        _insert_compiled(
            sums.numpy(), torch.view_as_real(values).numpy(), weights.numpy(), matrices.numpy(),
            halves.numpy(), padding,
        )  # fmt: skip
    else:
        insert_anywhere(sums, values, weights, matrices, halves, padding)


@compiled
def _insert_compiled(
    sums: np.ndarray, values: np.ndarray, weights: np.ndarray, matrices: np.ndarray, halves: np.ndarray,
    padding: int,
) -> None:  # fmt: skip
    count, side, columns = weights.shape
    padded = sums.shape[1]
    for image in range(count):
        volume = sums[halves[image]]
        matrix = matrices[image]
        for row in range(side):
            ky = row if row < side // 2 else row - side
            for kx in range(columns):
                if 4 * (kx * kx + ky * ky) >= side * side:
                    break
                if kx == 0 and ky < 0:  # the same as its conjugate
                    continue
                x = padding * (matrix[0, 0] * kx + matrix[1, 0] * ky)
                y = padding * (matrix[0, 1] * kx + matrix[1, 1] * ky)
                z = padding * (matrix[0, 2] * kx + matrix[1, 2] * ky)
                real, imaginary = values[image, row, kx, 0], values[image, row, kx, 1]
                weight = weights[image, row, kx]
                if x < 0:
                    x, y, z, imaginary = -x, -y, -z, -imaginary
                x0, y0, z0 = int(x), int(np.floor(y)), int(np.floor(z))
                fx, fy, fz = x - x0, y - y0, z - z0
                for dz in range(2):
                    wz = fz if dz else 1 - fz
                    iz = (z0 + dz) % padded
                    for dy in range(2):
                        wzy = wz * (fy if dy else 1 - fy)
                        iy = (y0 + dy) % padded
                        near = volume[iz, iy, x0]
                        share = wzy * (1 - fx)
                        near[0] += share * real
                        near[1] += share * imaginary
                        near[2] += share * weight
                        far = volume[iz, iy, x0 + 1]
                        share = wzy * fx
                        far[0] += share * real
                        far[1] += share * imaginary
                        far[2] += share * weight


def insert_anywhere(
    sums: Tensor, values: Tensor, weights: Tensor, matrices: Tensor, halves: Tensor, padding: int
) -> None:
    """``insert`` by PyTorch's operations."""
    side, device = values.shape[1], values.device
    padded = sums.shape[1]
    ky = torch.fft.fftfreq(side, 1 / side, device=device)[:, None].expand(values.shape[1:])
    kx = torch.arange(values.shape[2], device=device)[None, :].expand(values.shape[1:])
    taken = (4 * (kx**2 + ky**2) < side**2) & ~((kx == 0) & (ky < 0))
    frequencies = padding * torch.stack([kx[taken], ky[taken]], dim=1)  # (S, 2)
    places = frequencies.to(torch.float32) @ matrices[:, :2]  # (B, S, 3), x y z
    parts = torch.view_as_real(values[:, taken])
    flipped = places[..., :1] < 0
    places = torch.where(flipped, -places, places)
    real, imaginary = parts[..., :1], torch.where(flipped, -parts[..., 1:], parts[..., 1:])
    given = torch.cat([real, imaginary, weights[:, taken][..., None]], dim=2)  # (B, S, 3)
    corner = places.floor()
    share = places - corner
    corner = corner.long()
    flat = sums.view(-1, 3)
    for dz in range(2):
        for dy in range(2):
            for dx in range(2):
                weight = torch.ones((), device=device)
                for axis, step in ((0, dx), (1, dy), (2, dz)):
                    weight = weight * (share[..., axis] if step else 1 - share[..., axis])
                x, y, z = corner[..., 0] + dx, (corner[..., 1] + dy) % padded, (corner[..., 2] + dz) % padded
                index = ((halves[:, None] * padded + z) * padded + y) * (padded // 2 + 1) + x
                flat.index_add_(0, index.flatten(), (given * weight[..., None]).flatten(0, 1))
