"""Sampling the posterior of a learned prior with the measurement in every step, in 10 to 50 evaluations.

A network that was trained to take white noise from images is asked for nothing else. Where something was
measured, the minimum-norm image z *is* the image with the measurement's own noise, of variance v. So at noise
level sigma = v^(1/2) the network sees z as it is, with only what was not measured filled in, and from there
on down plain reverse diffusion draws from the posterior, whatever the prior. Above that level, where more
noise has to cover what was not measured, z is shown with noise added; what that hides of z is given back
after the network by the linear step that would be right for Gaussian images of the session's spectrum.

For a Gaussian prior this is the exact posterior, but for the finite steps. Where all was measured it is that
for every prior, and one evaluation gives its mean.

Sources: DDRM (Kawar et al., 2022) and DDNM (Wang et al., 2023) for a measurement's own noise as a part of the
diffusion's; the step after the network as in PiGDM (Song et al., 2023), with the covariance of a spectrum in
place of a multiple of one; DPM-Solver++ (Lu et al., 2022), stochastic, two steps, for the way down.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from common.operators import CodedAperture, LinearOperator
from reconstructor.priors.base import Denoiser, Schedule
from reconstructor.recovery.base import column
from reconstructor.recovery.noise import FrameNoise
from reconstructor.recovery.wiener import Diagonal, System, Wiener

# Of conjugate gradients, for a coded aperture. A step begins where the last one ended, a linear estimate from
# nothing; tests/unit/test_recovery_posterior.py says what they reach.
STEP_ITERATIONS = 2
LINEAR_ITERATIONS = 6
# Noise to begin from: over the standard deviation that the Gaussian posterior leaves the coefficient it knows
# worst: as much as covers what a draw of it has wrong.
START = 1.0
# over the standard deviation of the strongest coefficient: nothing shows through so much
DROWNED = 12.0
# over the measurement's own: where all was measured, nothing has to be covered
LEAST_COVER = 1.2
# Noise a draw ends with, over the mean standard deviation: a hundredth of the variance is left out.
END = 0.1
# below it, what was measured of a ring is not all of it
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
        self._wiener, self._op = wiener, wiener.op
        self._minimum_norm = minimum_norm
        self._power = power
        self._noise_variance = None if noise_variance is None else noise_variance[:, None]
        self._is_diagonal = not isinstance(self._op, CodedAperture)
        # spectrum of what the last call left of z unexplained, and the variance it was taken for
        self._misfit: tuple[Tensor, Tensor] | None = None

    def linear(self, x: Tensor) -> Tensor:
        """Where ``x`` (B, H, W), of which S is known and no more, agrees with z; may overwrite ``x``."""
        return self._moved_to(self._minimum_norm, x, self._power, self._noise_variance, LINEAR_ITERATIONS)

    def added(self, sigma: Tensor) -> Tensor:
        """Standard deviation of the noise that brings z to these levels, (B,) or (1,)."""
        if self._noise_variance is None:
            return sigma
        return (sigma.square().to(self._noise_variance.device) - self._noise_variance[:, 0]).sqrt()

    def after(self, x: Tensor, sigma: Tensor, hidden: Tensor) -> Tensor:
        """Give back what added noise hid of z.

        Parameters
        ----------
        x : Tensor
            (B, H, W), what a prior took the images for; may be overwritten.
        sigma : Tensor
            (B,) or (1,) float64, noise level of what it saw, above v^(1/2): z + (sigma^2 - v)^(1/2) hidden
            where something was measured. C is S sigma^2 / (S + sigma^2).
        hidden : Tensor
            (B, H, W), white noise of variance one, projected.
        """
        square = sigma.square()[:, None].to(self._power.device)
        power = self._power * square / (self._power + square)
        if self._noise_variance is None:
            return self._moved_to(self._minimum_norm, x, power, None, STEP_ITERATIONS)
        # Of the precision 1 / v of z the prior has seen 1 / sigma^2. The rest, taken for another measurement,
        # has the variance v sigma^2 / (sigma^2 - v), and the added noise, which it undoes, sign turned.
        variance, more = self._noise_variance, square - self._noise_variance
        undone = column((variance / more.sqrt())[:, 0]).to(x.dtype) * hidden
        rest = self._minimum_norm - undone
        if self._is_diagonal:
            return self._moved_to(rest, x, power, variance * square / more, STEP_ITERATIONS)
        noise = _spectrum(undone)
        if self._misfit is not None:
            self._misfit = self._misfit[0].sub_(noise), self._misfit[1]
        x = self._moved_to(rest, x, power, variance * square / more, STEP_ITERATIONS)
        assert self._misfit is not None
        self._misfit[0].add_(noise)
        return x

    def _moved_to(
        self, target: Tensor, x: Tensor, power: Tensor, noise_variance: Tensor | None, iterations: int
    ) -> Tensor:
        """x + C P (P C P + v P)^-1 (z - P x), for any of these."""
        if self._is_diagonal:
            measured = self._op.resident("measured", x, lambda: _measured_coefficients(self._op))[..., None]
            if noise_variance is None:
                gain = measured
            else:
                response = self._wiener.responses((power / noise_variance).to(x.dtype))
                assert isinstance(response, Diagonal)
                gain = response.gain.mul_(measured)
            spectrum = _spectrum(x)
            return self._wiener.image(spectrum.lerp_(_spectrum(target), gain.expand_as(spectrum)))
        if noise_variance is not None:
            return x.add_(self._move(target, x, power, noise_variance, iterations))
        # Noise is what keeps the system well conditioned. Where there is none, the white part of C does: the
        # system is that of the rest of C in noise of this variance, and what it leaves is all white.
        white = power.amin(1, keepdim=True)
        x.add_(self._move(target, x, power - white, white, iterations))
        return x.sub_(self._op.P(x)).add_(target)

    def _move(
        self, target: Tensor, x: Tensor, power: Tensor, noise_variance: Tensor, iterations: int
    ) -> Tensor:
        """How far images of this power move, in noise of this variance, (B, H, W)."""
        system = self._wiener.responses((power / noise_variance).to(x.dtype))
        assert isinstance(system, System)
        if self._misfit is None:
            residual = _spectrum(target - self._op.P(x)).mul_(system.from_image)
            w = torch.zeros_like(residual)
        else:
            # w at the solution is S^(1/2) / v^(1/2) times the misfit; where there is no noise but the white
            # part of C, that goes with its root
            misfit, before = self._misfit
            change = 1.0 if self._noise_variance is not None else (noise_variance / before).sqrt().to(x.dtype)
            w = misfit.mul_(system.from_image).mul_(torch.as_tensor(change)[..., None, None])
            ahead = self._wiener.image(w * system.to_image).add_(x)
            residual = _spectrum(target - self._op.P(ahead)).mul_(system.from_image).sub_(w)
        w = self._wiener.conjugate_gradients(w, residual, system, iterations)
        moved = self._wiener.image(w * system.to_image)
        tiny = torch.finfo(w.dtype).tiny ** 0.5
        self._misfit = w.div_(system.from_image.clamp_min(tiny)), noise_variance
        return moved


class PosteriorSampler:
    """Images from the posterior of a learned prior: draws, or what is left of them once noise is gone.

    Parameters
    ----------
    wiener : Wiener
        Has the linear system of the operator and the session.
    evaluations : int
        Of the prior, for every image.
    start : float or "auto" or "noise"
        Noise level to begin from: a draw of the Gaussian posterior with so much noise, as far as nothing was
        measured; auto: by what that posterior leaves open; noise: pure noise, in which no image would show.
    is_draw : bool
        Go down to where no noise is left. Else end at the measurement's own noise, with the prior's mean
        there: of what was measured that is the posterior's mean, not a draw.
    """

    def __init__(
        self,
        wiener: Wiener,
        evaluations: int,
        start: float | Literal["auto", "noise"] = "auto",
        is_draw: bool = True,
    ) -> None:
        self._wiener, self._op = wiener, wiener.op
        self._evaluations = evaluations
        self._start: float | Literal["auto", "noise"] = start
        self._is_draw = is_draw

    def __call__(
        self,
        prior: Denoiser,
        minimum_norm: Tensor,
        power: Tensor,
        noise_variance: Tensor | None,
        noise: FrameNoise,
    ) -> Tensor:
        """One image for each minimum-norm image.

        Parameters
        ----------
        prior : Denoiser
            Of images in its own units, as all that follows.
        minimum_norm : Tensor
            (B, H, W), kept.
        power, noise_variance : Tensor
            As in ``DataStep``.
        noise : FrameNoise
            Of these images.

        Returns
        -------
        Tensor
            (B, H, W).
        """
        if noise_variance is not None:
            # the prior knows no lower level, and sees that much noise as none
            noise_variance = noise_variance.clamp_min(float(prior.schedule.sigma[0]) ** 2)
        levels, above = self.levels(prior.schedule, power, noise_variance)
        step = DataStep(self._wiener, minimum_norm, power, noise_variance)

        def on(values: Tensor) -> Tensor:
            return column(values).to(minimum_norm)

        if self._start == "noise":
            x = torch.zeros_like(minimum_norm)
        else:
            x = self._gaussian_draw(minimum_norm, power, noise_variance, noise)
        white = noise.draw(minimum_norm)
        x.addcmul_(white, on(levels[:, 0]))
        shares = (levels[:, 1:] / levels[:, :-1]).square()
        strides = shares.log()
        told, before = x, None
        for i in range(self._evaluations):
            sigma = levels[:, i]
            hidden = None
            if i <= above:  # what was measured is known but for its own noise
                x.sub_(self._op.P(x)).add_(minimum_norm)
            if i < above:
                hidden = self._op.P(white)
                x.addcmul_(hidden, on(step.added(sigma)))
            a, _ = prior.schedule.scales(sigma)
            told = prior.x0(x * on(a), sigma)
            if hidden is not None:
                told = step.after(told, sigma, hidden)
            if i == self._evaluations - 1:
                break
            share = shares[:, i]
            x.mul_(on(share))
            if before is None:
                x.addcmul_(told, on(1 - share))
            else:
                # A long step does not go on from a short one as far as it would: what changed along a short
                # one was mostly noise.
                bend = (strides[:, i] / (2 * strides[:, i - 1])).clamp_max(0.5)
                x.addcmul_(told, on((1 - share) * (1 + bend)))
                x.addcmul_(before, on((share - 1) * bend))
            white = noise.draw(minimum_norm)
            x.addcmul_(white, on(levels[:, i + 1] * (1 - share).sqrt()))
            before = told
        return told

    def levels(self, schedule: Schedule, power: Tensor, noise_variance: Tensor | None) -> tuple[Tensor, int]:
        """The noise levels to ask the prior at, and the first that is not above the measurement's own.

        Parameters
        ----------
        schedule : Schedule
            Of the prior.
        power, noise_variance : Tensor
            As in ``DataStep``.

        Returns
        -------
        levels : Tensor
            (B, evaluations) or (1, evaluations) float64 on the CPU, falling in equal ratios: to the
            measurement's own noise, and for draws most of them on from there.
        above : int
            How many are above it; all where the measurement is exact.
        """
        lowest, highest = float(schedule.sigma[0]), float(schedule.sigma[-1])
        largest, mean = (value.cpu() for value in self._uncertainty(power, noise_variance))
        start = START * largest if isinstance(self._start, str) else torch.full_like(largest, self._start)
        if self._start == "noise":
            start = DROWNED * power.amax(1).sqrt().cpu()
        end = (END * mean).clamp(lowest, highest)
        if noise_variance is None:
            start = torch.maximum(start, LEAST_COVER * end).clamp(2 * lowest, highest)
            return _falling(start, torch.minimum(end, start / 2), self._evaluations), self._evaluations
        own = noise_variance.sqrt().cpu()
        start = torch.maximum(start.clamp_max(highest), LEAST_COVER * own)
        if not self._is_draw or self._evaluations == 1:
            return _falling(start, own, self._evaluations), self._evaluations - 1
        above = 2 * self._evaluations // (5 if self._start == "noise" else 8)
        down = _falling(own, torch.minimum(end, own / 2), self._evaluations - above)
        return torch.cat([_falling(start, own, above + 1)[:, :-1], down], 1), above

    def _uncertainty(self, power: Tensor, noise_variance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Standard deviation of a coefficient under the Gaussian posterior: largest and mean, (B,)."""
        rings = self._wiener.estimate.rings.to(power.device)
        measured = self._wiener.estimate.response.to(power.device)
        if isinstance(self._op, CodedAperture):
            white = power.amin(1, keepdim=True) if noise_variance is None else noise_variance[:, None]
            worst = variance = power / (1 + measured * power / white)
        else:
            known = torch.zeros_like(power)
            if noise_variance is not None:
                known = power * noise_variance[:, None] / (power + noise_variance[:, None])
            variance = measured * known + (1 - measured) * power
            worst = torch.where(measured < ALL_MEASURED, power, known)
        return worst.amax(1).sqrt(), (variance @ rings.count / rings.count.sum()).sqrt()

    def _gaussian_draw(
        self, like: Tensor, power: Tensor, noise_variance: Tensor | None, noise: FrameNoise
    ) -> Tensor:
        """A draw of the Gaussian posterior: one of its prior, moved by how its measurement differs.

        That measurement has noise of its own (perturb and solve; Papandreou and Yuille, 2010).
        """
        rings = self._wiener.estimate.rings.to(like.device)
        root = power.sqrt().to(like.dtype)[:, rings.index][..., None]
        drawn = self._wiener.image(_spectrum(noise.draw(like)).mul_(root))
        if noise_variance is not None:
            spoilt = noise.draw(like).mul_(column(noise_variance.sqrt()).to(like.dtype))
            like = like - self._op.P(spoilt)
        return DataStep(self._wiener, like, power, noise_variance).linear(drawn)


def _falling(start: Tensor, end: Tensor, count: int) -> Tensor:
    """Equal ratios from start to end, (B,) each -> (B, count); one alone is the end."""
    share = (
        torch.linspace(0, 1, count, dtype=start.dtype, device=start.device) if count > 1 else end.new_ones(1)
    )
    return start[:, None] ** (1 - share) * end[:, None] ** share


def _spectrum(images: Tensor) -> Tensor:
    """Half-plane spectra as pairs of real numbers, (B, H, W//2+1, 2)."""
    return torch.view_as_real(torch.fft.rfft2(images, norm="ortho"))


def _measured_coefficients(op: LinearOperator) -> Tensor:
    """1 where P, diagonal in Fourier space, keeps a coefficient, else 0: what it makes of a point."""
    point = torch.zeros(1, *op.shape, dtype=torch.float64)
    point[0, 0, 0] = math.prod(op.shape) ** 0.5
    return torch.fft.rfft2(op.P(point), norm="ortho")[0].real.round()
