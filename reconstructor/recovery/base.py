"""What every recovery method is: a class built for one operator, called with minimum-norm images.

A method sees images about their mean level: ``Recovery`` (in the package) takes the level off the
measurement, forms the minimum-norm images x0 = A_dagger y, calls the method and puts the level back. From x0
and the operator's projector P everything else follows: |P x - x0|^2 is the whitened data misfit of any mask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from common.calibration import Calibration
from common.operators import CodedAperture, LinearOperator, PhasePlate

MaskKind = Literal["coded-aperture", "phase-plate", "none"]


def mask_kind(op: LinearOperator) -> MaskKind:
    """The kind of an operator's mask, by which defaults are chosen."""
    if isinstance(op, CodedAperture):
        return "coded-aperture"
    return "phase-plate" if isinstance(op, PhasePlate) else "none"


@dataclass(frozen=True)
class Recovered:
    """What comes back from a batch of measurements.

    Attributes
    ----------
    images : Tensor
        (B, H, W), in the frames' own units.
    free_residual : Tensor
        (B,), error in predicting the measurements kept out of the recovery, over that of the flat image of
        the same mean; NaN where none were kept out.
    prior_shift : Tensor
        (B,), how far a learned prior moved the image from the linear estimate, see ``Estimate``; NaN for
        methods without one.
    spread : Tensor or None
        (B, H, W), standard deviation of the samples where a method draws several; the frames' units.
    """

    images: Tensor
    free_residual: Tensor
    prior_shift: Tensor
    spread: Tensor | None = None


class Estimate(NamedTuple):
    """What a method makes of minimum-norm images.

    Attributes
    ----------
    images : Tensor
        (B, H, W) about mean level zero.
    prior_shift : Tensor or None
        (B,), |x - x_w| / |x_w|: x the image, x_w what a Gaussian prior of the same spectrum makes of the same
        measurement. None for methods without a learned prior.
    spread : Tensor or None
        (B, H, W), standard deviation over several samples.
    """

    images: Tensor
    prior_shift: Tensor | None = None
    spread: Tensor | None = None


class Parameters(BaseModel):
    """A method's parameters; None stands for the default found for the mask's kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def for_mask(self, defaults: dict[MaskKind, dict[str, Any]], op: LinearOperator) -> Self:
        """These parameters with every None replaced by the default of the operator's mask."""
        chosen = defaults[mask_kind(op)]
        missing = {name: value for name, value in chosen.items() if getattr(self, name) is None}
        return self.model_copy(update=missing)


class Method(ABC):
    """A recovery method for one operator.

    Attributes
    ----------
    parameters_model : type[Parameters]
        What ``RecoverySpec.parameters`` may hold for this method.
    chunk_pixels : int
        Pixels worked on at a time on a CPU, so that the iterates stay in the cache.
    """

    parameters_model: ClassVar[type[Parameters]]
    chunk_pixels: ClassVar[int] = 131_072

    @abstractmethod
    def __init__(self, op: LinearOperator, parameters: Any, calibration: Calibration | None) -> None:
        """Prepare everything that does not depend on a measurement.

        Parameters
        ----------
        op : LinearOperator
            Measures the frames to come.
        parameters : Parameters
            An instance of ``parameters_model``.
        calibration : Calibration or None
            The session's reference frames in numbers.
        """

    @abstractmethod
    def __call__(self, minimum_norm: Tensor) -> Tensor:
        """Images (B, H, W) about mean level zero, from their minimum-norm images (B, H, W).

        May overwrite its input. An image's result does not depend on the others of its batch.
        """

    def recover(self, minimum_norm: Tensor, frame_ids: Sequence[int]) -> Estimate:
        """The same with what else the method has to tell of each image.

        Parameters
        ----------
        minimum_norm : Tensor
            (B, H, W), may be overwritten.
        frame_ids : sequence of int
            (B,) which frames these are: a method that draws noise draws each frame's own.
        """
        return Estimate(self(minimum_norm))


def column(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1), to multiply images with."""
    return values[:, None, None]


def no_images(like: Tensor) -> Tensor:
    """(B,) of NaN on the device of ``like``: a figure that was not measured."""
    return torch.full((like.shape[0],), torch.nan, dtype=torch.float32, device=like.device)
