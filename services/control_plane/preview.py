"""Pictures of single frames, from what is on disk."""

from __future__ import annotations

import io
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from common.operators.base import LinearOperator
from common.operators.spec import MaskSpec
from common.wire.messages import MalformedMessage
from reconstructor.archive import read_frame, read_reference
from reconstructor.writer import read_recovered

OPERATORS_KEPT = 4


class NoPicture(LookupError):
    """There is no such picture of that frame (yet); the message says why."""


class View(StrEnum):
    """What to look at."""

    REFERENCE = "reference"
    MEASUREMENT = "measurement"
    RECOVERED = "recovered"
    RESIDUAL = "residual"


class Scale(StrEnum):
    """Where black and white come from."""

    OWN = "own"
    REFERENCE = "reference"


class Contrast(NamedTuple):
    """What is black and what is white."""

    low: float = 1.0  # percentile
    high: float = 99.0  # percentile
    scale: Scale = Scale.OWN


DEFAULT = Contrast()


def picture(
    output: str | Path, frame_id: int, view: View, size: int | None = None, contrast: Contrast = DEFAULT
) -> bytes:
    """A view of a frame as an 8-bit grey PNG, its longer side ``size`` pixels (none: as it is).

    With the reference's scale a recovered image is drawn in the reference's range of grey, a residual in a
    range as wide as that around zero; a frame without a reference, and the other views, in their own.

    Raises
    ------
    NoPicture
        If the frame is not recovered (yet), or was not sent whole and its reference is asked for.
    """
    try:
        values = _values(Path(output), frame_id, view)
        return png(values, size, _grey_range(Path(output), frame_id, view, values, contrast))
    except KeyError:
        raise NoPicture(f"frame {frame_id} is not recovered (yet)") from None
    except (OSError, MalformedMessage, ValueError) as error:
        raise NoPicture(f"frame {frame_id} cannot be read: {error}") from error


def _values(output: Path, frame_id: int, view: View) -> np.ndarray:
    match view:
        case View.RECOVERED:
            return read_recovered(output, frame_id)
        case View.REFERENCE:
            reference = read_reference(output, frame_id)
            if reference is None:
                raise NoPicture(f"frame {frame_id} was not sent whole, so it has no reference")
            return reference
        case View.MEASUREMENT:
            operator, measurement = _measurement(output, frame_id)
            return operator.measurement_picture(measurement)[0].numpy()
        case View.RESIDUAL:
            operator, measurement = _measurement(output, frame_id)
            recovered = torch.from_numpy(read_recovered(output, frame_id).astype(np.float32))[None]
            return operator.A_dagger(measurement - operator.A(recovered))[0].numpy()


def _grey_range(
    output: Path, frame_id: int, view: View, values: np.ndarray, contrast: Contrast
) -> tuple[float, float]:
    percentiles = (contrast.low, contrast.high)
    if contrast.scale is Scale.REFERENCE and view in (View.RECOVERED, View.RESIDUAL):
        reference = read_reference(output, frame_id)
        if reference is not None:
            low, high = (float(value) for value in np.percentile(reference, percentiles))
            return (low, high) if view is View.RECOVERED else ((low - high) / 2, (high - low) / 2)
    low, high = np.percentile(values, percentiles)
    return float(low), float(high)


def _measurement(output: Path, frame_id: int) -> tuple[LinearOperator, torch.Tensor]:
    """The operator that a frame was taken with, and its measurement (1, *measurement_shape)."""
    configuration, values = read_frame(output, frame_id)
    operator = _operator(configuration.mask.model_dump_json(), configuration.shape)
    return operator, torch.from_numpy(values.astype(np.float32))[None]


@lru_cache(maxsize=OPERATORS_KEPT)
def _operator(mask: str, shape: tuple[int, int]) -> LinearOperator:
    return MaskSpec.model_validate_json(mask).build(shape)


def png(values: np.ndarray, size: int | None, grey_range: tuple[float, float]) -> bytes:
    """An array (h, w) as a grey picture; what is beyond the range is black or white."""
    values = np.asarray(values, dtype=np.float32)
    low, high = grey_range
    scale = 255 / (high - low) if high > low else 0.0  # a constant picture is mid-grey
    grey = ((values - low) * scale).clip(0, 255) if scale else np.full_like(values, 127.0)
    image = Image.fromarray(grey.round().astype(np.uint8))
    if size is not None:
        scale = size / max(image.size)
        sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(sides, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
