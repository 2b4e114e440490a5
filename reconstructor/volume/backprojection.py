"""Backprojection: particles with known poses become a map, CTF-weighted, in two independent halves.

Each image is a central slice of the map's Fourier transform (F), seen through its CTF (c) with noise. The
most likely value of a coefficient is the sum of c F, over all slices that pass by, over the sum of c^2 plus
the ratio of the noise's variance to the signal's. Both sums are kept for each half of the particles, so a map
can be had at any time, and more added then. The ratio, shell by shell, comes from how well the halves agree
(Scheres, J. Struct. Biol. 180, 2012); it matters where some directions of a shell were seen much and others
little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_fourier_slice.volume_utils import separable_sinc2_correction

from common.point_groups import point_group
from common.rings import radial_bins, ring_means
from reconstructor.volume.correlation import fsc, soft_sphere
from reconstructor.volume.insertion import insert

FIRST_RATIO = 1.0  # of noise to signal over a shell's mean weight, before the halves have told
LEAST_FSC, LARGEST_FSC = 0.02, 0.999  # that are believed


@dataclass(frozen=True)
class Maps:
    """What the images so far amount to.

    Attributes
    ----------
    whole : Tensor
        (N, N, N) float32, z y x, of all images.
    halves : Tensor
        (2, N, N, N) float32, of the images of each half.
    fsc : Tensor
        (N // 2 + 1,) float64, Fourier shell correlation of the halves under the mask.
    """

    whole: Tensor
    halves: Tensor
    fsc: Tensor


class Backprojection:
    """Running sums of a map.

    Parameters
    ----------
    side_pixels : int
        N, of images and map; even.
    symmetry : str
        Point group, as RELION calls it; every image is added under each of its rotations.
    padding : int
        Samples of the map's transform for one of the images', along each axis: 2 takes eight times the memory
        of 1 (N = 128: 200 MB), and keeps what lies far from the centre.
    device : torch.device or str
        Where sums are kept and images are to lie.

    Raises
    ------
    ValueError
        If the side is odd or there is no such point group.

    Attributes
    ----------
    counts : list of int
        Images added to each half.
    """

    def __init__(
        self, side_pixels: int, symmetry: str = "C1", padding: int = 2, device: torch.device | str = "cpu"
    ) -> None:
        if side_pixels < 8 or side_pixels % 2:
            raise ValueError(f"images of {side_pixels} pixels a side: must be even, and at least 8")
        self.side, self.padding = side_pixels, padding
        self.device = torch.device(device)
        self._mates = torch.from_numpy(point_group(symmetry)).float().to(self.device)
        padded = padding * side_pixels
        self._sums = torch.zeros(2, padded, padded, padded // 2 + 1, 3, device=self.device)
        self.counts = [0, 0]

    def add(
        self, images: Tensor, transfers: Tensor, matrices: Tensor, origins_pixels: Tensor, halves: Tensor
    ) -> None:
        """Add images.

        Parameters
        ----------
        images : Tensor
            (B, N, N) float32; protein bright.
        transfers : Tensor
            (B, N, N//2+1) float32, the CTF at the frequencies of ``rfft2``; positive at low frequency.
        matrices : Tensor
            (B, 3, 3), RELION's, see ``common.poses``.
        origins_pixels : Tensor
            (B, 2), x y: how far an image has to be moved to bring its particle to pixel N // 2.
        halves : Tensor
            (B,) 0 or 1: to which half an image belongs.

        Raises
        ------
        ValueError
            If images are of another size, or a half is neither.
        """
        if images.shape[1:] != (self.side, self.side):
            raise ValueError(f"images of shape {tuple(images.shape)}: must be (B, {self.side}, {self.side})")
        halves = halves.to(self.device, torch.int64)
        if bool(((halves < 0) | (halves > 1)).any()):
            raise ValueError("halves: each must be 0 or 1")
        transforms = torch.fft.rfft2(images.to(self.device, torch.float32))
        transfers = transfers.to(self.device, torch.float32)
        values = transforms * self._moved(origins_pixels.to(self.device)) * transfers
        weights = transfers.square()
        turned = matrices.to(self.device, torch.float32)
        for mate in self._mates:
            insert(self._sums, values, weights, (turned @ mate).contiguous(), halves, self.padding)
        second = int(halves.sum())
        self.counts[0] += len(images) - second
        self.counts[1] += second

    def _moved(self, origins: Tensor) -> Tensor:
        """Phases (B, N, N//2+1) that bring the particles from where they lie to pixel 0."""
        there = self.side // 2 - origins.to(torch.float64)
        ky = torch.fft.fftfreq(self.side, device=self.device, dtype=torch.float64)
        kx = torch.fft.rfftfreq(self.side, device=self.device, dtype=torch.float64)
        along = [
            torch.polar(torch.ones((), dtype=torch.float64, device=self.device), 2 * math.pi * turns)
            for turns in (there[:, 0, None] * kx, there[:, 1, None] * ky)
        ]
        return (along[1][:, :, None] * along[0][:, None, :]).to(torch.complex64)

    def maps(self, mask: Tensor | None = None) -> Maps:
        """The map and its halves as they are now.

        Parameters
        ----------
        mask : Tensor, optional
            (N, N, N), where the particle is, 0 to 1 with soft edges: the halves are compared within. By
            default a sphere that fills three quarters of the box.
        """
        if mask is None:
            mask = soft_sphere(self.side, 0.375 * self.side, 0.1 * self.side).to(self.device)
        shells = self.side // 2 + 1
        ratio = torch.full((shells,), FIRST_RATIO, dtype=torch.float64, device=self.device)
        first, second = (self._map(self._sums[half], ratio) * mask for half in (0, 1))
        agreed = fsc(first, second).clamp(LEAST_FSC, LARGEST_FSC)
        ratio = (1 - agreed) / agreed  # of a half; all images have twice the signal
        halves = torch.stack([self._map(self._sums[half], ratio) for half in (0, 1)])
        whole = self._map(self._sums.sum(0), ratio / 2)
        return Maps(whole, halves, fsc(halves[0] * mask, halves[1] * mask))

    def _map(self, sums: Tensor, ratio: Tensor) -> Tensor:
        """Sums as a map; ``ratio`` (N // 2 + 1,), noise to signal, in units of each shell's mean weight."""
        values, weights = torch.view_as_complex(sums[..., :2].contiguous()), sums[..., 2].clone()
        # on the plane kx = 0 a coefficient and its conjugate are both kept, each with a part of what was seen
        values[:, :, 0] += _opposite(values[:, :, 0]).conj()
        weights[:, :, 0] += _opposite(weights[:, :, 0])
        padded = self.padding * self.side
        shape = (padded, padded, padded)
        shells = radial_bins(shape, self.device)
        beside = ring_means(weights, shape) * self._padded(ratio, int(shells.max()) + 1)
        found = values / (weights + beside.float()[shells]).clamp_min(torch.finfo(torch.float32).tiny)
        found[shells >= padded // 2] = 0
        volume = torch.fft.fftshift(torch.fft.irfftn(found, s=shape))
        # linear weights in Fourier space multiply real space by sinc^2
        volume = volume / separable_sinc2_correction(shape, self.device)
        first = padded // 2 - self.side // 2
        inner = slice(first, first + self.side)
        return volume[inner, inner, inner].contiguous()

    def _padded(self, values: Tensor, count: int) -> Tensor:
        """Values (N // 2 + 1,) of the images' shells at the ``count`` finer ones of the sums."""
        place = torch.arange(count, device=self.device) / self.padding
        below = place.long().clamp(max=len(values) - 2)
        share = (place - below).clamp(0, 1)
        return values[below] * (1 - share) + values[below + 1] * share


def _opposite(plane: Tensor) -> Tensor:
    """A plane (P, P) of a transform with each coefficient at minus its frequency."""
    return plane.flip(0, 1).roll((1, 1), (0, 1))
