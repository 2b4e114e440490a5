"""Orthonormal transforms of batches of images: DCT-II and periodised wavelets.

Both are linear maps with an exact inverse, its transpose, and keep coefficients in an array of the image's
own size. Constants are kept per device and precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import ceil, pi

import numpy as np
import pywt
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.rings import radial_bins

# Longest side for which a DCT is a product with a dense matrix; longer ones go through the FFT. Measured on
# one and two cores: at 128 pixels the FFT form takes two thirds of the matrix's time, at 64 as long as it.
DENSE_DCT_SIDE = 96
# Longest side for which a wavelet level is a product with a dense matrix; longer ones with a banded one.
DENSE_WAVELET_SIDE = 160
# Side of the part of a frame on which the responses of the wavelet bands are computed, about, pixels.
RESPONSE_SIDE = 256
# Approximation coefficients of one stretch of a banded level.
HALF_BLOCK = 32


class Transform(ABC):
    """An orthonormal transform of images of ``shape``, zero-padded to ``padded_shape`` where it needs that.

    Attributes
    ----------
    shape : tuple[int, int]
        Of the images, pixels.
    padded_shape : tuple[int, int]
        Of the arrays that are transformed; at least ``shape``.
    """

    shape: tuple[int, int]
    padded_shape: tuple[int, int]

    def __init__(self) -> None:
        self._constants: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Coefficients of arrays of ``padded_shape``: (B, Hp, Wp) -> (B, Hp, Wp)."""

    @abstractmethod
    def inverse(self, coefficients: Tensor) -> Tensor:
        """Inverse, which is the transpose: (B, Hp, Wp) -> (B, Hp, Wp)."""

    @abstractmethod
    def band_power(self, ring_power: Tensor) -> Tensor:
        """Mean power of the coefficients of each band of stationary images: (B, rings) -> (B, bands)."""

    @abstractmethod
    def lay_out(self, band_values: Tensor) -> Tensor:
        """A value per band as a value per coefficient: (B, bands) -> (B, Hp, Wp)."""

    @abstractmethod
    def kept(self) -> tuple[slice, slice]:
        """The coefficients of the mean level, which are never thresholded."""

    def _constant(self, name: str, like: Tensor, make: Callable[[], Tensor]) -> Tensor:
        key = (name, like.device, like.dtype)
        if key not in self._constants:
            made = make()
            dtype = like.dtype if made.dtype == torch.float64 else made.dtype
            if made.is_complex():
                dtype = torch.complex64 if like.dtype == torch.float32 else torch.complex128
            self._constants[key] = made.to(device=like.device, dtype=dtype).contiguous()
        return self._constants[key]


def dct_matrix(side: int) -> Tensor:
    """Orthonormal DCT-II as a (side, side) float64 matrix, row k the k-th cosine."""
    k = torch.arange(side, dtype=torch.float64)[:, None]
    i = torch.arange(side, dtype=torch.float64)[None, :]
    matrix = torch.cos(pi * k * (2 * i + 1) / (2 * side)) * (2 / side) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


