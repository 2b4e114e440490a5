"""One file of frames, MRC or TIFF: what both can do, and the source that reads one from end to end."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.roots import ANYWHERE, NotAllowed, Roots
from detector_sim.sources.base import (
    BadFile,
    FrameBatch,
    Source,
    SourceError,
    choose_pixel_size,
    optics_row,
)
from detector_sim.sources.mrc import MrcStack
from detector_sim.sources.tiff import TiffStack

MRC_SUFFIXES = frozenset({".mrc", ".mrcs", ".map", ".st", ".rec", ".ali"})
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})


class Stack(Protocol):
    """An open file of ``count`` frames of one shape and dtype."""

    path: Path
    count: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    pixel_size_angstrom: float | None  # None: the file does not say

    def frames(self, first: int, count: int) -> np.ndarray:
        """Frames first .. first+count-1, (count, H, W), a fresh array of ``dtype``.

        Raises
        ------
        SourceError
            If they cannot be read or decoded.
        """
        ...

    def close(self) -> None:
        """Let go of the file; may be called again."""
        ...


def open_stack(path: Path, inputs: Roots = ANYWHERE) -> Stack:
    """Open an MRC or TIFF file, by its suffix; ``inputs``: what may be read.

    Raises
    ------
    SourceError
        One line that says why the file cannot be used.
    """
    suffix = path.suffix.lower()
    try:
        status = inputs.status(path)
    except NotAllowed as error:
        raise SourceError(str(error)) from error
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise SourceError(f"{path}: is a folder, a file of frames was expected")
    if status.st_size == 0 and stat.S_ISREG(status.st_mode):
        raise SourceError(f"{path}: the file is empty; write it again or leave it out")
    if suffix not in MRC_SUFFIXES | TIFF_SUFFIXES:
        raise SourceError(f"{path}: not a kind of file that is known; give .mrc, .mrcs, .tif or .star")
    try:
        return MrcStack(path, inputs) if suffix in MRC_SUFFIXES else TiffStack(path, inputs)
    except NotAllowed as error:
        raise SourceError(str(error)) from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error


class StackSource(Source):
    """All frames of one MRC or TIFF file, in order."""

    def __init__(
        self, path: Path, pixel_size_angstrom: float | None = None, inputs: Roots = ANYWHERE
    ) -> None:
        self._stack = open_stack(path, inputs)
        self.shape = self._stack.shape
        self.dtype = self._stack.dtype
        self.frame_count = self._stack.count
        self.pixel_size_angstrom = choose_pixel_size(
            pixel_size_angstrom, self._stack.pixel_size_angstrom, path
        )
        self.optics: dict[str, Any] = optics_row(self.shape, self.pixel_size_angstrom)
        self.bad_files: list[BadFile] = []
        self._next = 0

    def read(self, count: int) -> FrameBatch | None:
        """The next frames, read in one go; None after the last.

        Raises
        ------
        SourceError
            If a frame cannot be read or decoded.
        """
        count = min(count, self._stack.count - self._next)
        if count <= 0:
            return None
        first = self._next
        frames = self._stack.frames(first, count)
        self._next += count
        name = self._stack.path.name
        names = [f"{number:06d}@{name}" for number in range(first + 1, first + count + 1)]
        return FrameBatch(frames, {"rlnImageName": names})

    def seek(self, frame: int) -> bool:
        """Any frame of the file can be read at any time."""
        self._next = frame
        return True

    def close(self) -> None:
        """Let go of the file."""
        self._stack.close()
