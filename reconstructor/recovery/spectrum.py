"""How strong signal and noise are at each spatial frequency: what the priors' strengths follow from.

From the session's reference frames where there is a calibration: then every frame of the session is treated
alike. Else from each frame's own minimum-norm image, so from its measurement alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from common.calibration import Calibration
from common.operators import CodedAperture, LinearOperator
from common.rings import radial_bins

# cycles per pixel: beyond, up to Nyquist and into the corners, preprocessing often empties the spectrum
HIGHEST_FREQUENCY = 0.45
# from this share of the highest frequency measured on, the power of a frame is taken for noise
NOISE_FROM = 0.55
# cycles per pixel: below it lies nearly all signal energy of a particle
SIGNAL_BAND = 0.1
# share of that band which a mask must measure for the energy to be told
LEAST_COVERAGE = 0.5
# rings from r / 1.2 to 1.2 r are averaged: a frame has few coefficients on its inner rings
SMOOTHING = 1.2
# of a ring, below which it counts as not measured
MEASURED_RESPONSE = 1e-3
# white noise through the projector, to see what it lets through of each ring
PROBE_PIXELS = 131_072


@dataclass(frozen=True)
class FrameSpectrum:
    """Noise variance and signal power of frames, per coefficient of an orthonormal transform.

    Attributes
    ----------
    noise_variance : Tensor
        (B,) or (1,) where it holds for every frame; pixel units squared.
    signal_power : Tensor
        (B, rings) or (1, rings), smoothed, >= 0; rings as in ``common.rings.radial_bins``.
    signal_energy : Tensor
        (B,) or (1,): signal energy of a frame, below 0.1 cycles a pixel, over the noise variance; the squared
        signal-to-noise ratio of a matched filter. Infinite where the mask leaves most of that band out.
    """

    noise_variance: Tensor
    signal_power: Tensor
    signal_energy: Tensor

    def to(self, device: torch.device) -> FrameSpectrum:
        """The same on ``device``."""
        if device == self.noise_variance.device:
            return self
        return FrameSpectrum(
            self.noise_variance.to(device), self.signal_power.to(device), self.signal_energy.to(device)
        )

    def relative_power(self) -> Tensor:
        """Signal power over noise variance, (B, rings) or (1, rings), at least 1e-6."""
        return (self.signal_power / self.noise_variance[:, None]).clamp_min(1e-6)


class SpectrumEstimator:
    """Estimates a frame's spectrum from its minimum-norm image, or hands out the calibration's.

    Parameters
    ----------
    op : LinearOperator
        Measures the frames.
    calibration : Calibration or None
        Of the session, with as many rings as the operator's frames have.

    Raises
    ------
    ValueError
        If the calibration belongs to frames of another shape.
    """

    def __init__(self, op: LinearOperator, calibration: Calibration | None) -> None:
        self.op = op
        self.rings = Rings(op.shape)
        self._calibrated: FrameSpectrum | None = None
        if calibration is None:
            return
        if len(calibration.radial_power) != self.rings.number:
            raise ValueError(
                f"calibration: {len(calibration.radial_power)} rings, but frames of "
                f"{op.shape[0]}x{op.shape[1]} have {self.rings.number}: made from frames of another shape"
            )
        power = torch.tensor([calibration.radial_power], dtype=torch.float64)
        everything = torch.ones(self.rings.number, dtype=torch.float64)
        self._calibrated = self._split(power, everything, everything)

    @cached_property
    def response(self) -> Tensor:
        """Mean diagonal of P on each ring, (rings,) float64."""
        return _response(self.op, self.rings)

    @property
    def is_calibrated(self) -> bool:
        """True where every frame has the calibration's spectrum."""
        return self._calibrated is not None

    def __call__(self, minimum_norm: Tensor) -> FrameSpectrum:
        """The spectra of frames, from their minimum-norm images (B, H, W) about mean level zero."""
        if self._calibrated is not None:
            return self._calibrated.to(minimum_norm.device)
        power = self.rings.mean(torch.fft.rfft2(minimum_norm, norm="ortho"))
        # What a projection lets through of noise is its mean diagonal d; of signal, d of it if it is diagonal
        # in Fourier space, and d^2 if it spreads the rest over other frequencies.
        noise = self.response.to(power.device)
        signal = noise.square() if isinstance(self.op, CodedAperture) else noise
        return self._split(power, noise, signal)

    def _split(self, power: Tensor, noise_response: Tensor, signal_response: Tensor) -> FrameSpectrum:
        rings = self.rings.to(power.device)
        frequency = rings.frequency
        is_measured = (noise_response > MEASURED_RESPONSE) & (frequency <= HIGHEST_FREQUENCY)
        highest = torch.where(is_measured, frequency, 0).max()
        outer = rings.count * (is_measured & (frequency >= NOISE_FROM * highest))
        tiny = torch.finfo(torch.float32).tiny
        variance = ((power @ outer) / (noise_response @ outer).clamp_min(tiny)).clamp_min(tiny)
        # ratio of sums: rings that are hardly measured get their neighbours' power
        excess = rings.smoothed(power - variance[:, None] * noise_response)
        signal = (excess / rings.smoothed(signal_response[None]).clamp_min(MEASURED_RESPONSE)).clamp_min(0)
        inner = rings.count * ((frequency > 0) & (frequency < SIGNAL_BAND))
        is_told = (inner * is_measured).sum() >= LEAST_COVERAGE * inner.sum()
        energy = torch.where(is_told, (signal @ inner) / variance, torch.inf)
        return FrameSpectrum(variance, signal, energy)


