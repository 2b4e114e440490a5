"""Particles named by a RELION STAR file: 3.1 with an optics table, or the older one-table style.

Older columns come out as the newer ones: origins in angstrom instead of pixels; voltage, aberration,
amplitude contrast and pixel size in the optics row instead of in every particle's.
"""

from __future__ import annotations

import linecache
import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import starfile

from common.roots import ANYWHERE, NotAllowed, Roots
from detector_sim.sources.base import (
    BadFile,
    FrameBatch,
    Source,
    SourceError,
    choose_pixel_size,
    optics_row,
)
from detector_sim.sources.reasons import one_line
from detector_sim.sources.stack import Stack, open_stack

# What is parsed takes some ten times as many bytes; ten million particles are some 2 GB.
MAX_FILE_BYTES = 4_000_000_000
MAX_LINE_BYTES = 65_536
MAX_COLUMNS = 1000  # RELION has some two hundred in all

_OPEN_STACKS = 16
_MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
_NAMES = ("rlnImageName", "rlnMicrographName", "rlnGroupName", "rlnTomoName", "rlnOpticsGroupName")
_USUAL_MAGNIFICATION = 1e4  # files that give a pixel size in angstrom as rlnDetectorPixelSize leave it out


class StarSource(Source):
    """The particles of a STAR file in its order, with all their columns as metadata.

    Stacks are sought beside the STAR file and in the folders above it (a RELION project's root). All must
    be there, of one shape and dtype, and hold the images named: this is checked before the session runs.

    Raises
    ------
    SourceError
        One line: what is missing or does not fit, in which row.
    """

    def __init__(
        self, path: Path, pixel_size_angstrom: float | None = None, inputs: Roots = ANYWHERE
    ) -> None:
        optics, particles = _read_tables(path, inputs)
        self._star, self._inputs = path, inputs
        self._paths, self._indices = _locate(path, particles["rlnImageName"], inputs)
        self._stacks: OrderedDict[Path, Stack] = OrderedDict()
        self._next = 0
        self.bad_files: list[BadFile] = []
        self.frame_count = len(particles)
        try:
            self._check_stacks()
            stated = _pixel_size(path, optics, particles) or self._stack(self._paths[0]).pixel_size_angstrom
            self.pixel_size_angstrom = choose_pixel_size(pixel_size_angstrom, stated, path)
            self.optics = _optics(path, optics, particles, self.shape, self.pixel_size_angstrom)
            self._metadata = _metadata(path, particles, self.pixel_size_angstrom)
        except SourceError:
            self.close()
            raise

    def _stack(self, path: Path) -> Stack:
        """The open stack; only the last few stay open."""
        if path not in self._stacks:
            self._stacks[path] = open_stack(path, self._inputs)
            if len(self._stacks) > _OPEN_STACKS:
                self._stacks.popitem(last=False)[1].close()
        self._stacks.move_to_end(path)
        return self._stacks[path]

    def _check_stacks(self) -> None:
        """Every stack can be opened, is like the first, and holds what is asked of it."""
        rows = pd.DataFrame({"path": self._paths, "index": self._indices})
        for number, (path, group) in enumerate(rows.groupby("path", sort=False)):
            assert isinstance(path, Path)
            stack = self._stack(path)
            if number == 0:
                self.shape: tuple[int, int] = stack.shape
                self.dtype: np.dtype[Any] = stack.dtype
            if (stack.shape, stack.dtype) != (self.shape, self.dtype):
                raise SourceError(
                    f"{self._star}: {path.name} holds {stack.shape[0]} x {stack.shape[1]} {stack.dtype}, "
                    f"{self._paths[0].name} {self.shape[0]} x {self.shape[1]} {self.dtype}; "
                    "all images must be alike"
                )
            outside = group[(group["index"] < 0) | (group["index"] >= stack.count)]
            if len(outside):
                row, image = int(outside.index[0]) + 1, int(outside["index"].iloc[0]) + 1
                raise SourceError(
                    f"{self._star}: row {row} names image {image} of {path.name}, which holds {stack.count}"
                )

    def read(self, count: int) -> FrameBatch | None:
        """The next particles, at most ``count``; None after the last row.

        Raises
        ------
        SourceError
            If an image cannot be read or decoded.
        """
        first, last = self._next, min(self._next + count, len(self._paths))
        if first >= last:
            return None
        frames = np.empty((last - first, *self.shape), self.dtype)
        for begin, end in self._runs(first, last):
            stack = self._stack(self._paths[begin])
            frames[begin - first : end - first] = stack.frames(int(self._indices[begin]), end - begin)
        self._next = last
        return FrameBatch(frames, {name: values[first:last] for name, values in self._metadata.items()})

    def seek(self, frame: int) -> bool:
        """Any row can be read at any time."""
        self._next = frame
        return True

    def _runs(self, first: int, last: int) -> list[tuple[int, int]]:
        """Rows first .. last-1 cut into pieces that lie one after the other in one stack.

        Pieces of one stack come together, so that it is opened once.
        """
        paths, indices = self._paths, self._indices
        starts = [
            row
            for row in range(first, last)
            if row == first or paths[row] != paths[row - 1] or indices[row] != indices[row - 1] + 1
        ]
        runs = list(zip(starts, [*starts[1:], last], strict=True))
        return sorted(runs, key=lambda run: (str(paths[run[0]]), run[0]))

    def close(self) -> None:
        """Let go of the stacks."""
        for stack in self._stacks.values():
            stack.close()
        self._stacks.clear()


