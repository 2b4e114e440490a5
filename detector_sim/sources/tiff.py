"""TIFF stacks, a page a frame, whatever lossless coding (LZW, Deflate, Zstd, ...), by tifffile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from common.roots import ANYWHERE, Roots
from detector_sim.sources.base import FRAME_DTYPES, SourceError
from detector_sim.sources.reasons import one_line
from detector_sim.sources.tiff_survey import check_opened

_PLAUSIBLE_PIXEL_ANGSTROM = (0.05, 100.0)  # resolution tags often hold 72 dots per inch
_NO_CONVENTIONS = {f"is_{name}": False for name in tifffile.TIFF.FILE_FLAGS}


class TiffStack:
    """An open TIFF file of grey pages; rows come in the file's order; half precision becomes float32."""

    def __init__(self, path: Path, inputs: Roots = ANYWHERE) -> None:
        self.path = path
        self._stream = inputs.open(path)
        try:
            check_opened(path, self._stream)
            self._open(path)
        except SourceError:
            self._stream.close()
            raise

    def _open(self, path: Path) -> None:
        self._stream.seek(0)
        try:
            # pages as they stand, whatever program's conventions for series and metadata the file follows
            self._file = tifffile.TiffFile(self._stream, **_NO_CONVENTIONS)
        except Exception as error:  # whatever its parser stumbles on
            raise SourceError(f"{path}: not a TIFF file ({one_line(error)})") from error
        try:
            pages = _pages(path, self._file)
            _check_pages(path, pages, os.fstat(self._stream.fileno()).st_size)
            self.pixel_size_angstrom = _pixel_size(pages[0])
            self.count = len(pages)
            self.shape = (int(pages[0].shape[0]), int(pages[0].shape[1]))
            stored = np.dtype(pages[0].dtype)
        except SourceError:
            raise
        except Exception as error:  # a value of another kind than the format has there
            raise SourceError(f"{path}: a page that makes no sense ({one_line(error)})") from error
        self.dtype: np.dtype[Any] = np.dtype(np.float32 if stored == np.float16 else stored)

    def frames(self, first: int, count: int) -> np.ndarray:
        """Frames first .. first+count-1, (count, H, W)."""
        frames = np.empty((count, *self.shape), self.dtype)
        for offset in range(count):
            try:
                frames[offset] = self._file.pages[first + offset].asarray()
            except Exception as error:  # decoders have each their own kinds
                page = f"{self.path}: page {first + offset + 1}"
                raise SourceError(f"{page} cannot be decoded ({one_line(error)})") from error
        return frames

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        self._stream.close()


def _pages(path: Path, file: tifffile.TiffFile) -> list[Any]:
    try:
        return list(file.pages)
    except Exception as error:  # of a page that is spoiled
        raise SourceError(f"{path}: a page cannot be read ({one_line(error)})") from error


def _check_pages(path: Path, pages: list[Any], size: int) -> None:
    """Raise SourceError, one line, unless every page is a grey image of one shape and dtype, all there."""
    if not pages:
        raise SourceError(f"{path}: a TIFF file without pages; write it again or leave it out")
    first = pages[0]
    for number, page in enumerate(pages, 1):
        if page.dtype is None:
            raise SourceError(f"{path}: page {number} has pixels of an unknown kind")
        if len(page.shape) != 2:
            raise SourceError(f"{path}: page {number} is in colour (RGB); single-channel images are needed")
        if not all(isinstance(side, int) and side > 0 for side in page.shape):
            raise SourceError(f"{path}: page {number} has no pixels")
        if page.shape != first.shape or page.dtype != first.dtype:
            raise SourceError(
                f"{path}: page {number} is {page.shape!s:.40} {page.dtype!s:.20}, "
                f"page 1 is {first.shape!s:.40} {first.dtype!s:.20}; frames of one stack must be alike"
            )
        ends = [start + length for start, length in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if max(ends, default=0) > size:
            raise SourceError(f"{path}: truncated: page {number} ends after the file does; copy it again")
    stored = str(first.dtype)
    if stored != "float16" and stored not in FRAME_DTYPES:
        known = ", ".join(sorted(FRAME_DTYPES))
        raise SourceError(f"{path}: pixels of type {stored:.40} cannot be used; {known} can")


def _pixel_size(page: Any) -> float | None:
    """Angstrom per pixel, where the resolution tags hold something plausible."""
    units = {2: 2.54e8, 3: 1e8}  # inch and centimetre, in angstrom
    unit, resolution = page.tags.get("ResolutionUnit"), page.tags.get("XResolution")
    if unit is None or resolution is None or unit.value not in tuple(units):
        return None
    try:
        pixels, length = resolution.value
        pixels, length = float(pixels), float(length)
    except (TypeError, ValueError):  # a spoiled tag costs the pixel size, not the file
        return None
    if not pixels or not length:
        return None
    size = units[int(unit.value)] * length / pixels
    low, high = _PLAUSIBLE_PIXEL_ANGSTROM
    return size if low <= size <= high else None
