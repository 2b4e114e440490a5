"""A worker's end of the results: a slot per frame in ``recovered.mrcs``, a line per frame in a journal.

All workers of a session write into one folder. A frame's slot is its frame_id, so that a frame delivered
twice appears once, whoever wrote it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from common.whole import write_all_at
from common.wire.link import Buffer, as_bytes
from common.wire.messages import ConfigurationNotice, Frames, Start
from reconstructor.archive import ArchiveWriter, Span
from reconstructor.journal import JournalWriter, find_row

RECOVERED = "recovered.mrcs"
HEADER_BYTES = 1024


class Learned(NamedTuple):
    """What a learned prior did to a frame.

    Attributes
    ----------
    prior_shift : float or None
        How far it moved the image from the linear estimate, relative to that; None if that is flat.
    posterior_spread : float or None
        Mean over the frame of the samples' standard deviation, in the frames' own units; None for one sample.
    evaluations : int
        Of its network, for each sample.
    """

    prior_shift: float | None
    posterior_spread: float | None
    evaluations: int


@dataclass(eq=False, slots=True)
class Results:
    """The frames of a block that were recovered, ready to be written.

    ``rows`` says which frames of ``header`` they are; the lists have one value for each of them, but for
    ``learned``, which has none where no learned prior was used.
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
    learned: Sequence[Learned] = ()
    psnr: dict[int, float] = field(default_factory=dict)  # by frame_id, of reference frames
    ssim: dict[int, float] = field(default_factory=dict)
    lpips: dict[int, float] = field(default_factory=dict)
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
        """Where a block's measurements are kept: once, also where its frames are written in parts."""
        if self._archive is None:
            return None
        if self._kept_last is not None and self._kept_last[0] is results.buffers:
            return self._kept_last[1]
        span = self._archive.append(results.header, results.buffers)
        in_parts = results.header.alone or results.header.wanted is not None
        self._kept_last = (results.buffers, span) if in_parts else None
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
        learned = results.learned or [(None, None, None)] * len(results.rows)
        for row, free_residual, prior in zip(results.rows, results.free_residual, learned, strict=True):
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
                *prior,
                int(frame in header.reference_ids),
                results.psnr.get(frame),
                results.ssim.get(frame),
                results.lpips.get(frame),
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
