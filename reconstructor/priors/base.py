"""What every learned prior is: a denoiser with its noise levels, and a card that says what it knows.

Everything meets at x_t = a x0 + s e, e white noise of variance one: a prior gives back the mean of x0 for an
x_t at a noise level sigma = s / a. Diffusion models and flows differ only in (a, s) along the way, so the
samplers know neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Content = Literal["clean", "frames"]
Prediction = Literal["epsilon", "v_prediction", "flow"]


class PriorCard(BaseModel):
    """What a prior was trained on and how its images are scaled; travels with it as ``card.json``.

    A prior's images are about mean level zero; ``signal_std`` says how strong a typical one is, so that a
    session's images can be brought to the same scale.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    content: Content = Field(
        description="clean: images without noise; frames: as recorded, so that noise is part of the image"
    )
    prediction: Prediction = Field(description="what the network gives: noise, or a velocity")
    side_pixels: int = Field(ge=8, description="side of the training images")
    pixel_size_angstrom: tuple[float, float] | None = Field(
        description="smallest and largest trained on; none: not known"
    )
    signal_std: float = Field(gt=0, description="of the training images' pixels, as the network sees them")
    trained_on: str = Field(description="in one line for people: data, specimens, defocus, dose")
    images: int = Field(ge=0, description="different training images; 0: not known")
    steps: int = Field(ge=0, description="optimiser steps; 0: not known")
    batch: int = Field(ge=0, description="images per step; 0: not known")
    parameters: int = Field(ge=0, description="weights of the network")
    loss: float | None = Field(default=None, description="mean over the last steps")
    scores: dict[str, float] = Field(default_factory=dict, description="on images held out")


class Schedule(ABC):
    """The noise levels of a prior.

    Attributes
    ----------
    sigma : Tensor
        (T,) float64, rising: noise over signal, s / a, at each of the levels it was trained with; of a flow,
        which knows them all, 1000.
    """

    sigma: Tensor

    @abstractmethod
    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s) of x_t = a x0 + s e at noise levels of any shape."""

    @abstractmethod
    def time(self, sigma: Tensor) -> Tensor:
        """What the network is told of noise levels, of any shape."""


class VariancePreserving(Schedule):
    """A diffusion model's: a^2 + s^2 = 1, a^2 the product of 1 - beta so far.

    Parameters
    ----------
    betas : Tensor, optional
        (T,) variances added at each step; by default the 1000 of Ho et al. (2020), 1e-4 to 0.02.
    """

    def __init__(self, betas: Tensor | None = None) -> None:
        self.betas = torch.linspace(1e-4, 0.02, 1000).double() if betas is None else betas.double()
        self.signal_share = torch.cumprod(1 - self.betas, 0)
        self.sigma = ((1 - self.signal_share) / self.signal_share).sqrt()

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s), with a^2 + s^2 = 1."""
        a = 1 / (1 + sigma.square()).sqrt()
        return a, sigma * a

    def time(self, sigma: Tensor) -> Tensor:
        """The step, 0 to T - 1; between two of them where log sigma lies."""
        levels = self.sigma.log().to(sigma.device)
        wanted = sigma.double().log()
        after = torch.searchsorted(levels, wanted).clamp(1, len(levels) - 1)
        share = (wanted - levels[after - 1]) / (levels[after] - levels[after - 1])
        return (after - 1 + share).clamp(0, len(levels) - 1).to(sigma.dtype)


class Flow(Schedule):
    """A straight path from image to noise: x_t = (1 - t) x0 + t e."""

    def __init__(self) -> None:
        t = torch.linspace(0, 1, 1002, dtype=torch.float64)[1:-1]
        self.sigma = t / (1 - t)

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s), with a + s = 1."""
        t = sigma / (1 + sigma)
        return 1 - t, t

    def time(self, sigma: Tensor) -> Tensor:
        """1000 t, t = sigma / (1 + sigma): the networks' sines and cosines of time are made for steps."""
        return 1000 * sigma / (1 + sigma)


class Denoiser(Protocol):
    """A prior as the samplers see it."""

    @property
    def schedule(self) -> Schedule:
        """Its noise levels."""
        ...

    def x0(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Mean of x0 given x_t = a x0 + s e.

        Parameters
        ----------
        x_t : Tensor
            (B, H, W).
        sigma : Tensor
            () or (1,), the noise level s / a of all, or (B,) that of each.

        Returns
        -------
        Tensor
            (B, H, W), of the type of ``x_t``.
        """
        ...
