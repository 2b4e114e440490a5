"""Wiener: the posterior mean under a Gaussian prior with a radial power spectrum and white noise.

The line that any other prior has to beat. With prior covariance S (diagonal in Fourier space) and noise
variance sigma^2 in the pixels, the mean is the minimum of |P x - x0|^2 / sigma^2 + x^T S^-1 x: in closed form
where P is diagonal in Fourier space too, else by preconditioned conjugate gradients.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from common.operators import CodedAperture
from reconstructor.recovery.base import MaskKind, column
from reconstructor.recovery.prior import Prior, PriorParameters
from reconstructor.recovery.spectrum import FrameSpectrum


class WienerParameters(PriorParameters):
    """Parameters of ``wiener``."""

    iterations: int | None = Field(
        None, ge=1, le=1000, description="conjugate gradient steps; the phase plate needs none"
    )


class Diagonal(NamedTuple):
    """The whole answer where P is diagonal in Fourier space too: a response on ``rfft2``'s half-plane."""

    gain: Tensor  # S / (S + sigma^2)


class System(NamedTuple):
    """Responses, on the half-plane of ``rfft2``, of the linear system where P is not diagonal."""

    to_image: Tensor  # S^(1/2) / sigma, over the square root of how many coefficients each stands for
    from_image: Tensor  # the same times that root
    preconditioner: Tensor


class Wiener(Prior[WienerParameters, Diagonal | System]):
    """Posterior mean under a Gaussian prior."""

    parameters_model = WienerParameters
    defaults: ClassVar[dict[MaskKind, dict[str, Any]]] = {
        "coded-aperture": {"iterations": 4, "null_weight": 1.0},
        "phase-plate": {"iterations": 1, "null_weight": 1.0},
        "none": {"iterations": 1, "null_weight": 1.0},
    }

    def prepare(self, spectrum: FrameSpectrum, like: Tensor) -> Diagonal | System:
        """The responses that the spectrum gives."""
        return self.responses(spectrum.relative_power().to(like.dtype))

    def responses(self, relative_power: Tensor) -> Diagonal | System:
        """The responses for S / sigma^2 on rings, (B or 1, rings)."""
        rings = self.estimate.rings.to(relative_power.device)
        if not isinstance(self.op, CodedAperture):
            return Diagonal(_paired((relative_power / (1 + relative_power))[:, rings.index]))
        # coefficients that stand for two of the full plane are multiplied by sqrt(2), so that inner products
        # of half-plane spectra are those of images
        fold = _paired(rings.weight.to(relative_power.dtype).sqrt())
        root = _paired(relative_power.sqrt()[:, rings.index])
        preconditioner = 1 / (1 + relative_power * self.estimate.response.to(relative_power))
        return System(root / fold, root * fold, _paired(preconditioner[:, rings.index]))

    def solve(self, minimum_norm: Tensor, prepared: Diagonal | System) -> Tensor:
        """The posterior means, (B, H, W)."""
        # Spectra are kept as pairs of real numbers: a product of a complex and a real tensor would first turn
        # the real one into a complex one.
        spectrum = torch.view_as_real(torch.fft.rfft2(minimum_norm, norm="ortho"))
        if isinstance(prepared, System):
            residual, iterations = spectrum.mul_(prepared.from_image), self.parameters.iterations
            assert iterations is not None  # for_mask has filled it in
            w = self.conjugate_gradients(torch.zeros_like(residual), residual, prepared, iterations)
            return self.image(w.mul_(prepared.to_image))
        # x0 is zero wherever nothing was measured
        return self.image(spectrum.mul_(prepared.gain))

    def conjugate_gradients(self, w: Tensor, residual: Tensor, system: System, iterations: int) -> Tensor:
        """With x = S^(1/2) w / sigma: (1 + S^(1/2) P S^(1/2) / sigma^2) w = S^(1/2) x0 / sigma, on spectra.

        Preconditioned by the same with P replaced by its mean diagonal in Fourier space.

        Parameters
        ----------
        w : Tensor
            (B, H, W//2+1, 2), where to begin; overwritten.
        residual : Tensor
            The same shape, right side less left side there; overwritten.
        system : System
            The responses.
        iterations : int
            How many.

        Returns
        -------
        Tensor
            ``w`` after them.
        """
        to_image, from_image, preconditioner = system
        z = residual * preconditioner
        direction = z.clone()
        product = _inner(residual, z)
        tiny = torch.finfo(residual.dtype).tiny
        for _ in range(iterations):
            projected = self.op.P(self.image(torch.mul(direction, to_image, out=z)))
            image = torch.view_as_real(torch.fft.rfft2(projected, norm="ortho"))
            image.mul_(from_image).add_(direction)
            rate = column(product / _inner(direction, image).clamp_min(tiny))[..., None]
            w.addcmul_(direction, rate)
            residual.addcmul_(image, -rate)
            torch.mul(residual, preconditioner, out=z)
            product, before = _inner(residual, z), product
            direction.mul_(column(product / before.clamp_min(tiny))[..., None]).add_(z)
        return w

    def image(self, spectrum: Tensor) -> Tensor:
        """Images (B, H, W) of half-plane spectra as pairs of real numbers."""
        return torch.fft.irfft2(torch.view_as_complex(spectrum), s=self.op.shape, norm="ortho")


def _paired(response: Tensor) -> Tensor:
    """A real response of a spectrum, once for real and once for imaginary parts: (...) -> (..., 2)."""
    return response[..., None].expand(*response.shape, 2).contiguous()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each pair, (B,)."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))
