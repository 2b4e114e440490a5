"""What every source of frames offers, wherever its frames come from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

log = logging.getLogger(__name__)

FRAME_DTYPES = frozenset({"int8", "uint8", "int16", "uint16", "float32"})
"""What a frame may be made of, in the machine's byte order."""


class SourceError(ValueError):
    """A source cannot be used. The message is one line: what was wrong, where, what to do."""


class BadFile(NamedTuple):
    """A file that was passed over while the session went on."""

    path: str
    reason: str


@dataclass(frozen=True)
class FrameBatch:
    """Consecutive frames as the source holds them.

    Attributes
    ----------
    frames : np.ndarray
        (b, H, W) of the source's dtype, C-contiguous, possibly read-only. b may be 0: nothing is there yet.
    metadata : dict[str, list[Any]] or None
        RELION particle columns without the leading underscore (``rlnDefocusU``, ``rlnAngleRot``,
        ``rlnImageName`` of the input, ...), each a list of b plain Python numbers or strings.
    """

    frames: np.ndarray
    metadata: dict[str, list[Any]] | None = None

    def __len__(self) -> int:
        return int(self.frames.shape[0])


class Source(Protocol):
    """Frames of one shape and dtype, in order. A context manager: leaving it closes it.

    Frames come as they are stored: what to do with NaN pixels is for whoever takes them to decide.

    Attributes
    ----------
    shape : tuple[int, int]
        (height, width) of every frame, pixels.
    dtype : np.dtype
        Of every frame: int8, uint8, int16, uint16 or float32, in the machine's byte order.
    pixel_size_angstrom : float
        Side of a pixel.
    frame_count : int or None
        How many frames there are in all; None where there is no end (simulator, pattern), where new ones
        may come (a watched folder), or where counting would mean opening every file (a folder).
    optics : dict[str, Any]
        One row of RELION's optics table: ``rlnOpticsGroup``, ``rlnOpticsGroupName``,
        ``rlnImagePixelSize``, ``rlnImageSize``, ``rlnImageDimensionality``, and where known
        ``rlnVoltage``, ``rlnSphericalAberration``, ``rlnAmplitudeContrast``.
    bad_files : list[BadFile]
        Files passed over so far, with the reason; grows while reading.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    pixel_size_angstrom: float
    frame_count: int | None
    optics: dict[str, Any]
    bad_files: list[BadFile]

    def read(self, count: int) -> FrameBatch | None:
        """The next frames, at most ``count`` (>= 1) and often fewer; None at the end.

        A watched folder without a new frame gives an empty batch after a short wait, so that the caller
        can look whether it should stop.
        """
        ...

    def seek(self, frame: int) -> bool:
        """Have ``read`` go on with this frame (from 0); False where frames cannot be had a second time."""
        return False

    def close(self) -> None:
        """Let go of files; may be called again."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def optics_row(shape: tuple[int, int], pixel_size_angstrom: float, **known: Any) -> dict[str, Any]:
    """A RELION optics row of 2D images of ``shape``; ``known`` adds or replaces columns."""
    return {
        "rlnOpticsGroup": 1,
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnImagePixelSize": pixel_size_angstrom,
        "rlnImageSize": shape[1],
        "rlnImageDimensionality": 2,
        **known,
    }


def choose_pixel_size(override: float | None, stated: float | None, where: Path) -> float:
    """The pixel size to use, angstrom: the user's, else the file's, else 1 with a warning."""
    if override is not None:
        return override
    if stated is not None:
        return stated
    log.warning("%s: states no pixel size; 1 angstrom is assumed (give pixel_size_angstrom)", where)
    return 1.0
