"""Pictures of single frames, from what is on disk."""

from __future__ import annotations

import io
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.operators.base import LinearOperator
from common.operators.spec import MaskSpec
from common.wire.messages import MalformedMessage
from reconstructor.archive import read_frame, read_reference
from reconstructor.writer import read_recovered

OPERATORS_KEPT = 4
CONTRAST_PERCENTILES = (1.0, 99.0)


class NoPicture(LookupError):
    """There is no such picture of that frame (yet); the message says why."""


class View(StrEnum):
    """What to look at."""

    REFERENCE = "reference"
    MEASUREMENT = "measurement"
    RECOVERED = "recovered"
    RESIDUAL = "residual"


def picture(output: str | Path, frame_id: int, view: View, size: int | None = None) -> bytes:
    """A view of a frame as an 8-bit grey PNG, its longer side ``size`` pixels (none: as it is).

    Raises
    ------
    NoPicture
        If the frame is not recovered (yet), or was not sent whole and its reference is asked for.
    """
    try:
        return png(_values(Path(output), frame_id, view), size)
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


def _measurement(output: Path, frame_id: int) -> tuple[LinearOperator, torch.Tensor]:
    """The operator that a frame was taken with, and its measurement (1, *measurement_shape)."""
    configuration, values = read_frame(output, frame_id)
    operator = _operator(configuration.mask.model_dump_json(), configuration.shape)
    return operator, torch.from_numpy(values.astype(np.float32))[None]


@lru_cache(maxsize=OPERATORS_KEPT)
def _operator(mask: str, shape: tuple[int, int]) -> LinearOperator:
    return MaskSpec.model_validate_json(mask).build(shape)


def png(values: np.ndarray, size: int | None = None) -> bytes:
    """An array (h, w) as a grey picture; values beyond the outer percentiles are black or white."""
    values = np.asarray(values, dtype=np.float32)
    low, high = np.percentile(values, CONTRAST_PERCENTILES)
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
