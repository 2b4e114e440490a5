"""MRC and MRCS files (Cheng et al., J. Struct. Biol. 192, 146, 2015), by mrcfile's tables of the format.

A file of several sections is a stack of frames whatever its suffix. Mode 0 is signed, as the standard and
RELION have it. Many programs leave out the map stamp or the pixel size; such files are read as long as the
sizes fit. Frames are read, not memory-mapped: it is as fast, and a file that another program cuts short
under a memory map would kill the process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import byte_order_from_machine_stamp, data_dtype_from_header

from common.roots import ANYWHERE, Roots
from detector_sim.sources.base import SourceError

_HEADER_BYTES = 1024
_LARGEST_SIDE = 1 << 17
_MODES = (0, 1, 2, 6, 12)
_OTHER_MODES = {3: "complex integers", 4: "a complex transform", 16: "RGB", 101: "4-bit integers"}


class MrcStack:
    """An open MRC file; half-precision pixels (mode 12) become float32."""

    def __init__(self, path: Path, inputs: Roots = ANYWHERE) -> None:
        self.path = path
        self._file = inputs.open(path)
        try:
            self._take(_checked_header(path, self._file))
        except SourceError:
            self.close()
            raise

    def _take(self, header: np.recarray) -> None:
        self.count = int(header.nz)
        self.shape = (int(header.ny), int(header.nx))
        self._stored = data_dtype_from_header(header)
        native = self._stored.newbyteorder("=")
        self.dtype: np.dtype[Any] = np.dtype(np.float32) if native == np.float16 else native
        self._start = _HEADER_BYTES + max(0, int(header.nsymbt))
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes = (header.cella.x / header.mx, header.cella.y / header.my, header.cella.z / header.mz)
            self.voxel_size_angstrom = (float(sizes[0]), float(sizes[1]), float(sizes[2]))
        size = self.voxel_size_angstrom[0]
        # the header has single precision: 3.275, not 3.27500009
        self.pixel_size_angstrom = round(size, 6) if np.isfinite(size) and size > 0 else None

    def frames(self, first: int, count: int) -> np.ndarray:
        """Frames first .. first+count-1, (count, H, W), read in one go."""
        pixels = self.shape[0] * self.shape[1]
        self._file.seek(self._start + first * pixels * self._stored.itemsize)
        read = np.fromfile(self._file, self._stored, count * pixels)
        if len(read) < count * pixels:
            raise SourceError(f"{self.path}: truncated while it was being read; copy it again")
        return read.astype(self.dtype, copy=False).reshape(count, *self.shape)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _checked_header(path: Path, file: BinaryIO) -> np.recarray:
    """The header of an MRC file of images, all of them there.

    Raises
    ------
    SourceError
        One line, if it is not that.
    """
    size = os.fstat(file.fileno()).st_size
    if size < _HEADER_BYTES:
        raise SourceError(f"{path}: not an MRC file (shorter than an MRC header); check what wrote it")
    header = _header(file)
    has_stamp = header.map.tobytes() in (b"MAP ", b"MAP\0", b"MAP")
    mode = int(header.mode)
    sides = [int(header.nx), int(header.ny), int(header.nz)]
    known = mode in _MODES or mode in _OTHER_MODES
    if not has_stamp and not (known and all(0 <= side <= _LARGEST_SIDE for side in sides)):
        raise SourceError(f"{path}: not an MRC file (no map stamp, and its header makes no sense)")
    if mode not in _MODES:
        what = _OTHER_MODES.get(mode, "an unknown kind of pixels")
        raise SourceError(f"{path}: MRC mode {mode} ({what}) holds no images; modes 0, 1, 2, 6 and 12 do")
    if max(sides[:2]) > _LARGEST_SIDE:
        raise SourceError(f"{path}: {sides[1]} x {sides[0]} pixels; sides up to {_LARGEST_SIDE} can be read")
    if min(sides) <= 0:
        raise SourceError(f"{path}: the header says {sides[0]} x {sides[1]} x {sides[2]}: no pixels in it")
    pixels = sides[0] * sides[1] * sides[2]
    item = data_dtype_from_header(header).itemsize
    expected = _HEADER_BYTES + max(0, int(header.nsymbt)) + item * pixels
    if size < expected:
        raise SourceError(f"{path}: truncated: {size} of {expected} bytes are there; copy it again")
    if not has_stamp and size != expected:
        raise SourceError(f"{path}: not an MRC file (no map stamp, and sizes do not fit)")
    return header


def _header(file: BinaryIO) -> np.recarray:
    content = file.read(_HEADER_BYTES)
    header = np.frombuffer(content, HEADER_DTYPE).reshape(()).view(np.recarray)
    try:
        order = byte_order_from_machine_stamp(header.machst)
    except ValueError:  # no machine stamp: little endian, as nearly all are
        return header
    return np.frombuffer(content, HEADER_DTYPE.newbyteorder(order)).reshape(()).view(np.recarray)
