"""Sampling the posterior of a learned prior with the measurement kept exactly, in 10 to 50 evaluations.

The way from noise to an image is the probability flow of x_t given the measurement: at each noise level the
prior says what it takes the image for, and this is moved to where it and the measurement agree, each by its
own uncertainty. For a Gaussian prior that is the exact mean of x0 given x_t and y, so that what is drawn is
the posterior, but for the finite steps.

Sources: DPM-Solver++ (Lu et al., 2022), two steps, for the flow. The data step is that of PiGDM (Song et al.,
2023) and DDNM+ (Wang et al., 2023), with the covariance that a spectrum gives in place of a multiple of one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.operators import CodedAperture, LinearOperator
from reconstructor.priors.base import Denoiser, Schedule
from reconstructor.recovery.noise import FrameNoise
from reconstructor.recovery.wiener import Diagonal, System, Wiener

# Of conjugate gradients, for a coded aperture. A step begins where the last one ended; a linear estimate
# begins from nothing. tests/unit/test_recovery_posterior.py says what they reach.
STEP_ITERATIONS = 3
LINEAR_ITERATIONS = 8
# Noise to begin from, over the standard deviation of the coefficient that is known worst: enough to cover
# what the Gaussian draw has wrong.
START = 2.0
# Noise to end with, over the posterior's standard deviation: a hundredth of its variance is left out.
END = 0.1
# Where no calibration tells them: standard deviation of a particle's strongest coefficients over that of its
# pixels, per pixel of the side (detector_sim.specimen's cage: 1/12), and the posterior's over the signal's.
STRONGEST_PER_PIXEL = 1 / 12
USUAL_UNCERTAINTY = 0.3
# below it what was measured of a coefficient is all of it
ALL_MEASURED = 1 - 1e-6


class DataStep:
    """Moves images to where they agree with a measurement: x + C P (P C P + v P)^-1 (z - P x).

    Takes x for the mean of Gaussian images of covariance C, diagonal in Fourier space and equal on rings, and
    gives back their mean given the minimum-norm image z = P (image + noise), with noise of variance v.

    Parameters
    ----------
    wiener : Wiener
        Has the linear system.
    minimum_norm : Tensor
        (B, H, W), z; kept.
    power : Tensor
        (B, rings) or (1, rings) float64, positive: S, of the images themselves.
    noise_variance : Tensor or None
        (B,) or (1,) float64, v; none where noise is a part of the image, and what was measured is exact.
    """

    def __init__(
        self, wiener: Wiener, minimum_norm: Tensor, power: Tensor, noise_variance: Tensor | None
    ) -> None:
        self.power = power
        self.noise_variance = None if noise_variance is None else noise_variance[:, None]
        self._wiener, self._op = wiener, wiener.op
        self._is_diagonal = not isinstance(self._op, CodedAperture)
        self._target = _spectrum(minimum_norm) if self._is_diagonal else minimum_norm
        # what the last call left of the measurement unexplained, and the variance it took for noise
        self._misfit: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """Where ``x`` (B, H, W) and the measurement agree; may overwrite ``x``.

        Parameters
        ----------
        x : Tensor
            What the images are taken for.
        sigma : float, optional
            Noise level of the images it was told from: C is S sigma^2 / (S + sigma^2); else S.
        """
        power = self.power if sigma is None else self.power * sigma**2 / (self.power + sigma**2)
        if self._is_diagonal:
            return self._by_coefficient(x, power)
        iterations = LINEAR_ITERATIONS if sigma is None else STEP_ITERATIONS
        if self.noise_variance is not None:
            return x.add_(self._moved(x, power, self.noise_variance, iterations))
        # Noise is what keeps the system well conditioned. Where there is none, the white part of C does: the
        # system is that of the rest of C in noise of this variance, and what it leaves is all white.
        white = power.amin(1, keepdim=True)
        x.add_(self._moved(x, power - white, white, iterations))
        return x.sub_(self._op.P(x)).add_(self._target)

    def _by_coefficient(self, x: Tensor, power: Tensor) -> Tensor:
        measured = self._op.resident("measured", x, lambda: _measured_coefficients(self._op))[..., None]
        if self.noise_variance is None:
            gain = measured
        else:
            response = self._wiener.responses((power / self.noise_variance).to(x.dtype))
            assert isinstance(response, Diagonal)
            gain = response.gain.mul_(measured)
        return self._wiener.image(_spectrum(x).lerp_(self._target, gain.expand_as(self._target)))

    def _moved(self, x: Tensor, power: Tensor, noise_variance: Tensor, iterations: int) -> Tensor:
        """How far images of this power move, in noise of this variance, (B, H, W)."""
        system = self._wiener.responses((power / noise_variance).to(x.dtype))
        assert isinstance(system, System)
        if self._misfit is None:
            ahead = self._target - self._op.P(x)
            residual = _spectrum(ahead).mul_(system.from_image)
            w = torch.zeros_like(residual)
        else:
            # w at the solution is S^(1/2) / v^(1/2) times the misfit; where there is no noise but the white
            # part of C, that goes with its root
            misfit, before = self._misfit
            w = misfit.mul_((noise_variance / before).sqrt().to(x.dtype)[..., None, None]).mul_(
                system.from_image
            )
            ahead = self._wiener.image(w * system.to_image).add_(x)
            residual = _spectrum(self._target - self._op.P(ahead)).mul_(system.from_image).sub_(w)
        w = self._wiener.conjugate_gradients(w, residual, system, iterations)
        moved = self._wiener.image(w * system.to_image)
        tiny = torch.finfo(w.dtype).tiny ** 0.5
        self._misfit = w.div_(system.from_image.clamp_min(tiny)), noise_variance
        return moved


class PosteriorSampler:
    """Draws images from the posterior of a learned prior.

    Parameters
    ----------
    wiener : Wiener
        Has the linear system of the operator and the session.
    evaluations : int
        Of the prior, for every sample.
    start : float or "auto" or "noise"
        Noise level to begin from: a draw of the Gaussian posterior with so much noise; auto: by what that
        posterior leaves open; noise: pure noise of the prior's highest level.
    """

    def __init__(self, wiener: Wiener, evaluations: int, start: float | str = "auto") -> None:
        self._wiener = wiener
        self._evaluations = evaluations
        self._start = start
        self._levels: Tensor | None = None

    def __call__(
        self,
        prior: Denoiser,
        minimum_norm: Tensor,
        power: Tensor,
        noise_variance: Tensor | None,
        noise: FrameNoise,
        signal_std: float,
    ) -> Tensor:
        """One sample for each minimum-norm image.

        Parameters
        ----------
        prior : Denoiser
            Of images in its own units, as all that follows.
        minimum_norm : Tensor
            (B, H, W), kept.
        power, noise_variance : Tensor
            As in ``DataStep``.
        noise : FrameNoise
            Of these samples.
        signal_std : float
            Standard deviation of the prior's images.

        Returns
        -------
        Tensor
            (B, H, W).
        """
        step = DataStep(self._wiener, minimum_norm, power, noise_variance)
        levels = self.levels(prior.schedule, step, signal_std)
        if self._start == "noise":
            x = noise.draw(minimum_norm).mul_(float(levels[0]))
        else:
            x = self._gaussian_draw(minimum_norm, power, noise_variance, noise)
            x.add_(noise.draw(minimum_norm), alpha=float(levels[0]))
        return flow(prior, step, x, levels)

    def levels(self, schedule: Schedule, step: DataStep, signal_std: float) -> Tensor:
        """The noise levels sigma to ask the prior at, falling, (evaluations,) float64.

        Equally far apart in log sigma. They are the same for all frames: those of the session's calibration,
        or else those of a usual particle.
        """
        if self._wiener.estimate.is_calibrated and self._levels is not None:
            return self._levels
        if self._wiener.estimate.is_calibrated:
            largest, mean = self._uncertainty(step)
        else:
            largest = signal_std * STRONGEST_PER_PIXEL * math.prod(self._wiener.op.shape) ** 0.5
            mean = signal_std * USUAL_UNCERTAINTY
        lowest, highest = float(schedule.sigma[0]), float(schedule.sigma[-1])
        start = START * largest if isinstance(self._start, str) else self._start
        start = highest if self._start == "noise" else min(max(start, 10 * lowest), highest)
        end = min(max(END * mean, lowest), start / 10)
        levels = torch.logspace(math.log10(start), math.log10(end), self._evaluations, dtype=torch.float64)
        if self._wiener.estimate.is_calibrated:
            self._levels = levels
        return levels

    def _uncertainty(self, step: DataStep) -> tuple[float, float]:
        """Standard deviation of a coefficient under the Gaussian posterior: the largest, and the mean."""
        power = step.power[0].cpu()
        white = power.min() if step.noise_variance is None else step.noise_variance[0].cpu()
        measured, count = self._wiener.estimate.response, self._wiener.estimate.rings.count
        if isinstance(self._wiener.op, CodedAperture):
            largest = variance = power / (1 + measured * power / white)
        else:
            known = power * 0 if step.noise_variance is None else power * white / (power + white)
            variance = measured * known + (1 - measured) * power
            largest = torch.where(measured < ALL_MEASURED, power, known)
        mean = (variance @ count) / count.sum()
        return float(largest.max().sqrt()), float(mean.sqrt())

    def _gaussian_draw(
        self, like: Tensor, power: Tensor, noise_variance: Tensor | None, noise: FrameNoise
    ) -> Tensor:
        """A draw of the Gaussian posterior: a draw of the prior, moved as its measurement differs.

        The measurement's share of noise is drawn too (perturb and solve; Papandreou and Yuille, 2010).
        """
        rings = self._wiener.estimate.rings.to(like.device)
        root = power.sqrt().to(like.dtype)[:, rings.index][..., None]
        drawn = self._wiener.image(_spectrum(noise.draw(like)).mul_(root))
        if noise_variance is not None:
            spoilt = noise.draw(like).mul_(noise_variance.sqrt().to(like.dtype)[:, None, None])
            like = like - self._wiener.op.P(spoilt)
        return DataStep(self._wiener, like, power, noise_variance)(drawn)


def flow(prior: Denoiser, step: DataStep, x: Tensor, levels: Tensor) -> Tensor:
    """From x0 plus noise of the first level down to the image the last level is told to be.

    Two-step DPM-Solver++ for the data prediction, in x_t / a, where it is an exponential integrator in
    log sigma whatever the schedule.

    Parameters
    ----------
    prior : Denoiser
        Says what a noisy image is to be taken for.
    step : DataStep
        Moves that to the measurement.
    x : Tensor
        (B, H, W), x_t / a at the first level; overwritten.
    levels : Tensor
        (N,) float64 on the CPU, noise levels sigma, falling.
    """
    told, before, last_stride = x, None, math.nan
    sigmas = levels.tolist()
    for i, sigma in enumerate(sigmas):
        a, _ = prior.schedule.scales(levels[i])
        told = step(prior.x0(x * float(a), levels[i]), sigma)
        if i == len(sigmas) - 1:
            break
        share = sigmas[i + 1] / sigma
        stride = -math.log(share)
        bend = 0.0 if before is None else stride / (2 * last_stride)
        x.mul_(share).add_(told, alpha=(1 - share) * (1 + bend))
        if before is not None:
            x.sub_(before, alpha=(1 - share) * bend)
        before, last_stride = told, stride
    return told


def _spectrum(images: Tensor) -> Tensor:
    """Half-plane spectra as pairs of real numbers, (B, H, W//2+1, 2)."""
    return torch.view_as_real(torch.fft.rfft2(images, norm="ortho"))


def _measured_coefficients(op: LinearOperator) -> Tensor:
    """1 where P, diagonal in Fourier space, keeps a coefficient, else 0: what it makes of a point."""
    point = torch.zeros(1, *op.shape, dtype=torch.float64)
    point[0, 0, 0] = math.prod(op.shape) ** 0.5
    return torch.fft.rfft2(op.P(point), norm="ortho")[0].real.round()
