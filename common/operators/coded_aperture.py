"""CodedAperture: b binary masks in the beam, each image pooled over KxK blocks.

The operator is block-diagonal: every block of pixels has its own small matrix of zeros and ones, so
everything is exact and cheap, as batched products of small matrices. The masks repeat from tile to tile,
and so do the matrices: one tile's factorisation serves a whole micrograph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.operators.base import LinearOperator, check_share, checked_shape
from common.operators.draw import random_bits, random_order

# Singular values below this share of the largest are rounding of zeros: rows that are empty or depend on
# others. The smallest true ones met are 1e-5 of the largest (b = K^2), the zeros come out near 1e-15.
RANK_TOLERANCE = 1e-9

# Vectors multiplied at a time by each matrix. On a CPU the copies should stay in the cache while each matrix
# gets enough vectors to be worth loading; on a GPU the bound only limits memory.
CHUNK_VECTORS_CPU = 32
CHUNK_VECTORS_CUDA = 2048

Action = Literal["A", "A_adjoint", "A_dagger", "P", "whiten"]


class CodedAperture(LinearOperator):
    """b binary masks over KxK blocks (pixel space): y_i = sum over each block of mask_i * x.

    Masks are a physical plate: drawn once for a tile, each hole open with probability one half, and
    repeated over the frame. Blocks on the lower and right edges of frames whose sides K does not divide
    see only their real pixels.

    Source: cryoSENSE, supplement H.

    Parameters
    ----------
    shape : tuple[int, int]
        (height, width) of the images in pixels.
    kernel_size : int
        K, side of the pooled blocks in pixels.
    mask_count : int
        b, masks, so measurements per block; at most K^2.
    seed : int
        Of the plate. A plate of more masks continues one of fewer.
    tile : int or None
        Side of the repeated plate in pixels, a multiple of K; none: the largest multiple up to 128.

    Attributes
    ----------
    masks : numpy.ndarray
        The plate, (b, tile, tile) bool.

    Raises
    ------
    ValueError
        If the masks do not fit the frame or each other.
    """

    def __init__(
        self,
        shape: Sequence[int],
        kernel_size: int = 4,
        mask_count: int = 8,
        seed: int = 0,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        self.shape = checked_shape(shape)
        self.kernel_size = kernel_size
        self.mask_count = mask_count
        self.seed = seed
        self.tile = default_tile(kernel_size) if tile is None else tile
        self._check_parameters()
        height, width = self.shape
        self.measurement_shape = (mask_count, ceil(height / kernel_size), ceil(width / kernel_size))
        self.is_integer = True
        self._take(random_bits((mask_count, self.tile, self.tile), seed, "coded-aperture"))

    def _check_parameters(self) -> None:
        K, b = self.kernel_size, self.mask_count
        if K < 1 or b < 1:
            raise ValueError(f"kernel_size and mask_count must be at least 1, got {K} and {b}")
        if min(self.shape) < K:
            raise ValueError(
                f"kernel_size {K} is larger than the frame's side of {min(self.shape)} pixels; "
                f"choose kernel_size at most {min(self.shape)}"
            )
        if b > K**2:
            raise ValueError(
                f"mask_count: {b} masks over {K}x{K} blocks would measure more numbers than pixels; "
                f"allowed range 1 to {K**2}"
            )
        if self.tile < K or self.tile % K:
            raise ValueError(f"tile: must be a multiple of kernel_size {K}, got {self.tile}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: {self.seed} is outside the allowed range 0 to 2^63 - 1")

    def _take(self, masks: NDArray[np.bool_]) -> None:
        """Measure through these masks (b, tile, tile)."""
        self.masks = masks
        header = f"coded-aperture K={self.kernel_size} b={self.mask_count} tile={self.tile} "
        self.mask_hash = hashlib.sha256(header.encode() + np.packbits(masks).tobytes()).hexdigest()[:16]
        self.measurement_count = int(np.prod(self.measurement_shape))
        self._regions = _regions(self.shape, self.kernel_size, masks)

    def A(self, x: Tensor) -> Tensor:
        """Mask and pool: (B, H, W) -> (B, b, ceil(H/K), ceil(W/K))."""
        self.check_images(x)
        return self._through("A", x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Every pixel gets the sum of the measurements that saw it: (B, b, ., .) -> (B, H, W)."""
        self.check_measurements(y)
        return self._through("A_adjoint", y)

    def A_dagger(self, y: Tensor) -> Tensor:
        """Minimum-norm images, (B, b, ., .) -> (B, H, W); exact also where rows are equal or empty."""
        self.check_measurements(y)
        return self._through("A_dagger", y)

    def P(self, x: Tensor) -> Tensor:
        """Projection onto what is measured, (B, H, W) -> (B, H, W)."""
        self.check_images(x)
        return self._through("P", x)

    def whiten(self, y: Tensor) -> Tensor:
        """(A A^T)^(-1/2) y, (B, b, ., .) -> the same; on the range where rows depend."""
        self.check_measurements(y)
        return self._through("whiten", y)

    def _through(self, action: Action, source: Tensor) -> Tensor:
        source = self.as_real(source)
        out_shape = self.measurement_shape if action in ("A", "whiten") else self.shape
        out = source.new_empty((source.shape[0], *out_shape))
        look_in = _Region.pixels if action in ("A", "P") else _Region.numbers
        look_out = _Region.numbers if action in ("A", "whiten") else _Region.pixels
        for i, region in enumerate(self._regions):
            matrices = [
                self.resident(
                    f"{action} {i} {j}", source, lambda region=region, j=j: region.matrices(action)[j]
                )
                for j in range(region.matrix_count(action))
            ]
            for part in region.parts(source.shape[0], source.is_cuda):
                vectors = look_in(region, source, part)
                product = vectors.reshape(region.distinct, -1, vectors.shape[5:].numel())
                for matrix in matrices:
                    product = torch.bmm(product, matrix)
                target = look_out(region, out, part)
                target.copy_(product.view(target.shape))
        return out

    def hold_out(self, share: float, seed: int = 0) -> tuple[LinearOperator, Tensor]:
        """Keep a random share of the measurements out, the same ones in every tile.

        Returns the operator of the rest and the boolean mask (b, ceil(H/K), ceil(W/K)), True where held out.
        The share is exact to rounding over one tile.
        """
        check_share(share)
        blocks = self.tile // self.kernel_size
        total = self.mask_count * blocks**2
        order = random_order(total, seed, f"hold-out {self.mask_hash}")
        held = np.zeros(total, dtype=np.bool_)
        held[order[: round(share * total)]] = True
        held = held.reshape(self.mask_count, blocks, blocks)
        rest = CodedAperture(self.shape, self.kernel_size, self.mask_count, self.seed, self.tile)
        rest._take(self.masks & ~held.repeat(self.kernel_size, 1).repeat(self.kernel_size, 2))
        rows, columns = (np.arange(side) % blocks for side in self.measurement_shape[1:])
        held_out = torch.from_numpy(held[:, rows[:, None], columns])
        rest.measurement_count = self.measurement_count - int(held_out.sum())
        return rest, held_out

    def mean_level(self, y: Tensor) -> Tensor:
        """The mean pixel value, (B, b, ., .) -> (B,).

        The level of the flat image whose measurement is nearest to y in the whitened norm; among all
        weighted sums of y it weighs the pixels most evenly.
        """
        self.check_measurements(y)
        y = self.as_real(y)
        weights = self.resident("mean level", y, self._mean_weights)
        return y.flatten(1) @ weights

    def _mean_weights(self) -> Tensor:
        flat = self.A(torch.ones(1, *self.shape, dtype=torch.float64))
        whitened = self.whiten(flat)
        return (self.whiten(whitened) / whitened.square().sum()).flatten()

    def measurement_picture(self, y: Tensor) -> Tensor:
        """The b pooled pictures side by side in rows, (B, rows*h, columns*w)."""
        self.check_measurements(y)
        y = self.as_real(y)
        batch, b, h, w = y.shape
        columns = ceil(b**0.5)
        rows = ceil(b / columns)
        empty = y.amin((1, 2, 3), keepdim=True).expand(batch, rows * columns - b, h, w)
        pictures = torch.cat([y, empty], 1).view(batch, rows, columns, h, w)
        return pictures.permute(0, 1, 3, 2, 4).reshape(batch, rows * h, columns * w)