def _read_tables(path: Path, inputs: Roots) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """The optics table, if there is one, and the particles."""
    try:
        with inputs.open(path) as file:
            _check_lines(path, file)
            return _parsed(path, file)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    except NotAllowed as error:
        raise SourceError(str(error)) from error


def _parsed(path: Path, file: BinaryIO) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """The tables of a file that is open; the parser wants a name, and gets that of the open file."""
    linecache.clearcache()  # the parser reads through it, and leaves a file it failed of there
    name = f"/proc/self/fd/{file.fileno()}"
    try:
        blocks = starfile.read(name if os.path.exists(name) else path, always_dict=True)
        tables = {
            name: block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])
            for name, block in blocks.items()
        }
    except Exception as error:  # whatever its parser stumbles on
        linecache.clearcache()
        reason = one_line(error).replace(name, str(path))
        raise SourceError(f"{path}: not a STAR file ({reason})") from error
    if not tables:
        raise SourceError(f"{path}: no table in it; a STAR file of particles is needed")
    particles = next((table for table in tables.values() if "rlnImageName" in table), None)
    if particles is None:
        raise SourceError(f"{path}: no column rlnImageName; a STAR file of extracted particles is needed")
    if not len(particles):
        raise SourceError(f"{path}: no particles in it")
    for table in tables.values():
        if not table.columns.is_unique:
            twice = str(table.columns[table.columns.duplicated()][0])
            raise SourceError(f"{path}: column {twice:.80} is there twice; leave one out")
    optics = tables.get("optics")
    return optics if optics is not None and len(optics) else None, particles


