"""Each worker's own record of what it made durable: ``journal/<worker>.csv``, a line per frame.

A line is written after the frame's image and measurement are on disk, so what a journal names exists. A
frame that was delivered twice stands in two journals (or twice in one); readers take one line of it.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from common.whole import write_all

FOLDER = "journal"
LAST_BYTES = 1 << 20

COLUMNS = (
    "frame_id",
    "config_id",
    "compression_factor",
    "recovery_id",
    "method",
    "worker",
    "attempt",
    "acquired_at",  # Unix seconds, the detector's clock
    "recovered_at",  # Unix seconds, the worker's clock
    "latency_seconds",  # their difference: as exact as the two clocks agree
    "free_residual",
    "prior_shift",  # empty, as the two that follow, where no learned prior was used
    "posterior_spread",
    "evaluations",  # of the prior's network, for each sample
    "reference",  # 1: the frame was also sent whole
    "psnr",
    "ssim",
    "lpips",  # empty where no weights are given
    "frc_resolution_angstrom",
    "archive_offset",
    "archive_length",
    "configuration_offset",
    "metadata",  # RELION columns as JSON
)

HEADER = (",".join(COLUMNS) + "\n").encode()


class JournalWriter:
    """Appends lines to one worker's journal; only one process writes a file.

    Raises
    ------
    FileExistsError
        If the file is there already.
    """

    def __init__(self, output: Path, worker: str) -> None:
        folder = output / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{worker}.csv"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            write_all(self._file, [HEADER])
        except OSError:
            self.discard()
            raise

    def append(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Write lines, values in the order of ``COLUMNS``, None for what is not known."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        size = self.size
        try:
            write_all(self._file, [text.getvalue().encode()])
        except OSError:
            self.cut(size)  # a torn line would spoil the next
            raise

    @property
    def size(self) -> int:
        """Bytes so far."""
        return os.fstat(self._file).st_size

    def cut(self, size: int) -> None:
        """Have nothing beyond ``size`` bytes."""
        os.ftruncate(self._file, size)

    def discard(self) -> None:
        """Close the file and have it gone."""
        os.close(self._file)
        self._path.unlink()

    def sync(self) -> None:
        """Have the lines written so far on disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def journals(output: Path) -> list[Path]:
    """The journals of a session, in the order of their names."""
    return sorted((output / FOLDER).glob("*.csv"))


def whole_lines(path: Path) -> bytes:
    """The file up to its last line end: a line without one was torn when its worker was killed."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def _last_lines(path: Path) -> bytes:
    """The end of a journal: an hour's may have a hundred megabytes."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
        data = file.read()
    return data[: data.rfind(b"\n") + 1]


def find_row(output: Path, frame_id: int) -> dict[str, str]:
    """The line of one frame, values as they stand in the file.

    Raises
    ------
    KeyError
        If no journal has it.
    ValueError
        In one line, if a journal is spoiled.
    """
    for read in (_last_lines, whole_lines):  # what is asked for is mostly what came last
        for path in journals(output):
            data = read(path)
            at = data.rfind(b"\n%d," % frame_id)
            if at >= 0:
                line = data[at + 1 : data.index(b"\n", at + 1)]
                try:
                    return dict(zip(COLUMNS, next(csv.reader([line.decode()])), strict=True))
                except (ValueError, csv.Error, StopIteration) as error:
                    what = f"{path}: frame {frame_id}'s line is spoiled ({one_line(error)})"
                    raise ValueError(what) from error
    raise KeyError(f"frame {frame_id} is not recovered")


def one_line(error: Exception) -> str:
    """What an error says, on one line of bounded length."""
    return ascii(" ".join(str(error).split()))[1:-1][:300] or type(error).__name__
