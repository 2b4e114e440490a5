"""The prior that is known in closed form: stationary Gaussian images of a radial power spectrum.

Its denoiser is exact, its posterior too, so that whatever a sampler does with a prior can be checked on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.rings import radial_bins
from reconstructor.priors.base import Schedule, VariancePreserving


class GaussianPrior:
    """Images of mean zero whose Fourier coefficients are independent, as strong as their ring.

    Parameters
    ----------
    radial_power : Tensor
        (rings,) mean |F|^2 of a coefficient, norm="ortho", rings as in ``common.rings.radial_bins``;
        more of them than ``shape`` has do not count. White noise of variance one has ones; a ring of zero is
        known to be empty. Where this tensor lies, the prior works.
    shape : tuple of int
        (H, W) of the images.
    schedule : Schedule, optional
        Noise levels it is asked at; by default those of ``VariancePreserving``.

    Raises
    ------
    ValueError
        If there are fewer rings than ``shape`` has, or a power is negative or not finite.

    Attributes
    ----------
    power : Tensor
        (H, W//2+1) float64, the power of each coefficient of ``rfft2``.
    """

    def __init__(
        self, radial_power: Tensor, shape: tuple[int, int], schedule: Schedule | None = None
    ) -> None:
        ring = radial_bins(shape, radial_power.device)
        rings = int(ring.max()) + 1
        if radial_power.ndim != 1 or len(radial_power) < rings:
            raise ValueError(
                f"radial power of shape {tuple(radial_power.shape)}: images of {shape[0]}x{shape[1]} have "
                f"{rings} rings, and one power is needed for each"
            )
        power = radial_power.double()
        if not bool((power.isfinite() & (power >= 0)).all()):
            raise ValueError("radial power: all must be finite and at least zero")
        self.shape = shape
        self.power = power[ring]
        self._schedule = VariancePreserving() if schedule is None else schedule

    @property
    def schedule(self) -> Schedule:
        """Its noise levels."""
        return self._schedule

    def x0(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Mean of x0 given x_t = a x0 + s e: a S / (a^2 S + s^2) x_t, coefficient by coefficient.

        Parameters
        ----------
        x_t : Tensor
            (B, H, W), float32 or float64.
        sigma : Tensor
            () or (1,), the noise level s / a of all, or (B,) that of each.

        Returns
        -------
        Tensor
            (B, H, W), of the type of ``x_t``.

        Raises
        ------
        ValueError
            If the images have another shape than the prior's.
        """
        level = sigma.double().reshape(-1, 1, 1).to(self.power.device)
        a, _ = self.schedule.scales(level)
        tiny = torch.finfo(torch.float64).tiny  # an empty ring at no noise at all stays empty
        gain = self.power / (self.power + level.square()).clamp_min(tiny) / a
        return self._filtered(x_t, gain)

    def variance(self, sigma: Tensor) -> Tensor:
        """What x_t leaves open of x0: S sigma^2 / (S + sigma^2) of each coefficient, (H, W//2+1) float64.

        Parameters
        ----------
        sigma : Tensor
            () or (1,), the noise level s / a of x_t.
        """
        noise = sigma.double().reshape(()).to(self.power.device).square()
        return self.power * noise / (self.power + noise).clamp_min(torch.finfo(torch.float64).tiny)

    def draw(self, noise: Tensor) -> Tensor:
        """Images of the prior from white noise of variance one, (B, H, W) -> (B, H, W): exact samples.

        Raises
        ------
        ValueError
            If the noise has another shape than the prior's images.
        """
        return self._filtered(noise, self.power.sqrt())

    def _filtered(self, images: Tensor, gain: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != self.shape:
            raise ValueError(
                f"images of {tuple(images.shape)}: the prior's are (B, {self.shape[0]}, {self.shape[1]})"
            )
        spectrum = torch.fft.rfft2(images, norm="ortho") * gain.to(images.device, images.dtype)
        return torch.fft.irfft2(spectrum, s=self.shape, norm="ortho")