def _check_lines(path: Path, file: BinaryIO) -> None:
    """Raise SourceError where reading would take memory or time out of all proportion to a real file."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_FILE_BYTES:
        raise SourceError(f"{path}: {size} bytes; STAR files up to {MAX_FILE_BYTES} can be read: split it")
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise SourceError(f"{path}: line {number} has over {MAX_LINE_BYTES} bytes; no STAR file")
        if len(line) > 2 * MAX_COLUMNS and len(line.split()) > MAX_COLUMNS:
            raise SourceError(f"{path}: line {number} has more than {MAX_COLUMNS} values")
        if b"\0" in line or b"\x1c" in line or b"\x0c" in line:
            raise SourceError(f"{path}: line {number} holds control characters; not a STAR file")


def _locate(star: Path, names: pd.Series, inputs: Roots) -> tuple[list[Path], np.ndarray]:
    """Path and index (from 0) of every image, named ``index@stack``; without an index, the first."""
    paths: list[Path] = []
    indices = np.empty(len(names), np.int64)
    found: dict[str, Path] = {}
    for row, name in enumerate(map(str, names)):
        number, at, stack = name.rpartition("@")
        if at and not (number.isascii() and number.isdigit() and len(number) <= 12):
            shown = f"image name {name!r:.200}"
            raise SourceError(f"{star}: row {row + 1}: {shown} is not of the form index@stack")
        if stack not in found:
            found[stack] = _find(star, stack, row, inputs)
        paths.append(found[stack])
        indices[row] = int(number) - 1 if at else 0
    return paths, indices


def _find(star: Path, stack: str, row: int, inputs: Roots) -> Path:
    """Where a stack is that may be read; one that may not be read is as good as not there."""
    try:
        beside = inputs.real(star.absolute()).parent
        for folder in (beside, *beside.parents):
            if inputs.is_file(folder / stack):
                return folder / stack
        if inputs.is_file(beside / Path(stack).name):  # moved here together with its STAR file
            return beside / Path(stack).name
    except (OSError, ValueError) as error:
        raise SourceError(f"{star}: row {row + 1}: no name of a file ({one_line(error)})") from error
    stack = one_line(ValueError(stack))
    where = ", as far as sessions may read" if inputs.limited else ""
    raise SourceError(f"{star}: row {row + 1}: {stack} is neither beside it nor in a folder above it{where}")


def _constant(star: Path, table: pd.DataFrame, column: str) -> Any:
    """The one value of a column."""
    values = table[column].unique()
    if len(values) > 1:
        raise SourceError(
            f"{star}: {column} is {values[0]!s:.80} and {values[1]!s:.80}; "
            "one session needs one value: split the file"
        )
    return values[0].item() if isinstance(values[0], np.generic) else values[0]


def _pixel_size(star: Path, optics: pd.DataFrame | None, particles: pd.DataFrame) -> float | None:
    """Angstrom, of the tables alone."""
    for table in (optics, particles):
        if table is None:
            continue
        for column in ("rlnImagePixelSize", "rlnPixelSize"):
            if column in table:
                return _positive(star, table, column)
        if "rlnDetectorPixelSize" in table:  # micrometres
            magnified = "rlnMagnification" in table
            magnification = _positive(star, table, "rlnMagnification") if magnified else _USUAL_MAGNIFICATION
            return _positive(star, table, "rlnDetectorPixelSize") * 1e4 / magnification
    return None


def _positive(star: Path, table: pd.DataFrame, column: str) -> float:
    """The one value of a column, a size."""
    value = _constant(star, table, column)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 1e-6 < number < 1e9:
        raise SourceError(f"{star}: {column} is {value!s:.80}, which is no size")
    return number


def _optics(
    star: Path, optics: pd.DataFrame | None, particles: pd.DataFrame, shape: tuple[int, int], pixel: float
) -> dict[str, Any]:
    """One optics row. Columns in which the groups differ (say, beam tilt) are left out."""
    known: dict[str, Any] = {}
    for column in _MICROSCOPE:
        for table in (optics, particles):
            if table is not None and column in table:
                known[column] = _constant(star, table, column)
                break
    if optics is not None:
        for column in optics.columns:
            if column not in known and optics[column].nunique() == 1:
                known[column] = _constant(star, optics, column)
    ours = optics_row(shape, pixel)
    known = {column: _plain(value) for column, value in known.items()}
    return known | ours | {"rlnOpticsGroupName": str(known.get("rlnOpticsGroupName", "opticsGroup1"))}


def _plain(value: Any) -> Any:
    """A value that can travel: an integer of more than 64 bits goes as text."""
    return str(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value


def _metadata(star: Path, particles: pd.DataFrame, pixel: float) -> dict[str, list[Any]]:
    """Every particle column as RELION 3.1 has it."""
    gone = {*_MICROSCOPE, "rlnMagnification", "rlnDetectorPixelSize", "rlnImagePixelSize", "rlnPixelSize"}
    columns: dict[str, list[Any]] = {}
    for column in particles.columns:
        values = particles[column]
        if column in gone or column.startswith("_"):
            continue
        if column in ("rlnOriginX", "rlnOriginY"):
            try:
                columns.setdefault(f"{column}Angst", (values.astype(float) * pixel).tolist())
            except (TypeError, ValueError, OverflowError) as error:
                raise SourceError(f"{star}: {column} holds what is no number ({one_line(error)})") from error
        elif column in _NAMES:
            columns[column] = list(map(str, values))
        else:
            plain = values.tolist()
            columns[column] = [_plain(value) for value in plain] if values.dtype.kind not in "if" else plain
    columns["rlnOpticsGroup"] = [1] * len(particles)
    return columns
