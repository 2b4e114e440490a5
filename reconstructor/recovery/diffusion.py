"""Recovery with a learned prior: images drawn from what prior and measurement leave open.

Two samplers: ``posterior``, which keeps the measurement exactly at every step, and ``nesterov``, the paper's.
Both see images in the prior's own units; the scale comes from the spectrum of the session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from common.calibration import Calibration
from common.operators import CodedAperture, LinearOperator
from reconstructor.priors import load_prior
from reconstructor.priors.base import Denoiser, PriorCard
from reconstructor.recovery.base import Estimate, Method, Parameters, column
from reconstructor.recovery.nesterov import NesterovSampler
from reconstructor.recovery.noise import FrameNoise
from reconstructor.recovery.posterior import DataStep, PosteriorSampler
from reconstructor.recovery.wiener import Wiener, WienerParameters

EVALUATIONS = {"posterior": 20, "nesterov": 1000}
# of one of the images whose mean is the posterior's; more of those do more than more of these
EVALUATIONS_OF_MEAN = 5
OF_SAMPLER = {
    "start": "posterior",
    "batch_norm": "nesterov",
    "kappa_min": "nesterov",
    "kappa_max": "nesterov",
    "zeta_min": "nesterov",
    "zeta_max": "nesterov",
}
# kernel size from which the authors take ten times the step
LARGE_KERNEL = 32
# Power of signal over that of noise is not told below it: a frame that seems to hold nothing but noise would
# else be blown up without bounds.
LEAST_SIGNAL = 1e-4
# of the noise: no coefficient is known to be empty
LEAST_POWER = 1e-6
# pixels of all samples worked on together on a GPU
CUDA_PIXELS = 1_048_576


class LearnedPrior(Denoiser, Protocol):
    """A denoiser with its card."""

    @property
    def card(self) -> PriorCard:
        """What it knows, and the scale of its images."""
        ...


class DiffusionParameters(Parameters):
    """Parameters of ``diffusion``."""

    prior: str = Field("small", min_length=1, description="name of a prior in the box, or a folder")
    sampler: Literal["posterior", "nesterov"] = Field(
        "posterior", description="posterior: exact data steps; nesterov: cryoSENSE's Algorithm 1"
    )
    evaluations: int | None = Field(
        None, ge=1, le=1000, validate_default=True,
        description="of the network, per image; of each sample where there are several; "
        "none: posterior 20, nesterov 1000",
    )  # fmt: skip
    samples: int = Field(
        1, ge=1, le=1000,
        description="1: the posterior's mean; more: so many draws, in pairs of opposite noise, with their "
        "mean and spread; nesterov only draws",
    )  # fmt: skip
    seed: int = Field(0, ge=0, lt=2**53)
    start: float | Literal["auto", "noise"] | None = Field(
        None,
        description="posterior: noise level to begin from, in the prior's units, with a draw of the Gaussian "
        "posterior; auto: by what that leaves open; noise: pure noise",
    )
    batch_norm: bool | None = Field(
        None, description="nesterov: gradients over their norm in the whole batch, as in the authors' code"
    )
    kappa_min: float | None = Field(None, ge=0, lt=1, description="nesterov: momentum at first, 0.1")
    kappa_max: float | None = Field(None, ge=0, lt=1, description="nesterov: momentum at last, 0.9")
    zeta_min: float | None = Field(None, ge=0, le=1000, description="nesterov: step at first, 1e-10")
    zeta_max: float | None = Field(
        None, ge=0, le=1000, description="nesterov: step at last, of 1000; 1, for kernels of 32 pixels 10"
    )

    @field_validator("evaluations")
    @classmethod
    def _usual(cls, value: int | None, info: ValidationInfo) -> int | None:
        return EVALUATIONS.get(info.data.get("sampler", "")) if value is None else value

    @field_validator(*OF_SAMPLER)
    @classmethod
    def _belongs(cls, value: Any, info: ValidationInfo) -> Any:
        sampler, owner = info.data.get("sampler"), OF_SAMPLER[info.field_name or ""]
        if value is not None and sampler is not None and sampler != owner:
            raise ValueError(f"a parameter of sampler {owner}; {sampler} has none such")
        return value

    @field_validator("start")
    @classmethod
    def _positive(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, float) and not 0 < value < float("inf"):
            raise ValueError("must be above 0")
        return value


class Diffusion(Method):
    """Samples of the posterior under a learned prior.

    The network is loaded with the first frames, on their device.

    Parameters
    ----------
    op : LinearOperator
        Measures the frames.
    parameters : DiffusionParameters
        Which prior, and how it is used.
    calibration : Calibration or None
        Of the session. Without it scale, spectrum and noise come from each frame's own measurement.
    prior : LearnedPrior, optional
        In place of the one that ``parameters`` name.
    """

    parameters_model = DiffusionParameters
    chunk_pixels = 65_536

    def __init__(
        self,
        op: LinearOperator,
        parameters: DiffusionParameters,
        calibration: Calibration | None,
        prior: LearnedPrior | None = None,
    ) -> None:
        self.parameters = parameters
        self.wiener = Wiener(op, WienerParameters.model_validate({}), calibration)
        assert parameters.evaluations is not None  # its validator has filled it in
        self._prior = prior
        # One mean is taken of several images, pairs of opposite noise: better than one of more evaluations.
        self._share = 1
        if parameters.sampler == "posterior" and parameters.samples == 1 and parameters.evaluations > 1:
            self._share = 2 * max(parameters.evaluations // (2 * EVALUATIONS_OF_MEAN), 1)
        self._posterior: PosteriorSampler | None = None
        self._nesterov: NesterovSampler | None = None
        if parameters.sampler == "posterior":
            start = "auto" if parameters.start is None else parameters.start
            self._posterior = PosteriorSampler(
                self.wiener, max(parameters.evaluations // self._share, 1), start, parameters.samples > 1
            )
            return
        is_large = isinstance(op, CodedAperture) and op.kernel_size >= LARGE_KERNEL
        self._nesterov = NesterovSampler(
            op,
            parameters.evaluations,
            kappa=(_given(parameters.kappa_min, 0.1), _given(parameters.kappa_max, 0.9)),
            zeta=(_given(parameters.zeta_min, 1e-10), _given(parameters.zeta_max, 10.0 if is_large else 1.0)),
            batch_norm=bool(parameters.batch_norm),
        )

    def __call__(self, minimum_norm: Tensor) -> Tensor:
        """Images of frames 0 to B - 1, (B, H, W)."""
        return self.recover(minimum_norm, range(len(minimum_norm))).images

    def recover(self, minimum_norm: Tensor, frame_ids: Sequence[int]) -> Estimate:
        """Means of the samples, how far they are from the linear estimate, and the samples' spread."""
        prior = self.prior_on(minimum_norm.device)
        scale, power, noise_variance = self._in_prior_units(minimum_norm, prior.card)
        target = minimum_norm.mul_(column(scale))
        drawn = self._samples(prior, target, power, noise_variance, frame_ids)
        images = drawn.mean(1)
        linear = DataStep(self.wiener, target, power, noise_variance).linear(torch.zeros_like(target))
        moved, norm = (images - linear).flatten(1).norm(dim=1), linear.flatten(1).norm(dim=1)
        prior_shift = torch.where(norm > 0, moved / norm, torch.nan).float()
        spread = spread_of(drawn).div_(column(scale)) if self.parameters.samples > 1 else None
        return Estimate(images.div_(column(scale)), prior_shift, spread)

    def prior_on(self, device: torch.device) -> LearnedPrior:
        """The prior, on a device.

        Raises
        ------
        ValueError
            If there is none of this name, or its folder is not in order.
        """
        if self._prior is not None:
            return self._prior
        return load_prior(self.parameters.prior, device)

    def _in_prior_units(self, minimum_norm: Tensor, card: PriorCard) -> tuple[Tensor, Tensor, Tensor | None]:
        """Factor to the prior's units (B or 1,); there, power (B or 1, rings) and noise variance or None."""
        spectrum = self.wiener.estimate(minimum_norm)
        noise = spectrum.noise_variance.double()
        power = torch.maximum(spectrum.signal_power.double(), LEAST_POWER * noise[:, None])
        count = self.wiener.estimate.rings.to(power.device).count
        variance = torch.maximum(power @ count / count.sum(), LEAST_SIGNAL * noise)
        if card.content == "frames":  # noise is a part of the image
            power, variance = power + noise[:, None], variance + noise
        square = card.signal_std**2 / variance
        return (
            square.sqrt().to(minimum_norm.dtype),
            power * square[:, None],
            None if card.content == "frames" else noise * square,
        )

    def _samples(
        self,
        prior: LearnedPrior,
        target: Tensor,
        power: Tensor,
        noise_variance: Tensor | None,
        frame_ids: Sequence[int],
    ) -> Tensor:
        """Samples of all frames, (B, samples, H, W); where one mean is wanted, the images it is taken of."""
        count = self.parameters.samples * self._share
        drawn = target.new_empty(len(target) * count, *target.shape[1:])
        pixels = CUDA_PIXELS if target.is_cuda else self.chunk_pixels
        size = max(pixels // target.shape[1:].numel(), 1)
        for first in range(0, len(drawn), size):
            which = range(first, min(first + size, len(drawn)))
            frames = [number // count for number in which]
            noise = FrameNoise(
                self.parameters.seed,
                [int(frame_ids[frame]) for frame in frames],
                [number % count for number in which],
            )
            here = target[frames]
            if self._nesterov is not None:
                sample = self._nesterov(prior, here, noise)
            else:
                assert self._posterior is not None
                own_power = power if len(power) == 1 else power[frames]
                own_noise = noise_variance
                if noise_variance is not None and len(noise_variance) > 1:
                    own_noise = noise_variance[frames]
                sample = self._posterior(prior, here, own_power, own_noise, noise)
            drawn[first : which.stop] = sample
        return drawn.view(len(target), count, *target.shape[1:])


def spread_of(samples: Tensor) -> Tensor:
    """Standard deviation over samples that come in pairs of opposite noise, (B, K, H, W) -> (B, H, W).

    Half the difference of a pair has all variance of a Gaussian posterior; of another the pairs' means have
    the rest, which shows from two pairs on. An odd last sample is left out.
    """
    pairs = samples[:, : samples.shape[1] // 2 * 2].unflatten(1, (-1, 2))
    variance = (pairs[:, :, 0] - pairs[:, :, 1]).square_().mean(1).div_(4)
    if pairs.shape[1] > 1:
        variance.add_(pairs.mean(2).var(1))
    return variance.sqrt_()


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
