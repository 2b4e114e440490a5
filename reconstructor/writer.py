"""Results on disk: a slot per frame in ``recovered.mrcs``, and the tables made of the workers' journals.

All workers of a session write into one folder. A frame's slot is its frame_id, so that a frame delivered
twice appears once, whoever wrote it. ``ResultsWriter`` is a worker's end; ``finalise`` is called once, when
the series is over.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import mrcfile
import numpy as np
import pandas as pd
import starfile
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import mode_from_dtype

from common.whole import read_all_at, write_all_at
from common.wire.link import Buffer, as_bytes
from common.wire.messages import ConfigurationNotice, Frames, Start
from reconstructor.archive import ArchiveWriter, Span, read_reference
from reconstructor.journal import JournalWriter, find_row, read_journals

RECOVERED = "recovered.mrcs"
REFERENCES = "references.mrcs"
STAR = "recovered.star"
TABLE = "frames.csv"

HEADER_BYTES = 1024
CHUNK_BYTES = 64 << 20


@dataclass(eq=False, slots=True)
class Results:
    """The frames of a block that were recovered, ready to be written.

    ``rows`` says which frames of ``header`` they are; the lists have one value for each of them.
    """

    header: Frames
    buffers: Sequence[Buffer]
    rows: Sequence[int]
    images: np.ndarray  # (len(rows), H, W) float32
    compression_factor: float
    recovery_id: str
    method: str
    recovered_at: float
    free_residual: Sequence[float | None]
    psnr: dict[int, float] = field(default_factory=dict)  # by frame_id, of reference frames
    ssim: dict[int, float] = field(default_factory=dict)
    frc_resolution_angstrom: dict[int, float] = field(default_factory=dict)


class ResultsWriter:
    """One worker's end of the results folder.

    Parameters
    ----------
    worker : str
        Name of this worker's journal and archive; never used before in this folder.
    keep_measurements : bool
        False: they are kept elsewhere already.

    Raises
    ------
    OSError
        If the files cannot be made; those that were are gone then.
    """

    def __init__(self, start: Start, worker: str, *, keep_measurements: bool = True) -> None:
        self._output = Path(start.output)
        self._output.mkdir(parents=True, exist_ok=True)
        self._worker = worker
        self._slot_bytes = 4 * start.shape[0] * start.shape[1]
        # The first header is the same whoever writes it, so workers that begin together cannot disagree;
        # ``finalise`` puts in the counts and the statistics.
        header = stack_header(start.shape, start.frames_expected or 0, start.pixel_size_angstrom)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        self._recovered = os.open(self._output / RECOVERED, flags, 0o644)
        self._archive: ArchiveWriter | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._recovered)
            if os.fstat(self._recovered).st_size < HEADER_BYTES:
                write_all_at(self._recovered, header, 0)
            if keep_measurements:
                self._archive = ArchiveWriter(self._output, worker)
                undo.callback(self._archive.discard)
                self._archive.append(start)
            self._journal = JournalWriter(self._output, worker)
            undo.callback(self._journal.discard)
            self._sync_folders()
            undo.pop_all()
        self._kept_last: tuple[Sequence[Buffer], Span] | None = None
        self._configurations: dict[str, Span] = {}

    def configure(self, notice: ConfigurationNotice) -> None:
        """Keep a configuration with the measurements that were taken with it."""
        if self._archive is not None:
            self._configurations[notice.configuration["config_id"]] = self._archive.append(notice)

    def write(self, group: Sequence[Results]) -> None:
        """Write blocks, durably: when this returns they may be acknowledged.

        Raises
        ------
        OSError
            If the disk is full or fails. The archive and the journal are as before then, so that the same can
            be written again; images may stand in their slots, which nothing names.
        """
        archived, named = 0 if self._archive is None else self._archive.size, self._journal.size
        try:
            self._write(group)
        except OSError:
            self._kept_last = None
            self._journal.cut(named)
            if self._archive is not None:
                self._archive.cut(archived)
            raise

    def _write(self, group: Sequence[Results]) -> None:
        spans: list[Span | None] = []
        for results in group:
            self._write_slots(results)
            spans.append(self._kept(results))
        os.fsync(self._recovered)
        if self._archive is not None:
            self._archive.sync()
        # only now, so that a line in a journal means that the frame is there
        for results, span in zip(group, spans, strict=True):
            self._journal.append(self._lines(results, span))
        self._journal.sync()

    def _kept(self, results: Results) -> Span | None:
        """Where a block's measurements are kept: once, also where its frames are written one by one."""
        if self._archive is None:
            return None
        if self._kept_last is not None and self._kept_last[0] is results.buffers:
            return self._kept_last[1]
        span = self._archive.append(results.header, results.buffers)
        self._kept_last = (results.buffers, span) if results.header.alone else None
        return span

    def close(self) -> None:
        """Close all files."""
        self._journal.close()
        if self._archive is not None:
            self._archive.close()
        os.close(self._recovered)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write_slots(self, results: Results) -> None:
        images = np.ascontiguousarray(results.images, dtype="<f4")
        ids = [results.header.frame_ids[row] for row in results.rows]
        for first, last in _runs(ids):
            data = memoryview(as_bytes(images[first:last]))
            at = HEADER_BYTES + ids[first] * self._slot_bytes
            write_all_at(self._recovered, data, at)

    def _lines(self, results: Results, span: Span | None) -> Iterator[tuple[Any, ...]]:
        header = results.header
        for row, free_residual in zip(results.rows, results.free_residual, strict=True):
            frame, acquired_at = header.frame_ids[row], header.acquired_at[row]
            metadata = header.metadata and {name: column[row] for name, column in header.metadata.items()}
            yield (
                frame,
                header.config_id,
                results.compression_factor,
                results.recovery_id,
                results.method,
                self._worker,
                header.attempt,
                acquired_at,
                results.recovered_at,
                max(0.0, results.recovered_at - acquired_at),  # of two clocks, which may disagree
                free_residual,
                int(frame in header.reference_ids),
                results.psnr.get(frame),
                results.ssim.get(frame),
                results.frc_resolution_angstrom.get(frame),
                None if span is None else span.offset,
                None if span is None else span.length,
                None if span is None else self._configurations[header.config_id].offset,
                json.dumps(metadata, separators=(",", ":")) if metadata else None,
            )

    def _sync_folders(self) -> None:
        archives = [] if self._archive is None else [self._archive.path.parent]
        for folder in (self._output, *archives, self._output / "journal"):
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Positions [first, last) of consecutive ids, to be written in one go."""
    first = 0
    for k in range(1, len(ids) + 1):
        if k == len(ids) or ids[k] != ids[k - 1] + 1:
            yield first, k
            first = k


def stack_header(shape: tuple[int, int], count: int, pixel_size_angstrom: float) -> bytes:
    """The MRC2014 header of a stack of ``count`` float32 images (H, W), statistics marked as unknown."""
    height, width = shape
    header = np.zeros((), dtype=HEADER_DTYPE.newbyteorder("<"))
    header["nx"], header["ny"], header["nz"] = width, height, count
    header["mode"] = 2
    header["mx"], header["my"], header["mz"] = width, height, 1
    header["cella"] = (width * pixel_size_angstrom, height * pixel_size_angstrom, pixel_size_angstrom)
    header["cellb"] = (90, 90, 90)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = 0, -1, -2, -1
    header["ispg"] = 0  # a stack of images
    header["nversion"] = 20140
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0)
    header["nlabl"] = 1
    header["label"][0] = b"Recovered by CryoFlux"
    return header.tobytes()


# ---- reading back ------------------------------------------------------------------------------------


def read_recovered(output: Path, frame_id: int) -> np.ndarray:
    """A recovered image, (H, W) float32, also while the session runs.

    Raises
    ------
    KeyError
        If the frame is not recovered (yet).
    """
    find_row(output, frame_id)
    with (output / RECOVERED).open("rb") as file:
        header = np.frombuffer(file.read(HEADER_BYTES), dtype=HEADER_DTYPE.newbyteorder("<"))[0]
        height, width = int(header["ny"]), int(header["nx"])
        file.seek(HEADER_BYTES + frame_id * 4 * height * width)
        return np.frombuffer(file.read(4 * height * width), dtype="<f4").reshape(height, width)


# ---- when the series is over ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What a finished results folder holds."""

    frames_acquired: int
    frames_recovered: int
    frames_lost: dict[str, int]
    duplicates_dropped: int
    references: int
    quality: dict[str, dict[str, float]]  # per configuration: frames, and means of what was measured

    @property
    def frames_missing(self) -> int:
        """Frames neither recovered nor lost; anything but 0 is a bug."""
        return self.frames_acquired - self.frames_recovered - sum(self.frames_lost.values())


