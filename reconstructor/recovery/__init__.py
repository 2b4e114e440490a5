"""Recovery: measurements back to images. A new method is one file and one line in ``METHODS``.

``recover(y, op, method="dct")`` for a batch in hand; ``Recovery(op, spec, calibration)`` for many batches of
one configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from common.calibration import Calibration
from common.operators import LinearOperator
from common.session import RecoverySpec
from reconstructor.recovery.base import Method, Parameters, Recovered, no_images
from reconstructor.recovery.diffusion import Diffusion
from reconstructor.recovery.minimum_norm import MinimumNorm
from reconstructor.recovery.sparse import CosineRecovery, WaveletRecovery
from reconstructor.recovery.total_variation import TotalVariation
from reconstructor.recovery.wiener import Wiener

__all__ = ["METHODS", "Recovered", "Recovery", "check_recovery", "recover"]

METHODS: dict[str, type[Method]] = {
    "minimum_norm": MinimumNorm,
    "wiener": Wiener,
    "dct": CosineRecovery,
    "wavelet": WaveletRecovery,
    "tv": TotalVariation,
    "diffusion": Diffusion,
}


def check_recovery(spec: RecoverySpec) -> Parameters:
    """The parameters of a recovery, checked, without building it.

    Raises
    ------
    ValueError
        One line that names the method or parameter that is unknown or out of its range, and what is allowed.
    """
    model = METHODS[spec.method].parameters_model
    try:
        return model(**spec.parameters)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            allowed = ", ".join(model.model_fields) or "none"
            raise ValueError(
                f"recovery {spec.method}: unknown parameter {name!r}; its parameters are: {allowed}"
            ) from error
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"recovery {spec.method}: {name}: {reason}, got {first['input']!r}") from error


class Recovery:
    """A recovery for one operator: built once per configuration, then called with batches.

    Parameters
    ----------
    op : LinearOperator
        What measured the frames.
    spec : RecoverySpec
        Method, parameters, and the share of the measurements kept out for the free residual.
    calibration : Calibration or None
        The session's reference frames in numbers; without it, what is needed comes from each measurement.

    Raises
    ------
    ValueError
        For an unknown or wrong parameter, or a calibration of another frame shape.
    """

    def __init__(
        self, op: LinearOperator, spec: RecoverySpec, calibration: Calibration | None = None
    ) -> None:
        parameters = check_recovery(spec)
        self.op = op
        self.spec = spec
        self.working, self.held_out = op, None
        if spec.free_share > 0:
            self.working, held_out = op.hold_out(spec.free_share)
            self.held_out = held_out.flatten().nonzero()[:, 0] if bool(held_out.any()) else None
        self.method = METHODS[spec.method](self.working, parameters, calibration)
        self._flat = op.A(torch.ones(1, *op.shape))

    @torch.no_grad()
    def __call__(self, y: Tensor, frame_ids: Sequence[int] | None = None) -> Recovered:
        """Images of a batch of measurements.

        Parameters
        ----------
        y : Tensor
            (B, *measurement_shape); integers are taken as float32.
        frame_ids : sequence of int, optional
            (B,) which frames these are, for methods that draw noise: a frame's image then depends on its
            number and its measurement only. By default 0 to B - 1.

        Returns
        -------
        Recovered
            Images (B, H, W), and (B,) figures of each, on the device of ``y``.

        Raises
        ------
        ValueError
            If ``y`` has not the operator's measurement shape, or there are not as many frame numbers.
        """
        self.op.check_measurements(y)
        frame_ids = range(len(y)) if frame_ids is None else frame_ids
        if len(frame_ids) != len(y):
            raise ValueError(f"frame_ids: {len(frame_ids)} numbers for {len(y)} measurements")
        y = self.op.as_real(y)
        flat = self._flat_measurement(y)
        level = self.working.mean_level(y)
        about_level = y - level.view(-1, *[1] * (y.ndim - 1)) * flat
        images = self.working.A_dagger(about_level)
        prior_shift, spreads = no_images(images), []
        size = self._chunk(images)
        for first in range(0, len(images), size):
            here = slice(first, first + size)
            chunk = images[here]
            estimate = self.method.recover(chunk, frame_ids[here])
            if estimate.images is not chunk:
                chunk.copy_(estimate.images)
            if estimate.prior_shift is not None:
                prior_shift[here] = estimate.prior_shift
            if estimate.spread is not None:
                spreads.append(estimate.spread)
        free_residual = self._free_residual(images, about_level)
        spread = torch.cat(spreads) if spreads else None
        return Recovered(images.add_(level[:, None, None]), free_residual, prior_shift, spread)

    def _flat_measurement(self, like: Tensor) -> Tensor:
        if self._flat.device != like.device or self._flat.dtype != like.dtype:
            self._flat = self.op.A(torch.ones(1, *self.op.shape, dtype=like.dtype, device=like.device))
        return self._flat

    def _chunk(self, images: Tensor) -> int:
        if images.is_cuda:
            return max(len(images), 1)
        return max(self.method.chunk_pixels // (images.shape[1] * images.shape[2]), 1)

    def _free_residual(self, images: Tensor, about_level: Tensor) -> Tensor:
        """Error in predicting what was held out, over that of predicting the mean level."""
        if self.held_out is None:
            return no_images(images)
        held_out = self.held_out.to(images.device)
        measured = about_level.flatten(1)[:, held_out]
        predicted = self.op.A(images).flatten(1)[:, held_out]
        return (measured - predicted).norm(dim=1) / measured.norm(dim=1)


def recover(
    y: Tensor,
    op: LinearOperator,
    method: str = "dct",
    *,
    calibration: Calibration | None = None,
    free_share: float = 0.0,
    frame_ids: Sequence[int] | None = None,
    **parameters: Any,
) -> Tensor:
    """Images from measurements.

    Parameters
    ----------
    y : Tensor
        (B, *op.measurement_shape).
    op : LinearOperator
        What measured them.
    method : str
        One of ``METHODS``.
    calibration : Calibration, optional
        Statistics of reference frames.
    free_share : float
        Share of the measurements not to use.
    frame_ids : sequence of int, optional
        (B,) which frames these are, see ``Recovery``.
    **parameters
        The method's own; defaults by the mask's kind where not given.

    Returns
    -------
    Tensor
        (B, H, W), floating point.

    Raises
    ------
    ValueError
        For an unknown method or parameter, or a value out of its range.
    """
    if method not in METHODS:
        raise ValueError(f"recovery: unknown method {method!r}; choose one of {', '.join(METHODS)}")
    spec = RecoverySpec(method=method, parameters=parameters, free_share=free_share)  # pyright: ignore[reportArgumentType]
    return Recovery(op, spec, calibration)(y, frame_ids).images
