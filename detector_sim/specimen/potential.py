"""The electrostatic potential of a particle on a grid, volts above the ice around it.

From atoms it is exact up to the grid's Nyquist frequency: scatterers are spread as narrow Gaussians onto a
finer grid, transformed, the Gaussian divided out and the form factors multiplied in (Gaussian gridding,
Greengard and Lee, SIAM Review 46, 443, 2004). A map has no absolute scale; it is given that of protein.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import affine_transform
from torch import Tensor

from common.compiled import compiled
from common.roots import ANYWHERE, Roots
from detector_sim.sources.mrc import MrcStack
from detector_sim.specimen.scattering import VOLT_SQUARE_ANGSTROM, protein_potential_above_ice
from detector_sim.specimen.structure import Atoms

MAP_SUFFIXES = frozenset({".mrc", ".map", ".ccp4"})

_MARGIN_ANGSTROM = 8.0  # around the outermost centres: atoms have a size
_MARGIN_PIXELS = 6  # and the band limit rings; also more than _REACH fine voxels
_FINENESS = 1.5  # fine grid over grid
_REACH = 7  # of a spread scatterer, fine voxels; error about 2e-5
_SPREAD = _REACH * _FINENESS / (math.pi * (_FINENESS - 0.5))  # exp(-x^2 / _SPREAD), x in fine voxels
_ROLL_OFF = 0.9  # the low-pass falls from here to Nyquist
_ENVELOPE_ANGSTROM = 10.0  # resolution at which a particle shows its envelope


@dataclass(frozen=True)
class Potential:
    """A particle's potential, band-limited to its grid.

    Attributes
    ----------
    volume : Tensor
        (P, P, P) float32, z y x, volts above ice; the particle's centre is voxel P // 2.
    pixel_size_angstrom : float
        Side of a voxel.
    diameter_angstrom : float
        Of the sphere about the centre that holds the particle.
    """

    volume: Tensor
    pixel_size_angstrom: float
    diameter_angstrom: float


def box_side(diameter_angstrom: float, pixel_size_angstrom: float) -> int:
    """Side in pixels of a box that holds a particle: a multiple of 4 whose only primes are 2, 3 and 5."""
    margin = max(_MARGIN_ANGSTROM, _MARGIN_PIXELS * pixel_size_angstrom)
    return even_fast_side((diameter_angstrom + 2 * margin) / pixel_size_angstrom)


def even_fast_side(least: float) -> int:
    """The smallest side >= ``least`` that is a multiple of 4 with no primes but 2, 3 and 5."""
    quarter = max(1, math.ceil(least / 4))
    while True:
        rest = quarter
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return 4 * quarter
        quarter += 1


def low_pass(squared_frequency: Tensor, cutoff: float) -> Tensor:
    """1 up to 0.9 of the cutoff, a raised cosine down to 0 at the cutoff, 0 beyond; same units squared."""
    fraction = (squared_frequency.sqrt() / cutoff - _ROLL_OFF) / (1 - _ROLL_OFF)
    return 0.5 + 0.5 * torch.cos(math.pi * fraction.clamp(0, 1))


def potential_of_atoms(atoms: Atoms, pixel_size_angstrom: float) -> Potential:
    """The potential of atoms, in a box that just holds them, low-passed to Nyquist."""
    diameter = atoms.diameter + _MARGIN_ANGSTROM
    side = box_side(atoms.diameter, pixel_size_angstrom)
    squared = _squared_frequencies(side, pixel_size_angstrom)
    transform = torch.zeros(squared.shape, dtype=torch.complex64)
    for kind, scatterer in enumerate(atoms.scatterers):
        chosen = atoms.kinds == kind
        transform += scatterer.form_factor(squared) * _structure_factor(
            atoms.positions[chosen] / pixel_size_angstrom, atoms.weights[chosen], side
        )
    transform *= low_pass(squared, 0.5 / pixel_size_angstrom)
    transform *= VOLT_SQUARE_ANGSTROM / pixel_size_angstrom**3
    volume = torch.fft.fftshift(torch.fft.irfftn(transform, s=(side, side, side)))
    return Potential(volume, pixel_size_angstrom, diameter)


def _squared_frequencies(side: int, pixel_size_angstrom: float) -> Tensor:
    """k^2 of every coefficient of ``rfftn`` of a cube, (P, P, P//2+1), cycles^2 per square angstrom."""
    full = torch.fft.fftfreq(side, pixel_size_angstrom)
    half = torch.fft.rfftfreq(side, pixel_size_angstrom)
    return full[:, None, None] ** 2 + full[None, :, None] ** 2 + half[None, None, :] ** 2


def _structure_factor(positions: np.ndarray, weights: np.ndarray, side: int) -> Tensor:
    """sum_j w_j exp(-2 pi i k r_j) at the frequencies of ``rfftn``, (P, P, P//2+1) complex64.

    ``positions`` (n, 3), x y z, in voxels from the centre.
    """
    fine_side = int(side * _FINENESS)
    grid = np.zeros((fine_side, fine_side, fine_side), np.float32)
    _spread_gaussians(grid, positions[:, ::-1] * _FINENESS + fine_side // 2, weights, _REACH, _SPREAD)
    fine = torch.fft.rfftn(torch.fft.ifftshift(torch.from_numpy(grid)))
    half = side // 2
    rows = torch.cat([torch.arange(half), torch.arange(fine_side - half, fine_side)])
    kept = fine[rows][:, rows][:, :, : half + 1]
    # cycles per fine voxel of what is kept
    full = torch.fft.fftfreq(side) / _FINENESS
    attenuation = torch.exp(-(math.pi**2) * _SPREAD * full**2)
    return kept / (
        attenuation[:, None, None] * attenuation[None, :, None] * attenuation[None, None, : half + 1]
    )


@compiled
def _spread_gaussians(
    grid: np.ndarray, positions: np.ndarray, weights: np.ndarray, reach: int, spread: float
) -> None:
    """Add a Gaussian exp(-r^2 / spread) of volume ``weights[j]`` at each position (z y x, voxels)."""
    width = 2 * reach
    profile = np.empty((3, width), np.float32)
    first = np.empty(3, np.int64)
    scale = 1.0 / math.sqrt(math.pi * spread)
    for atom in range(len(positions)):
        for axis in range(3):
            first[axis] = math.floor(positions[atom, axis]) - reach + 1
            for step in range(width):
                distance = first[axis] + step - positions[atom, axis]
                profile[axis, step] = scale * math.exp(-distance * distance / spread)
        for z in range(width):
            for y in range(width):
                factor = np.float32(weights[atom]) * profile[0, z] * profile[1, y]
                row = grid[first[0] + z, first[1] + y]
                for x in range(width):
                    row[first[2] + x] += factor * profile[2, x]


def potential_of_map(path: Path, pixel_size_angstrom: float, inputs: Roots = ANYWHERE) -> Potential:
    """An MRC map as a potential: resampled to the pixel size, background to 0, protein's scale.

    The middle of the map (voxel n // 2 along each axis) becomes the particle's centre. The scale is such
    that the map's mean inside the particle is protein's mean potential above ice, 3.6 V; inside is where
    the map at 10 angstrom resolution exceeds half of its 99.9th percentile.

    Raises
    ------
    ValueError
        If the file holds no map with a pixel size, in one line.
    """
    density, voxel_size = _read_map(path, inputs)
    density = density - np.median(_faces(density))
    length = max(density.shape) * voxel_size
    side = even_fast_side(length / pixel_size_angstrom)
    if pixel_size_angstrom > voxel_size:
        density = _blur_to(density, voxel_size, 2 * pixel_size_angstrom)
    step = pixel_size_angstrom / voxel_size
    middle = np.array([n // 2 for n in density.shape])
    origin = middle - step * (side // 2)
    resampled = affine_transform(density, np.full(3, step), origin, (side, side, side), order=3)
    flat = _blur_to(resampled, pixel_size_angstrom, max(_ENVELOPE_ANGSTROM, 2 * pixel_size_angstrom))
    top = float(np.quantile(flat, 0.999))
    inside = float(resampled[flat > top / 2].mean()) if top > 0 else 0.0
    if inside <= 0:
        raise ValueError(f"{path}: nothing in the map rises above its background; density must be positive")
    diameter = min(_diameter(flat, top / 10) * pixel_size_angstrom, length)
    volume = torch.from_numpy(resampled * np.float32(protein_potential_above_ice() / inside))
    transform = torch.fft.rfftn(volume)
    transform *= low_pass(_squared_frequencies(side, pixel_size_angstrom), 0.5 / pixel_size_angstrom)
    volume = torch.fft.irfftn(transform, s=(side, side, side))
    spare = max(0, side - box_side(diameter, pixel_size_angstrom)) // 2
    kept = slice(spare, side - spare)
    return Potential(volume[kept, kept, kept].contiguous(), pixel_size_angstrom, diameter)


def _read_map(path: Path, inputs: Roots) -> tuple[np.ndarray, float]:
    """Density (z, y, x) float32 and the side of a voxel in angstrom."""
    stack = MrcStack(path, inputs)
    try:
        density = stack.frames(0, stack.count).astype(np.float32, copy=False)
    finally:
        stack.close()
    if min(density.shape) < 8:
        raise ValueError(f"{path}: not a map: a volume of at least 8 x 8 x 8 voxels is needed")
    if not np.isfinite(density).all():
        raise ValueError(f"{path}: the map holds NaN or infinite voxels")
    sides = list(stack.voxel_size_angstrom)
    if not (min(sides) > 0 and max(sides) <= 1.01 * min(sides)):
        raise ValueError(f"{path}: voxels of {sides} angstrom; a map with cubic voxels is needed")
    return density, sides[0]


def _faces(density: np.ndarray) -> np.ndarray:
    """Voxels of the six faces."""
    ends = [density[[0, -1]], density[:, [0, -1]], density[:, :, [0, -1]]]
    return np.concatenate([end.ravel() for end in ends])


def _blur_to(density: np.ndarray, voxel_size: float, resolution: float) -> np.ndarray:
    """Low-pass at a resolution in angstrom."""
    sides = density.shape
    frequencies = [torch.fft.fftfreq(n, voxel_size) for n in sides[:2]] + [
        torch.fft.rfftfreq(sides[2], voxel_size)
    ]
    kz, ky, kx = frequencies
    squared = kz[:, None, None] ** 2 + ky[None, :, None] ** 2 + kx[None, None, :] ** 2
    transform = torch.fft.rfftn(torch.from_numpy(density)) * low_pass(squared, 1 / resolution)
    return torch.fft.irfftn(transform, s=sides).numpy()


def _diameter(density: np.ndarray, threshold: float) -> float:
    """Voxels across the sphere about the middle that holds everything above the threshold."""
    where = np.argwhere(density > threshold) - np.array([n // 2 for n in density.shape])
    return 2 * float(np.sqrt((where**2).sum(axis=1).max()))