def finalise(
    output: Path,
    start: Mapping[str, Any],
    accounts: Mapping[str, Any],
    reference: Callable[[int], np.ndarray | None] | None = None,
) -> Summary:
    """Turn what the workers wrote into results that stand on their own; doing it again changes nothing.

    Merges the journals (a frame delivered twice counts once), completes ``recovered.mrcs``, and writes
    ``references.mrcs``, ``recovered.star`` and ``frames.csv``.

    Parameters
    ----------
    output : Path
        The results folder.
    start : mapping
        The detector's answer to *open*: ``shape``, ``pixel_size_angstrom`` and ``optics`` are used.
    accounts : mapping
        The detector's final counters: ``frames_acquired`` and ``frames_lost`` are used.
    reference : callable, optional
        Gives a frame that was sent whole, where that is not kept in this folder.
    """
    shape = (int(start["shape"][0]), int(start["shape"][1]))
    pixel_size = float(start["pixel_size_angstrom"])
    acquired = int(accounts["frames_acquired"])
    output.mkdir(parents=True, exist_ok=True)
    table, duplicates = read_journals(output)
    if acquired:
        _complete_stack(output / RECOVERED, shape, acquired, pixel_size)
    whole = reference or partial(read_reference, output)
    references = _write_references(output, table, pixel_size, whole)
    table["reference_slot"] = table["frame_id"].map({frame: k for k, frame in enumerate(references)})
    _write_star(output / STAR, table, start.get("optics") or {})
    with _replacing(output / TABLE) as path:
        columns = table.drop(columns="metadata").astype({"reference_slot": "Int64"})
        columns.to_csv(path, index=False)
    return Summary(
        frames_acquired=acquired,
        frames_recovered=len(table),
        frames_lost=dict(accounts.get("frames_lost") or {}),
        duplicates_dropped=duplicates,
        references=len(references),
        quality=_quality(table),
    )