class Rings:
    """Sums over rings of the half-plane spectrum of real frames."""

    def __init__(self, shape: tuple[int, int], device: torch.device | str = "cpu") -> None:
        self.shape = shape
        self.index = radial_bins(shape, device)
        # each column but kx = 0 and Nyquist stands for two of the full plane
        self.weight = torch.full(self.index.shape, 2.0, dtype=torch.float64, device=device)
        self.weight[:, 0] = 1.0
        if shape[1] % 2 == 0:
            self.weight[:, -1] = 1.0
        self.number = int(self.index.max()) + 1
        self.count = self._sum(torch.ones(1, *self.index.shape, dtype=torch.float64, device=device))[0]
        self.frequency = torch.arange(self.number, device=device, dtype=torch.float64) / max(shape)
        self._elsewhere: dict[torch.device, Self] = {}

    def to(self, device: torch.device) -> Self:
        if device == self.index.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = type(self)(self.shape, device)
        return self._elsewhere[device]

    def _sum(self, values: Tensor) -> Tensor:
        sums = torch.zeros(values.shape[0], self.number, dtype=values.dtype, device=values.device)
        weighted = values * self.weight.to(values.dtype)
        return sums.index_add_(1, self.index.flatten(), weighted.flatten(1))

    def mean(self, spectrum: Tensor) -> Tensor:
        """Mean power on each ring: (B, H, W//2+1) complex -> (B, rings) float64."""
        here = self.to(spectrum.device)
        power = spectrum.real.square() + spectrum.imag.square()
        return here._sum(power).to(torch.float64) / here.count

    def mean_product(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean real part of conj(a) b on each ring."""
        return self._sum(a.real * b.real + a.imag * b.imag).to(torch.float64) / self.count

    def smoothed(self, values: Tensor) -> Tensor:
        """Running mean over rings r / 1.2 to 1.2 r, weighted by their coefficients, without ring 0."""
        ring = torch.arange(self.number, device=values.device, dtype=torch.float64)
        first = (ring / SMOOTHING).round().long().clamp(1, max(self.number - 1, 1))
        last = torch.maximum((ring * SMOOTHING).round().long() + 1, first + 1).clamp_max(self.number)
        zero = torch.zeros(1, device=values.device, dtype=torch.float64)
        count = torch.cat([zero, self.count.cumsum(0)])
        total = torch.cat([zero.expand(values.shape[0], 1), (values * self.count).cumsum(1)], 1)
        return (total[:, last] - total[:, first]) / (count[last] - count[first]).clamp_min(1)


def _response(op: LinearOperator, rings: Rings) -> Tensor:
    """Mean diagonal of P on each ring: its answer to white noise of a fixed seed."""
    number = max(1, PROBE_PIXELS // (op.shape[0] * op.shape[1]))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(number, *op.shape, generator=generator)
    before = torch.fft.rfft2(noise, norm="ortho")
    after = torch.fft.rfft2(op.P(noise), norm="ortho")
    return (rings.mean_product(before, after).sum(0) / rings.mean(before).sum(0)).clamp(0, 1)