def default_tile(kernel_size: int) -> int:
    """The largest multiple of K not above 128, but at least K, pixels."""
    return max(128 // max(kernel_size, 1), 1) * kernel_size


class _Segment(NamedTuple):
    """Consecutive blocks along one axis, all equally long, in whole periods of the tile."""

    start: int  # first block
    period: int  # blocks until the masks repeat
    repeats: int  # periods
    pixels: int  # length of a block


def _segments(side: int, kernel_size: int, tile_blocks: int) -> list[_Segment]:
    """An axis as whole tiles, what is left of one, and the block that reaches over the edge."""
    blocks, edge = divmod(side, kernel_size)
    tiles, rest = divmod(blocks, tile_blocks)
    segments = [
        _Segment(0, tile_blocks, tiles, kernel_size),
        _Segment(tiles * tile_blocks, rest, 1, kernel_size),
        _Segment(blocks, 1, 1, edge),
    ]
    return [s for s in segments if s.period * s.repeats * s.pixels > 0]


def _regions(shape: tuple[int, int], kernel_size: int, masks: NDArray[np.bool_]) -> list[_Region]:
    tile_blocks = masks.shape[1] // kernel_size
    rows, columns = (_segments(side, kernel_size, tile_blocks) for side in shape)
    factors: dict[tuple[int, ...], _Factors] = {}
    regions: list[_Region] = []
    for r in rows:
        for c in columns:
            # what is left of a tile has the same matrices as the tile: the first of a kind is the largest
            corner = (r.start % tile_blocks, c.start % tile_blocks)
            kind = (*corner, r.pixels, c.pixels)
            if kind not in factors:
                factors[kind] = _Factors(_block_matrices(masks, kernel_size, corner, r, c))
            regions.append(_Region(kernel_size, r, c, factors[kind]))
    return regions


def _block_matrices(
    masks: NDArray[np.bool_], kernel_size: int, corner: tuple[int, int], rows: _Segment, columns: _Segment
) -> NDArray[np.bool_]:
    """A of each block of one period, (rows, columns, b, pixels)."""
    b, tile = masks.shape[0], masks.shape[1]
    blocks = tile // kernel_size
    by_block = masks.reshape(b, blocks, kernel_size, blocks, kernel_size).transpose(1, 3, 0, 2, 4)
    top, left = corner
    chosen = by_block[
        top : top + rows.period, left : left + columns.period, :, : rows.pixels, : columns.pixels
    ]
    return np.ascontiguousarray(chosen).reshape(rows.period, columns.period, b, -1)


@dataclass
class _Factors:
    """Exact factors of the block matrices (rows, columns, b, pixels), in float64."""

    bits: NDArray[np.bool_]

    @cached_property
    def matrices(self) -> Tensor:
        return torch.from_numpy(self.bits).to(torch.float64)

    @cached_property
    def singular(self) -> tuple[Tensor, Tensor, Tensor]:
        """Compact singular value decomposition A = U diag(s) V.

        U (.., b, r), 1/s (.., r, 1), V (.., r, pixels); r is the largest rank among the blocks; where a
        block has less, its 1/s and V are zero.
        """
        # The Gram matrix is exact in integers and its eigenvectors cost a third of an SVD; taking s as the
        # lengths of the rows U^T A, not as roots of eigenvalues, keeps full precision also for small s.
        u = torch.linalg.eigh(self.matrices @ self.matrices.mT).eigenvectors
        # a measurement that sees no pixel (held out, say) has no part in anything, not even by rounding
        u = u * self.matrices.any(dim=-1, keepdim=True)
        rows = u.mT @ self.matrices
        s = rows.norm(dim=-1, keepdim=True)
        kept = s > RANK_TOLERANCE * s.amax(dim=-2, keepdim=True)
        inverse = torch.where(kept, 1 / s, 0)
        v = rows * inverse
        # what stands in the place of an empty row must not count at all, not even by rounding
        u = u * self.matrices.any(dim=-1, keepdim=True)
        rank = max(int(kept.sum(dim=-2).max()), 1)
        return u[..., -rank:], inverse[..., -rank:, :], v[..., -rank:, :]

    def of(self, action: Action) -> list[Tensor]:
        """Matrices to multiply row vectors with, one after the other, from the right."""
        match action:
            case "A":
                return [self.matrices.mT]
            case "A_adjoint":
                return [self.matrices]
            case "A_dagger":
                u, inverse, v = self.singular
                return [u @ (inverse * v)]
            case "whiten":
                u, inverse, _ = self.singular
                return [u @ (inverse * u.mT)]
            case "P":
                _, _, v = self.singular
                return [v.mT, v] if self.is_thin else [v.mT @ v]

    @property
    def is_thin(self) -> bool:
        """True where V^T then V costs fewer operations than their product."""
        b, pixels = self.bits.shape[2:]
        return 2 * b < pixels


class _Part(NamedTuple):
    """A piece of work: these images, these tile rows of a region."""

    images: slice
    tile_rows: slice


@dataclass
class _Region:
    """A rectangle of whole periods of equal blocks."""

    kernel_size: int
    rows: _Segment
    columns: _Segment
    factors: _Factors

    @property
    def distinct(self) -> int:
        """Different matrices."""
        return self.rows.period * self.columns.period

    def matrix_count(self, action: Action) -> int:
        return 2 if action == "P" and self.factors.is_thin else 1

    def matrices(self, action: Action) -> list[Tensor]:
        """(distinct, in, out) each."""
        rows, columns = self.rows.period, self.columns.period
        return [m[:rows, :columns].reshape(-1, *m.shape[2:]) for m in self.factors.of(action)]

    def parts(self, batch: int, is_cuda: bool) -> Iterator[_Part]:
        """The region of all images, in pieces of a bounded number of vectors per matrix."""
        limit = CHUNK_VECTORS_CUDA if is_cuda else CHUNK_VECTORS_CPU
        tile_rows = min(max(limit // self.columns.repeats, 1), self.rows.repeats)
        images = max(limit // (tile_rows * self.columns.repeats), 1)
        for first in range(0, batch, images):
            for top in range(0, self.rows.repeats, tile_rows):
                yield _Part(slice(first, first + images), slice(top, top + tile_rows))

    def pixels(self, x: Tensor, part: _Part) -> Tensor:
        """View of x as (rows, columns, images, tile rows, tile columns, block height, block width)."""
        r, c, K = self.rows, self.columns, self.kernel_size
        region = x[part.images, r.start * K :, c.start * K :]
        region = region[:, : r.repeats * r.period * r.pixels, : c.repeats * c.period * c.pixels]
        tiles = region.unflatten(2, (c.repeats, c.period, c.pixels)).unflatten(
            1, (r.repeats, r.period, r.pixels)
        )
        return tiles[:, part.tile_rows].permute(2, 5, 0, 1, 4, 3, 6)

    def numbers(self, y: Tensor, part: _Part) -> Tensor:
        """View of y as (rows, columns, images, tile rows, tile columns, masks)."""
        r, c = self.rows, self.columns
        region = y[part.images, :, r.start :, c.start :][:, :, : r.repeats * r.period, : c.repeats * c.period]
        tiles = region.unflatten(3, (c.repeats, c.period)).unflatten(2, (r.repeats, r.period))
        return tiles[:, :, part.tile_rows].permute(3, 5, 0, 2, 4, 1)