def _complete_stack(path: Path, shape: tuple[int, int], count: int, pixel_size: float) -> None:
    """Give the stack its size, its counts and its statistics, computed a chunk at a time."""
    slot = 4 * shape[0] * shape[1]
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        os.ftruncate(file, HEADER_BYTES + count * slot)
        smallest, largest, total, squares = np.inf, -np.inf, 0.0, 0.0
        per_chunk = max(1, CHUNK_BYTES // slot)
        for first in range(0, count, per_chunk):
            size = min(per_chunk, count - first) * slot
            values = np.frombuffer(read_all_at(file, size, HEADER_BYTES + first * slot), dtype="<f4")
            smallest, largest = min(smallest, values.min()), max(largest, values.max())
            total += values.sum(dtype=np.float64)
            squares += np.square(values, dtype=np.float64).sum()
        pixels = count * shape[0] * shape[1]
        header = np.frombuffer(bytearray(stack_header(shape, count, pixel_size)), dtype=HEADER_DTYPE)[0]
        header["dmin"], header["dmax"], header["dmean"] = smallest, largest, total / pixels
        header["rms"] = np.sqrt(max(0.0, squares / pixels - (total / pixels) ** 2))
        os.pwrite(file, header.tobytes(), 0)
        os.fsync(file)
    finally:
        os.close(file)


def _write_references(
    output: Path, table: pd.DataFrame, pixel_size: float, whole: Callable[[int], np.ndarray | None]
) -> list[int]:
    """The frames also sent whole, in the order of their ids, from the archives; returns the ids."""
    frames: list[int] = table.loc[table["reference"] == 1, "frame_id"].tolist()
    if not frames:
        return []
    first = _reference(whole, frames[0])
    with _replacing(output / REFERENCES) as path:
        # one at a time: the references of a day's micrographs are more than memory holds
        shape = (len(frames), *first.shape)
        with mrcfile.new_mmap(path, shape=shape, mrc_mode=mode_from_dtype(first.dtype)) as stack:
            with path.open("r+b") as file:  # on a full disk the system would kill who writes to a mapped file
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            for slot, frame in enumerate(frames):
                stack.data[slot] = _reference(whole, frame)
            stack.set_image_stack()
            stack.voxel_size = pixel_size
            stack.update_header_stats()
    return frames


def _reference(whole: Callable[[int], np.ndarray | None], frame: int) -> np.ndarray:
    """A frame whose journal line says that it was sent whole; unsigned bytes widened, which MRC lacks."""
    reference = whole(frame)
    if reference is None:
        raise ValueError(f"frame {frame} is a reference but was not sent whole")
    return reference.astype(np.uint16) if reference.dtype == np.uint8 else reference


def _write_star(path: Path, table: pd.DataFrame, optics: Mapping[str, Any]) -> None:
    """RELION 3.1: optics and particles; only frames that were recovered."""
    carried = pd.DataFrame([json.loads(row) if isinstance(row, str) else {} for row in table["metadata"]])
    carried = carried.rename(columns={"rlnImageName": "rlnImageOriginalName"})
    names = [f"{frame + 1:06d}@{RECOVERED}" for frame in table["frame_id"]]
    particles = carried.assign(rlnImageName=names)
    if "rlnOpticsGroup" not in particles:
        particles["rlnOpticsGroup"] = 1
    optics_table = pd.DataFrame([{"rlnOpticsGroup": 1, "rlnOpticsGroupName": "opticsGroup1", **optics}])
    first = ["rlnImageName", "rlnOpticsGroup"]
    particles = particles[first + [column for column in particles if column not in first]]
    with _replacing(path) as temporary:
        starfile.write({"optics": optics_table, "particles": particles}, temporary)


def _quality(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    judged = ["free_residual", "psnr", "ssim", "frc_resolution_angstrom"]
    quality: dict[str, dict[str, float]] = {}
    for config_id, rows in table.groupby("config_id"):
        means = {name: float(rows[name].mean()) for name in judged if rows[name].notna().any()}
        quality[str(config_id)] = {
            "frames": len(rows),
            "references": int(rows["reference"].sum()),
            **means,
        }
    return quality


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name to write to that takes the place of ``path`` when all is written."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
