"""PhasePlate: a binary mask on the Fourier plane.

A real image has F(-k) = conj F(k), so a symmetric mask of m frequencies gives m real numbers: the measured
coefficients of the unique half-plane, scaled so that A A^T = I. With the masks of the paper
(``symmetry="paper"``) the real part after the inverse transform averages k with -k: a frequency of which
only one of the two is in the mask is measured at half weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.operators.base import LinearOperator, check_share, checked_shape
from common.operators.draw import random_order
from common.operators.fourier_masks import Pairs, Pattern, Symmetry, draw_mask, mirrored


class PhasePlate(LinearOperator):
    """A binary mask on the Fourier plane of real images; DC is always measured.

    y (B, m) holds real numbers: first the coefficients that are their own mirror (DC before all), then
    sqrt(2) times the real parts of the others, then sqrt(2) times their imaginary parts, each in the order
    of ``rfft2(x, norm="ortho")`` flattened.

    Source: cryoSENSE, supplement H; the symmetry, and the counting of real numbers, are this project's.

    Parameters
    ----------
    shape : tuple[int, int]
        (height, width) of the images in pixels, even or odd.
    pattern : {"uniform", "annular", "radial"}
        Which frequencies; see ``fourier_masks.draw_mask``.
    compression_factor : float
        C wanted, 1 to 100.
    seed : int
        Of the mask.
    symmetry : {"hermitian", "paper"}
        Whether k and -k are drawn together, or as the papers' code does.
    ring_width : float
        annular: width of the low-frequency bias over the longer side.

    Attributes
    ----------
    mask : numpy.ndarray
        The mask as drawn, (H, W) bool in the order of ``fft2``.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        pattern: Pattern = "uniform",
        compression_factor: float = 2.5,
        seed: int = 0,
        symmetry: Symmetry = "hermitian",
        ring_width: float = 0.25,
    ) -> None:
        super().__init__()
        self.shape = checked_shape(shape)
        self.pattern: Pattern = pattern
        self.requested_compression_factor = compression_factor
        self.seed = seed
        self.symmetry: Symmetry = symmetry
        self.ring_width = ring_width
        self._check_parameters()
        self.is_integer = False
        self.mask = draw_mask(self.shape, pattern, compression_factor, seed, symmetry, ring_width)
        header = f"phase-plate {self.shape[0]}x{self.shape[1]} "
        self.mask_hash = hashlib.sha256(header.encode() + np.packbits(self.mask).tobytes()).hexdigest()[:16]

        weight = (self.mask.astype(np.float64) + mirrored(self.mask)) / 2
        pairs = Pairs(self.shape)
        is_measured = weight[pairs.ky, pairs.kx] > 0
        is_single = pairs.size == 1
        row, column = pairs.ky % self.shape[0], pairs.kx
        singles, doubles = np.flatnonzero(is_measured & is_single), np.flatnonzero(is_measured & ~is_single)
        measured = np.concatenate([singles, doubles])
        self._singles, self._doubles = len(singles), len(doubles)
        self._index = row[measured] * self._columns + column[measured]
        # in the columns kx = 0 and Nyquist, the half-plane also holds the mirrored coefficient
        self._mirrored_of = np.flatnonzero(
            np.isin(column[measured], (0, self.shape[1] / 2)) & ~is_single[measured]
        )
        mirror_row = -row[measured][self._mirrored_of] % self.shape[0]
        self._mirror_index = mirror_row * self._columns + column[measured][self._mirrored_of]
        self._weight = weight[row[measured], column[measured]]
        self.measurement_count = self._singles + 2 * self._doubles
        self.measurement_shape = (self.measurement_count,)

    def _check_parameters(self) -> None:
        if self.pattern not in ("uniform", "annular", "radial"):
            raise ValueError(f"pattern: {self.pattern!r} is not one of uniform, annular, radial")
        if self.symmetry not in ("hermitian", "paper"):
            raise ValueError(f"symmetry: {self.symmetry!r} is not one of hermitian, paper")
        if not 1 <= self.requested_compression_factor <= 100:
            raise ValueError(
                f"compression_factor: {self.requested_compression_factor} is outside "
                "the allowed range 1 to 100"
            )
        if not 0 < self.ring_width <= 10:
            raise ValueError(f"ring_width: {self.ring_width} is outside the allowed range 0 (excluded) to 10")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: {self.seed} is outside the allowed range 0 to 2^63 - 1")

    @property
    def printed_compression_factor(self) -> float:
        """The factor the papers print: pixels over drawn frequencies, whether or not -k adds nothing new."""
        return self.requested_compression_factor if self.symmetry == "paper" else self.compression_factor

    @property
    def _columns(self) -> int:
        return self.shape[1] // 2 + 1

    def A(self, x: Tensor) -> Tensor:
        """Measured coefficients as real numbers, (B, H, W) -> (B, m)."""
        self.check_images(x)
        spectrum = torch.fft.rfft2(self.as_real(x), norm="ortho").flatten(1)
        measured = spectrum[:, self._resident_index(x, "index", self._index)]
        y = torch.cat([measured.real, measured.imag[:, self._singles :]], 1)
        return y * self._per_number("A", y, self._scale * self._weight)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Transpose of ``A``, (B, m) -> (B, H, W)."""
        self.check_measurements(y)
        y = self.as_real(y)
        return self._image(y * self._per_number("A_adjoint", y, self._weight / self._scale))

    def A_dagger(self, y: Tensor) -> Tensor:
        """Minimum-norm images, zero at every frequency not measured, (B, m) -> (B, H, W)."""
        self.check_measurements(y)
        y = self.as_real(y)
        return self._image(y * self._per_number("A_dagger", y, self._inverse_weight / self._scale))

    def P(self, x: Tensor) -> Tensor:
        """Images with only the measured frequencies left, (B, H, W) -> (B, H, W)."""
        self.check_images(x)
        x = self.as_real(x)
        spectrum = torch.fft.rfft2(x, norm="ortho").mul_(self.resident("P", x, self._half_plane))
        return torch.fft.irfft2(spectrum, s=self.shape, norm="ortho")

    def whiten(self, y: Tensor) -> Tensor:
        """(A A^T)^(-1/2) y, (B, m) -> (B, m): y itself for hermitian masks."""
        self.check_measurements(y)
        y = self.as_real(y)
        return y * self._per_number("whiten", y, self._inverse_weight)

    def hold_out(self, share: float, seed: int = 0) -> tuple[LinearOperator, Tensor]:
        """Keep a random share of the measured pairs k, -k out; never DC.

        Returns the operator of the rest and the boolean mask (m,), True where held out. The share is exact
        to rounding to whole pairs.
        """
        check_share(share)
        order = random_order(self._doubles, seed, f"hold-out {self.mask_hash}")
        held = np.zeros(self._singles + self._doubles, dtype=np.bool_)
        held[self._singles + order[: round(share * self.measurement_count / 2)]] = True
        rest = PhasePlate(
            self.shape,
            self.pattern,
            self.requested_compression_factor,
            self.seed,
            self.symmetry,
            self.ring_width,
        )
        rest._weight = np.where(held, 0.0, self._weight)
        rest.measurement_count = self.measurement_count - 2 * int(held.sum())
        held_hash = hashlib.sha256(self.mask_hash.encode() + np.packbits(held).tobytes())
        rest.mask_hash = held_hash.hexdigest()[:16]
        return rest, torch.from_numpy(np.concatenate([held, held[self._singles :]]))

    def mean_level(self, y: Tensor) -> Tensor:
        """The mean pixel value, read off DC: (B, m) -> (B,)."""
        self.check_measurements(y)
        return self.as_real(y)[:, 0] / (self.shape[0] * self.shape[1]) ** 0.5

    def measurement_picture(self, y: Tensor) -> Tensor:
        """Log modulus of the measured coefficients on the centred plane, (B, m) -> (B, H, W).

        What is not measured shows as the weakest that is.
        """
        modulus = torch.fft.fft2(self.A_dagger(y), norm="ortho").abs()
        measured = torch.from_numpy(self.mask | mirrored(self.mask)).to(modulus.device)
        strongest = modulus.amax((1, 2), keepdim=True)
        # seven decades below the strongest is rounding
        modulus = modulus.clamp_min(1e-7 * strongest.clamp_min(torch.finfo(modulus.dtype).tiny))
        weakest = modulus.masked_fill(~measured, torch.inf).amin((1, 2), keepdim=True)
        return torch.fft.fftshift(torch.where(measured, modulus, weakest).log(), dim=(1, 2))

    @property
    def _scale(self) -> NDArray[np.float64]:
        """sqrt(2) for each pair, which stands for two frequencies of the full plane."""
        return np.where(np.arange(self._singles + self._doubles) < self._singles, 1.0, 2**0.5)

    @property
    def _inverse_weight(self) -> NDArray[np.float64]:
        return np.divide(1.0, self._weight, out=np.zeros_like(self._weight), where=self._weight > 0)

    def _per_number(self, name: str, like: Tensor, per_frequency: NDArray[np.float64]) -> Tensor:
        """A factor per frequency as a factor per real number, (m,)."""
        return self.resident(
            name,
            like,
            lambda: torch.from_numpy(np.concatenate([per_frequency, per_frequency[self._singles :]])),
        )

    def _resident_index(self, like: Tensor, name: str, index: NDArray[np.int64]) -> Tensor:
        return self.resident(name, like, lambda: torch.from_numpy(index))

    def _half_plane(self) -> Tensor:
        """1 where measured, (H, W//2+1)."""
        half_plane = torch.zeros(self.shape[0] * self._columns, dtype=torch.float64)
        kept = torch.from_numpy((self._weight > 0).astype(np.float64))
        half_plane[self._index] = kept
        half_plane[self._mirror_index] = kept[self._mirrored_of]
        return half_plane.view(self.shape[0], self._columns)

    def _image(self, y: Tensor) -> Tensor:
        """The image whose half-plane spectrum holds these numbers, (B, m) -> (B, H, W)."""
        doubles = torch.complex(
            y[:, self._singles : self._singles + self._doubles], y[:, self._singles + self._doubles :]
        )
        values = torch.cat([y[:, : self._singles].to(doubles.dtype), doubles], 1)
        spectrum = values.new_zeros(y.shape[0], self.shape[0] * self._columns)
        spectrum[:, self._resident_index(y, "index", self._index)] = values
        mirrored_of = self._resident_index(y, "mirrored of", self._mirrored_of)
        spectrum[:, self._resident_index(y, "mirror index", self._mirror_index)] = values[
            :, mirrored_of
        ].conj()
        return torch.fft.irfft2(spectrum.view(-1, self.shape[0], self._columns), s=self.shape, norm="ortho")