class CosineTransform(Transform):
    """Orthonormal DCT-II, any sides: matrix products for short sides, FFTs for long ones."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = self.padded_shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """DCT-II of both axes."""
        height, width = self.shape
        x = x @ self._matrix(x, width).mT if width <= DENSE_DCT_SIDE else self._fft_forward(x)
        if height <= DENSE_DCT_SIDE:
            return self._matrix(x, height) @ x
        return self._fft_forward(x.mT).mT

    def inverse(self, coefficients: Tensor) -> Tensor:
        """DCT-III of both axes."""
        height, width = self.shape
        c = coefficients
        c = c @ self._matrix(c, width) if width <= DENSE_DCT_SIDE else self._fft_inverse(c)
        if height <= DENSE_DCT_SIDE:
            return self._matrix(c, height).mT @ c
        return self._fft_inverse(c.mT).mT

    def band_power(self, ring_power: Tensor) -> Tensor:
        """A band for every ring."""
        return ring_power

    def lay_out(self, band_values: Tensor) -> Tensor:
        """Coefficient (i, j) oscillates i/2H and j/2W times a pixel: the ring of that frequency."""
        return band_values[:, self._constant("rings", band_values, self._rings)]

    def _rings(self) -> Tensor:
        height, width = self.shape
        i = torch.arange(height, dtype=torch.float64)[:, None] / (2 * height)
        j = torch.arange(width, dtype=torch.float64)[None, :] / (2 * width)
        last = int(radial_bins(self.shape).max())
        return (torch.sqrt(i**2 + j**2) * max(self.shape)).round().long().clamp_max(last)

    def kept(self) -> tuple[slice, slice]:
        """DC alone."""
        return slice(0, 1), slice(0, 1)

    def _matrix(self, like: Tensor, side: int) -> Tensor:
        return self._constant(f"matrix {side}", like, lambda: dct_matrix(side))

    def _twiddle(self, like: Tensor, side: int) -> Tensor:
        def make() -> Tensor:
            k = torch.arange(side // 2 + 1, dtype=torch.float64)
            factor = torch.polar(torch.full_like(k, (2 / side) ** 0.5), -pi * k / (2 * side))
            factor[0] /= 2**0.5
            return factor

        return self._constant(f"twiddle {side}", like, make)

    def _fft_forward(self, x: Tensor) -> Tensor:
        """DCT-II of the last axis by one real FFT of the same length (Makhoul, 1980)."""
        side = x.shape[-1]
        folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
        spectrum = torch.fft.rfft(folded) * self._twiddle(x, side)
        return torch.cat([spectrum.real, -spectrum.imag[..., 1 : (side + 1) // 2].flip(-1)], -1)

    def _fft_inverse(self, c: Tensor) -> Tensor:
        side = c.shape[-1]
        half = side // 2 + 1
        imaginary = torch.zeros_like(c[..., :half])
        mirrored = c[..., half:].flip(-1)
        imaginary[..., 1 : 1 + mirrored.shape[-1]] = -mirrored
        if side % 2 == 0:
            # at Nyquist the product of spectrum and twiddle is real and imaginary in equal parts
            imaginary[..., -1] = -c[..., half - 1]
        spectrum = torch.complex(c[..., :half].contiguous(), imaginary)
        twiddle = self._twiddle(c, side)
        folded = torch.fft.irfft(spectrum * (twiddle.conj() / twiddle.abs().square()), n=side)
        x = torch.empty_like(c)
        x[..., ::2] = folded[..., : (side + 1) // 2]
        x[..., 1::2] = folded[..., (side + 1) // 2 :].flip(-1)
        return x


class WaveletTransform(Transform):
    """Orthonormal wavelets of PyWavelets' filters, periodised, packed as ``pywt.coeffs_to_array`` packs them.

    Sides are zero-padded at their ends to a multiple of 2^levels; the transform of the padded array is
    orthonormal, and the padding is for the caller to treat as pixels that nobody measured.

    Parameters
    ----------
    shape : tuple[int, int]
        Of the images, pixels.
    wavelet : str
        A discrete orthogonal wavelet of PyWavelets, say "db4" or "sym4".
    levels : int
        Of the pyramid; fewer are taken where the longer side would not leave two coefficients.

    Raises
    ------
    ValueError
        If the wavelet is unknown or not orthogonal.
    """

    def __init__(self, shape: tuple[int, int], wavelet: str = "sym8", levels: int = 5) -> None:
        super().__init__()
        self.shape = shape
        self.wavelet = orthogonal_wavelet(wavelet)
        self._band = Band(self.wavelet)
        self.levels = max(1, min(levels, min(shape).bit_length() - 2))
        step = 2**self.levels
        height, width = (ceil(side / step) * step for side in shape)
        self.padded_shape = (height, width)

    def forward(self, x: Tensor) -> Tensor:
        """Analysis: approximation in the corner, details of each level around it."""
        c = self._analyse(self._analyse(x).mT).mT
        for level in range(1, self.levels):
            corner = c[:, : self.padded_shape[0] >> level, : self.padded_shape[1] >> level]
            corner.copy_(self._analyse(self._analyse(corner).mT).mT)
        return c

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Synthesis."""
        c = coefficients.clone() if self.levels > 1 else coefficients
        for level in reversed(range(1, self.levels)):
            corner = c[:, : self.padded_shape[0] >> level, : self.padded_shape[1] >> level]
            corner.copy_(self._synthesise(self._synthesise(corner.mT).mT))
        return self._synthesise(self._synthesise(c.mT).mT)

    def band_power(self, ring_power: Tensor) -> Tensor:
        """Mean of the ring powers under each band's response |psi^|^2."""
        return ring_power @ self._constant("band weights", ring_power, self._band_weights).mT

    def lay_out(self, band_values: Tensor) -> Tensor:
        """Each band's rectangle filled with its value."""
        out = band_values.new_empty(band_values.shape[0], *self.padded_shape)
        for band, (rows, columns) in enumerate(self._bands()):
            out[:, rows, columns] = band_values[:, band, None, None]
        return out

    def kept(self) -> tuple[slice, slice]:
        """The approximation band."""
        return slice(0, self.padded_shape[0] >> self.levels), slice(0, self.padded_shape[1] >> self.levels)

    def _bands(self) -> list[tuple[slice, slice]]:
        """Where each band lies: approximation, then the three details of each level from the finest."""
        bands = [self.kept()]
        for level in range(1, self.levels + 1):
            h, w = self.padded_shape[0] >> level, self.padded_shape[1] >> level
            low_h, high_h, low_w, high_w = slice(0, h), slice(h, 2 * h), slice(0, w), slice(w, 2 * w)
            bands += [(high_h, low_w), (low_h, high_w), (high_h, high_w)]
        return bands

    def _band_weights(self) -> Tensor:
        """(bands, rings): share of each ring of the unpadded frame in the response of each band.

        A band's response is a matter of cycles per pixel, so a part of a large frame tells it.
        """
        step = 2**self.levels
        limit = max(ceil(RESPONSE_SIDE / step), 4) * step  # as many levels must fit
        height, width = (min(side, limit) for side in self.padded_shape)
        part = WaveletTransform((height, width), self.wavelet.name, self.levels)
        bands = part._bands()
        impulses = torch.zeros(len(bands), height, width, dtype=torch.float64)
        for band, (rows, columns) in enumerate(bands):
            impulses[band, (rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2] = 1
        power = torch.fft.rfft2(part.inverse(impulses), norm="ortho").abs().square()
        power[..., 1 : (width + 1) // 2] *= 2
        scale = max(self.shape) / max(height, width)
        rings = (radial_bins((height, width)) * scale).round().long().flatten()
        number = int(radial_bins(self.shape).max()) + 1
        weights = torch.zeros(len(bands), number, dtype=torch.float64)
        return weights.index_add_(1, rings.clamp_max(number - 1), power.flatten(1))

    def _analyse(self, x: Tensor) -> Tensor:
        """One level along the rows' axis: approximation, then detail."""
        side = x.shape[1]
        if side <= DENSE_WAVELET_SIDE:
            return self._constant(f"level {side}", x, lambda: level_matrix(self.wavelet, side)) @ x
        band = self._band
        stretches = windows(x, band.first_sample, 2 * HALF_BLOCK, band.samples)
        low, high = self._constant("analysis", x, lambda: band.analysis)
        half = side // 2
        return torch.cat(
            [(low @ stretches).flatten(1, 2)[:, :half], (high @ stretches).flatten(1, 2)[:, :half]], 1
        )

    def _synthesise(self, c: Tensor) -> Tensor:
        """Inverse of ``_analyse``."""
        side = c.shape[1]
        if side <= DENSE_WAVELET_SIDE:
            return self._constant(f"level {side}", c, lambda: level_matrix(self.wavelet, side)).mT @ c
        band, half = self._band, side // 2
        low, high = self._constant("synthesis", c, lambda: band.synthesis)
        x = low @ windows(c[:, :half], band.first_row, HALF_BLOCK, band.rows)
        x += high @ windows(c[:, half:], band.first_row, HALF_BLOCK, band.rows)
        return x.flatten(1, 2)[:, :side]


def windows(x: Tensor, first: int, step: int, height: int) -> Tensor:
    """Stretches of the periodic rows' axis, from first, first + step and so on.

    (B, n, W) -> (B, ceil(n / step), height, W), a view of one extended copy.
    """
    batch, side, width = x.shape
    blocks = ceil(side / step)
    rows = torch.arange(first, first + (blocks - 1) * step + height, device=x.device) % side
    extended = x.index_select(1, rows)
    return extended.as_strided((batch, blocks, height, width), (len(rows) * width, step * width, width, 1))


class Band:
    """A level's matrix is banded: the same small block for every stretch of a long side.

    Attributes
    ----------
    analysis : Tensor
        (2, HALF_BLOCK, samples) float64: a stretch of samples, from ``first_sample`` relative to the block,
        to its approximation and its detail coefficients.
    synthesis : Tensor
        (2, 2 * HALF_BLOCK, rows) float64: stretches of approximation and of detail coefficients to samples.
    """

    def __init__(self, wavelet: pywt.Wavelet) -> None:
        length = wavelet.dec_len
        side = 2 * HALF_BLOCK * ceil((4 * HALF_BLOCK + 4 * length) / (2 * HALF_BLOCK))
        low, high = level_matrix(wavelet, side).split(side // 2)
        # all about the block in the middle, where nothing wraps around
        row, sample = side // 4, side // 2
        used = (low[row] != 0) | (high[row] != 0)
        support = used.nonzero().flatten() - sample
        self.first_sample = int(support.min())
        self.samples = int(support.max()) - self.first_sample + 2 * HALF_BLOCK - 1
        columns = slice(sample + self.first_sample, sample + self.first_sample + self.samples)
        block = slice(row, row + HALF_BLOCK)
        self.analysis = torch.stack([low[block, columns], high[block, columns]])
        samples = slice(sample, sample + 2 * HALF_BLOCK)
        reached = ((low[:, samples] != 0) | (high[:, samples] != 0)).any(1).nonzero().flatten() - row
        self.first_row = int(reached.min())
        self.rows = int(reached.max()) - self.first_row + 1
        rows = slice(row + self.first_row, row + self.first_row + self.rows)
        self.synthesis = torch.stack([low[rows, samples].mT, high[rows, samples].mT])


def orthogonal_wavelet(name: str) -> pywt.Wavelet:
    """PyWavelets' wavelet of that name.

    Raises
    ------
    ValueError
        If there is none, or if it is not orthogonal.
    """
    if name not in pywt.wavelist(kind="discrete") or not pywt.Wavelet(name).orthogonal:
        raise ValueError(
            f"wavelet: {name!r} is not one of PyWavelets' orthogonal wavelets, such as db1 ... db38, "
            "sym2 ... sym20, coif1 ... coif17"
        )
    return pywt.Wavelet(name)


def level_matrix(wavelet: pywt.Wavelet, side: int) -> Tensor:
    """One periodised level as a (side, side) float64 matrix: approximation rows, then detail rows."""
    low, high = pywt.dwt(np.eye(side), wavelet, mode="periodization", axis=0)
    matrix: NDArray[np.float64] = np.concatenate([low, high])
    return torch.from_numpy(matrix)
