"""A simulated set on disk: frames, their clean truth, poses and CTF as RELION 3.1 STAR, the potential."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import mrcfile
import numpy as np
import pandas as pd
import starfile

from common.session import SpecimenSpec
from detector_sim.specimen import SimulatedBatch, Specimen

_BATCH_PIXELS = 1 << 23
_LARGEST_MAP_SIDE = 512


@dataclass(frozen=True)
class SimulatedSet:
    """What ``simulate`` wrote.

    Attributes
    ----------
    frames : Path
        ``particles.mrcs``, or the folder ``micrographs``.
    clean : Path
        ``clean.mrcs``, or the folder ``clean``: the same frames without noise, float32, in the same units.
    star : Path
        ``particles.star``: optics and every particle's pose and CTF (and place, on a micrograph).
    map : Path
        ``map.mrc``: the particle's potential, volts above ice.
    count : int
        Frames written.
    pixel_size_angstrom : float
        Of the frames and the map.
    """

    frames: Path
    clean: Path
    star: Path
    map: Path
    count: int
    pixel_size_angstrom: float


def simulate(
    spec: SpecimenSpec, count: int, output: Path, progress: Callable[[int], None] | None = None
) -> SimulatedSet:
    """Write ``count`` frames of a specimen, and the truth behind them, into a folder.

    Existing files of the same names are replaced. Frames are made and written in batches, so memory does
    not grow with ``count``. Counts are stored as signed bytes (MRC mode 0) where they fit, else as unsigned
    16-bit (mode 6); frames at a stated SNR as float32. The settings go into ``specimen.json``.

    Parameters
    ----------
    progress : callable or None
        Called with the number of frames written so far.

    Raises
    ------
    ValueError
        One line: the specimen cannot be made as asked, or the folder cannot be written.
    """
    if count < 1:
        raise ValueError(f"count: {count} frames; at least 1 is needed")
    specimen = Specimen(spec)
    report = progress or (lambda _: None)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "specimen.json").write_text(spec.model_dump_json(indent=2) + "\n")
        _write_map(specimen, output / "map.mrc")
        if spec.output == "particles":
            return _write_particles(specimen, count, output, report)
        return _write_micrographs(specimen, count, output, report)
    except OSError as error:
        raise ValueError(f"{output}: cannot be written ({error.strerror or error})") from error


def _write_particles(
    specimen: Specimen, count: int, output: Path, report: Callable[[int], None]
) -> SimulatedSet:
    pixel = specimen.spec.pixel_size_angstrom
    columns: dict[str, list[Any]] = {}
    step = max(1, _BATCH_PIXELS // (specimen.shape[0] * specimen.shape[1]))
    frames_path, clean_path = output / "particles.mrcs", output / "clean.mrcs"
    with (
        _StackWriter(frames_path, (count, *specimen.shape), _stored_dtype(specimen), pixel) as frames,
        _StackWriter(clean_path, (count, *specimen.shape), np.dtype(np.float32), pixel) as clean,
    ):
        for first in range(0, count, step):
            batch = specimen.batch(first, min(step, count - first))
            frames.append(batch.frames)
            clean.append(batch.clean)
            _extend(columns, batch.particles)
            report(first + len(batch.frames))
    names = [f"{number:06d}@{frames_path.name}" for number in range(1, count + 1)]
    image_columns = {
        "rlnImagePixelSize": pixel, "rlnImageSize": specimen.shape[1], "rlnImageDimensionality": 2,
    }  # fmt: skip
    star = output / "particles.star"
    _write_star(star, specimen.optics | image_columns, "particles", {"rlnImageName": names} | columns)
    return SimulatedSet(frames_path, clean_path, star, output / "map.mrc", count, pixel)


def _write_micrographs(
    specimen: Specimen, count: int, output: Path, report: Callable[[int], None]
) -> SimulatedSet:
    pixel = specimen.spec.pixel_size_angstrom
    folders = output / "micrographs", output / "clean"
    for folder in folders:
        folder.mkdir(exist_ok=True)
    micrographs: dict[str, list[Any]] = {}
    particles: dict[str, list[Any]] = {}
    for number in range(count):
        batch: SimulatedBatch = specimen.batch(number, 1)
        name = batch.metadata["rlnMicrographName"][0]
        with _StackWriter(folders[0] / name, batch.frames.shape, _stored_dtype(specimen), pixel) as writer:
            writer.append(batch.frames)
        with _StackWriter(folders[1] / name, batch.clean.shape, batch.clean.dtype, pixel) as writer:
            writer.append(batch.clean)
        _extend(micrographs, batch.metadata)
        _extend(particles, batch.particles)
        report(number + 1)
    for columns in (micrographs, particles):  # as seen from the STAR files
        columns["rlnMicrographName"] = [f"micrographs/{name}" for name in columns["rlnMicrographName"]]
    optics = specimen.optics | {"rlnMicrographPixelSize": pixel}
    _write_star(output / "micrographs.star", optics, "micrographs", micrographs)
    _write_star(output / "particles.star", optics, "particles", particles)
    return SimulatedSet(*folders, output / "particles.star", output / "map.mrc", count, pixel)


def _extend(columns: dict[str, list[Any]], more: dict[str, list[Any]]) -> None:
    for name, values in more.items():
        columns.setdefault(name, []).extend(values)


def _write_star(path: Path, optics: dict[str, Any], block: str, columns: dict[str, list[Any]]) -> None:
    row = {"rlnOpticsGroup": 1, "rlnOpticsGroupName": "opticsGroup1"} | optics
    starfile.write({"optics": pd.DataFrame([row]), block: pd.DataFrame(columns)}, path, overwrite=True)


def _write_map(specimen: Specimen, path: Path) -> None:
    """The potential in a cube as wide as the frames where these are particles, else in its own box."""
    volume = specimen.potential.volume.numpy()
    own, side = len(volume), len(volume)
    if specimen.spec.output == "particles" and own < specimen.shape[0] <= _LARGEST_MAP_SIDE:
        side = specimen.shape[0]
    cube = np.zeros((side, side, side), np.float32)
    start = side // 2 - own // 2
    cube[start : start + own, start : start + own, start : start + own] = volume
    with mrcfile.new(path, cube, overwrite=True) as file:
        file.voxel_size = specimen.spec.pixel_size_angstrom


def _stored_dtype(specimen: Specimen) -> np.dtype[Any]:
    """MRC has no unsigned bytes."""
    if specimen.dtype == np.uint8:
        return np.dtype(np.int8 if specimen.largest_count <= np.iinfo(np.int8).max else np.uint16)
    return specimen.dtype


class _StackWriter:
    """An MRC stack of known size, filled in order through a memory map; statistics go into its header."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], pixel: float) -> None:
        mode = mrcfile.utils.mode_from_dtype(dtype)
        self._file = mrcfile.new_mmap(path, shape, mrc_mode=mode, overwrite=True)
        self._file.set_image_stack()
        self._file.voxel_size = pixel
        self._next = 0
        self._least, self._most = np.inf, -np.inf
        self._sum = self._squares = 0.0
        self._largest = np.iinfo(dtype).max if dtype.kind in "iu" else None

    def append(self, frames: np.ndarray) -> None:
        """The next frames (b, H, W)."""
        kept = frames if self._largest is None else np.minimum(frames, self._largest)
        self._file.data[self._next : self._next + len(frames)] = kept
        self._next += len(frames)
        self._least = min(self._least, float(kept.min()))
        self._most = max(self._most, float(kept.max()))
        self._sum += float(kept.sum(dtype=np.float64))
        self._squares += float(np.einsum("bhw,bhw->", kept, kept, dtype=np.float64))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            pixels = self._file.data.size
            mean = self._sum / pixels
            header = self._file.header
            header.dmin, header.dmax, header.dmean = self._least, self._most, mean
            header.rms = np.sqrt(max(0.0, self._squares / pixels - mean**2))
        self._file.close()
