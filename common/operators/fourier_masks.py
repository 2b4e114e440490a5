"""Binary masks on the Fourier plane: which frequencies a phase plate measures.

Masks are boolean (H, W) in the order of ``fft2`` (DC first). Frequencies are in cycles per pixel times the
longer side, so that on a square frame they are the integer coordinates of the centred plane, and on an
oblong one rings stay round in frequency.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.operators.draw import random_order, weighted_choice

Pattern = Literal["uniform", "annular", "radial"]
Symmetry = Literal["hermitian", "paper"]

Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]

PARTS = 100  # rings or sectors that the plane is cut into (cryoSENSE, supplement H)


def draw_mask(
    shape: tuple[int, int],
    pattern: Pattern,
    compression_factor: float,
    seed: int,
    symmetry: Symmetry,
    ring_width: float,
) -> Mask:
    """The mask of a phase plate, (H, W) bool, always with DC.

    uniform: n/C frequencies. annular: k = 100/C of 100 rings of equal area, with chances
    exp(-r^2 / 2 (ring_width N)^2), r a ring's mid-radius and N the longer side in pixels (the form of
    cryoSENSE's public code; the printed one differs). radial: k of 100 double sectors of equal area.

    ``symmetry="paper"`` draws uniform masks without regard to k -> -k, and radial ones as 100 sectors of
    equal angle over the full turn, so that mirrored frequencies are mostly not in the mask. Rings are
    symmetric in any case. The authors leave DC to chance; without it an image has no level, so it is added.
    """
    count = round(PARTS / compression_factor)
    if symmetry == "paper" and pattern == "uniform":
        mask = _uniform_unpaired(shape, compression_factor, seed)
    elif symmetry == "paper" and pattern == "radial":
        mask = np.isin(_sectors_of_full_turn(shape), random_order(PARTS, seed, "radial paper")[:count])
    elif pattern == "uniform":
        mask = _uniform(shape, compression_factor, seed)
    elif pattern == "annular":
        mask = _annular(shape, count, seed, ring_width)
    else:
        mask = _radial(shape, count, seed)
    mask[0, 0] = True
    return mask


def mirrored(mask: Mask) -> Mask:
    """The mask at -k, (H, W)."""
    return np.roll(mask[::-1, ::-1], (1, 1), (0, 1))


class Pairs:
    """The frequencies of a real image, each pair (k, -k) once.

    Attributes
    ----------
    ky, kx : (count,) int64
        Coordinates in frequency steps of each axis; kx >= 0.
    size : (count,) int64
        Real numbers a frequency stands for: 2, or 1 where it is its own mirror.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        height, width = shape
        self.shape = shape
        row, column = np.indices((height, width // 2 + 1), dtype=np.int64)
        is_edge = (column == 0) | (2 * column == width)
        # in the columns that hold both k and -k, the upper half
        row, column = (c[~is_edge | (row <= height // 2)] for c in (row, column))
        self.ky = np.where(2 * row <= height, row, row - height)
        self.kx = column
        is_own_mirror = ((row == 0) | (2 * row == height)) & ((column == 0) | (2 * column == width))
        self.size = np.where(is_own_mirror, 1, 2)

    @property
    def is_dc(self) -> Mask:
        return (self.ky == 0) & (self.kx == 0)

    def squared_radius(self) -> Integers:
        """Proportional to |k|^2, in exact integers."""
        height, width = self.shape
        return (self.ky * width) ** 2 + (self.kx * height) ** 2

    def angle(self) -> NDArray[np.float64]:
        """Direction of k from the kx axis, radians in [-pi/2, pi/2]."""
        height, width = self.shape
        return np.arctan2(self.ky * width, self.kx * height)

    def equal_parts(self, order: NDArray[np.intp]) -> Integers:
        """Each frequency's part, 0 ... 99, when the plane in this order is cut into equal areas."""
        before = np.cumsum(self.size[order]) - self.size[order]
        parts = np.empty(len(order), dtype=np.int64)
        parts[order] = before * PARTS // int(self.size[order].sum())
        return parts

    def full(self, chosen: Mask) -> Mask:
        """The symmetric mask (H, W) of the chosen frequencies."""
        mask = np.zeros(self.shape, dtype=np.bool_)
        mask[self.ky[chosen], self.kx[chosen]] = True
        return mask | mirrored(mask)


def _uniform(shape: tuple[int, int], compression_factor: float, seed: int) -> Mask:
    """A random symmetric mask of n/C frequencies; one fewer where parity forbids."""
    pairs = Pairs(shape)
    wanted = round(shape[0] * shape[1] / compression_factor) - 1
    order = random_order(len(pairs.size), seed, "uniform")
    order = order[~pairs.is_dc[order]]
    size = pairs.size[order]
    taken = np.cumsum(size) <= wanted
    if wanted - size[taken].sum() == 1:
        # a pair does not fit any more: the next frequency that is its own mirror does, if one is left
        single = np.flatnonzero((size == 1) & ~taken)[:1]
        taken[single] = True
    chosen = pairs.is_dc.copy()
    chosen[order[taken]] = True
    return pairs.full(chosen)


def _annular(shape: tuple[int, int], count: int, seed: int, ring_width: float) -> Mask:
    pairs = Pairs(shape)
    squared = pairs.squared_radius()
    order = np.lexsort((pairs.ky, squared))  # at kx >= 0 and one radius, ky tells the angle
    ring = pairs.equal_parts(order)
    radius = np.sqrt(squared[order] / float(min(shape)) ** 2)
    first, last = (np.searchsorted(ring[order], np.arange(PARTS), side) for side in ("left", "right"))
    middle = (radius[np.minimum(first, len(radius) - 1)] + radius[np.maximum(last - 1, 0)]) / 2
    weights = np.exp(-((middle / (ring_width * max(shape))) ** 2) / 2)
    return pairs.full(np.isin(ring, weighted_choice(weights, count, seed, "annular")))


def _radial(shape: tuple[int, int], count: int, seed: int) -> Mask:
    pairs = Pairs(shape)
    sector = pairs.equal_parts(np.lexsort((pairs.squared_radius(), pairs.angle())))
    return pairs.full(np.isin(sector, random_order(PARTS, seed, "radial")[:count]))


def _uniform_unpaired(shape: tuple[int, int], compression_factor: float, seed: int) -> Mask:
    n = shape[0] * shape[1]
    mask = np.zeros(n, dtype=np.bool_)
    mask[random_order(n, seed, "uniform paper")[: round(n / compression_factor)]] = True
    return mask.reshape(shape)


def _sectors_of_full_turn(shape: tuple[int, int]) -> Integers:
    height, width = shape
    ky = np.fft.fftfreq(height)[:, None]
    kx = np.fft.fftfreq(width)[None, :]
    turn = np.arctan2(ky, kx) / (2 * np.pi) + 0.5
    # the small shift keeps directions on a boundary in one sector, however arctan2 rounds
    return np.floor(turn * PARTS + 1e-9).astype(np.int64) % PARTS
