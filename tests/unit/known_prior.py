"""A prior that is known in closed form, with a card, so that it can stand where a network would."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from common.rings import radial_bins
from reconstructor.priors.base import PriorCard, Schedule, VariancePreserving
from reconstructor.priors.gaussian import GaussianPrior

SIGNAL_STD = 0.3


def card(content: Literal["clean", "frames"] = "clean") -> PriorCard:
    return PriorCard(
        name="known", content=content, prediction="epsilon", side_pixels=64, pixel_size_angstrom=None,
        signal_std=SIGNAL_STD, trained_on="nothing: it is known", images=0, steps=0, batch=0, parameters=0,
    )  # fmt: skip


def spectrum(shape: tuple[int, int], corner: float = 0.1) -> Tensor:
    """Power on rings, falling beyond ``corner`` cycles a pixel, of images of ``SIGNAL_STD``."""
    index = radial_bins(shape)
    power = 1 / (1 + (torch.arange(int(index.max()) + 1).double() / max(shape) / corner) ** 4)
    variance = torch.fft.irfft2(power[index], s=shape, norm="backward")[0, 0]
    return power * SIGNAL_STD**2 / variance


class KnownPrior:
    """Gaussian images of that spectrum, of whatever shape it is asked for."""

    def __init__(self, content: Literal["clean", "frames"] = "clean") -> None:
        self.card = card(content)
        self.asked: list[tuple[int, float]] = []
        self._priors: dict[tuple[int, int], GaussianPrior] = {}
        self._schedule = VariancePreserving()

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    def x0(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        shape = (x_t.shape[1], x_t.shape[2])
        if shape not in self._priors:
            self._priors[shape] = GaussianPrior(spectrum(shape), shape, self._schedule)
        self.asked.append((len(x_t), float(sigma.max())))
        return self._priors[shape].x0(x_t, sigma)
