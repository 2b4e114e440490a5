"""When a series is over: the workers' journals become tables, their images a stack that is whole."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
import starfile
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import mode_from_dtype

from common.whole import read_all_at, replacing
from reconstructor.archive import read_reference
from reconstructor.journal import COLUMNS, HEADER, journals, one_line, whole_lines
from reconstructor.writer import HEADER_BYTES, RECOVERED, stack_header

REFERENCES = "references.mrcs"
STAR = "recovered.star"
TABLE = "frames.csv"

CHUNK_BYTES = 64 << 20

_DTYPES = {
    "frame_id": "int64",
    "config_id": str,
    "recovery_id": str,
    "worker": str,
    "recovered_at": "float64",
    "prior_shift": "float64",
    "posterior_spread": "float64",
    "evaluations": "Int64",
    "lpips": "float64",
    "metadata": str,
}


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
    with replacing(output / TABLE) as path:
        columns = table.drop(columns="metadata").astype({"reference_slot": "Int64", "evaluations": "Int64"})
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
    with replacing(output / REFERENCES) as path:
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
    with replacing(path) as temporary:
        starfile.write({"optics": optics_table, "particles": particles}, temporary)


def _quality(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    judged = ["free_residual", "prior_shift", "psnr", "ssim", "lpips", "frc_resolution_angstrom"]
    quality: dict[str, dict[str, float]] = {}
    for config_id, rows in table.groupby("config_id"):
        means = {name: float(rows[name].mean()) for name in judged if rows[name].notna().any()}
        quality[str(config_id)] = {
            "frames": len(rows),
            "references": int(rows["reference"].sum()),
            "learned_frames": int(rows["prior_shift"].notna().sum()),
            **means,
        }
    return quality


# ---- journals as a table


def read_journals(output: Path) -> tuple[pd.DataFrame, int]:
    """All frames recovered, one row each in the order of their ids, and how many further lines there were.

    Of several lines of a frame the one recovered last is taken (ties: the first worker by name), for its
    image is the one that stands in the slot.

    Raises
    ------
    ValueError
        In one line, if a journal is spoiled.
    """
    contents = ((path, whole_lines(path)) for path in journals(output))
    tables = [_table(path, data) for path, data in contents if data.count(b"\n") > 1]
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS)), 0
    table = pd.concat(tables, ignore_index=True)
    table = table.sort_values(
        ["frame_id", "recovered_at", "worker"], ascending=[True, False, True], kind="stable"
    )
    unique = table.drop_duplicates("frame_id", keep="first", ignore_index=True)
    return unique, len(table) - len(unique)


def _table(path: Path, data: bytes) -> pd.DataFrame:
    """One journal."""
    if not data.startswith(HEADER):
        raise ValueError(f"{path}: not a journal: its first line is another")
    try:
        return pd.read_csv(io.BytesIO(data), dtype=_DTYPES, index_col=False, on_bad_lines="error")
    except (ValueError, OverflowError, csv.Error) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{path}: a journal that cannot be read ({one_line(error)})") from error
