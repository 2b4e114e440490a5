"""A folder of micrographs, as it is or as it fills.

The first readable file fixes shape and dtype. A file that is broken or of another kind is reported in
``bad_files`` and passed over; the session goes on.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from watchfiles import watch

from common.roots import ANYWHERE, NotAllowed, Roots
from detector_sim.sources.base import (
    BadFile,
    FrameBatch,
    Source,
    SourceError,
    choose_pixel_size,
    optics_row,
)
from detector_sim.sources.stack import MRC_SUFFIXES, TIFF_SUFFIXES, Stack, open_stack


def micrographs_in(folder: Path, inputs: Roots = ANYWHERE) -> list[Path]:
    """MRC and TIFF files of a folder by name, without its subfolders and hidden files."""
    suffixes = MRC_SUFFIXES | TIFF_SUFFIXES
    paths = (folder / name for name in inputs.listing(folder) if name[0] != ".")
    return sorted(path for path in paths if path.suffix.lower() in suffixes)


class FolderSource(Source):
    """The micrographs that are in a folder, in the order of their names, to the last one.

    Every header is read at the start, so that bad files are told and frames are counted before the session
    runs. ``frame_count`` falls if a file turns out bad later.

    Raises
    ------
    SourceError
        If the folder has no readable micrograph.
    """

    def __init__(
        self, folder: Path, pixel_size_angstrom: float | None = None, inputs: Roots = ANYWHERE
    ) -> None:
        self._begin(folder, pixel_size_angstrom, inputs)
        paths = self._micrographs()
        self.frame_count = 0
        self._counts: list[tuple[Path, int]] = []
        for path in paths:
            stack = self._admit(path)
            if stack is not None:
                self.frame_count += stack.count
                self._queue.append(path)
                self._counts.append((path, stack.count))
                stack.close()
        if self._queue:
            return
        if paths:
            reason = self.bad_files[0].reason
            raise SourceError(f"{folder}: none of its {len(paths)} files can be used; the first: {reason}")
        raise SourceError(f"{folder}: no micrographs (.mrc, .mrcs, .tif, .tiff) in it; check the path")

    def _begin(self, folder: Path, pixel_size_angstrom: float | None, inputs: Roots) -> None:
        self._folder, self._inputs = folder, inputs
        self._override = pixel_size_angstrom
        self._queue: deque[Path] = deque()  # files yet to be read
        self._stack: Stack | None = None  # the one being read,
        self._next = 0  # and its next frame
        self._is_fixed = False  # whether a first file has given shape and dtype
        self.bad_files: list[BadFile] = []

    def _micrographs(self) -> list[Path]:
        try:
            return micrographs_in(self._folder, self._inputs)
        except NotAllowed as error:  # it has been moved meanwhile
            raise SourceError(str(error)) from error

    def _admit(self, path: Path) -> Stack | None:
        """Open a file; None, with a report, where it cannot be used beside the others."""
        try:
            stack = open_stack(path, self._inputs)
        except SourceError as error:
            self._report(path, str(error))
            return None
        if not self._is_fixed:
            self._fix(stack)
        if (stack.shape, stack.dtype) == (self.shape, self.dtype):
            return stack
        stack.close()
        self._report(
            path,
            f"{path}: frames of {stack.shape[0]} x {stack.shape[1]} {stack.dtype}; "
            f"the session has {self.shape[0]} x {self.shape[1]} {self.dtype}",
        )
        return None

    def _fix(self, first: Stack) -> None:
        self.shape = first.shape
        self.dtype: np.dtype[Any] = first.dtype
        self.pixel_size_angstrom = choose_pixel_size(self._override, first.pixel_size_angstrom, first.path)
        self.optics: dict[str, Any] = optics_row(self.shape, self.pixel_size_angstrom)
        self._is_fixed = True

    def _report(self, path: Path, reason: str) -> None:
        self.bad_files.append(BadFile(str(path), reason))

    def read(self, count: int) -> FrameBatch | None:
        """The next frames of one file, at most ``count``; None after the last file."""
        while self._stack is not None or self._open_next():
            batch = self._read_here(count)
            if batch is not None:
                return batch
        return None

    def seek(self, frame: int) -> bool:
        """Any frame can be read at any time, as long as no file has turned out bad meanwhile."""
        if self._stack is not None:
            self._stack.close()
            self._stack = None
        self._queue = deque(path for path, _ in self._counts)
        for _, count in self._counts:
            if frame < count:
                break
            frame -= count
            self._queue.popleft()
        if not frame:
            return True
        if not self._open_next():
            return False
        self._next = frame
        return True

    def _open_next(self) -> bool:
        """Open the next file that can be used; False where there is none."""
        while self._queue:
            self._stack = self._admit(self._queue.popleft())
            self._next = 0
            if self._stack is not None:
                return True
        return False

    def _read_here(self, count: int) -> FrameBatch | None:
        """Frames of the file being read; None where it has no more, or turns out bad."""
        stack, first = self._stack, self._next
        assert stack is not None
        count = min(count, stack.count - first)
        try:
            if count > 0:
                frames = stack.frames(first, count)
                self._next += count
                name = stack.path.name
                numbers = range(first + 1, first + count + 1)
                images = [f"{number:06d}@{name}" for number in numbers]
                return FrameBatch(frames, {"rlnMicrographName": [name] * count, "rlnImageName": images})
        except SourceError as error:
            self._report(stack.path, str(error))
            if self.frame_count is not None:
                self.frame_count -= stack.count - first
        stack.close()
        self._stack = None
        return None

    def close(self) -> None:
        """Let go of the file being read."""
        if self._stack is not None:
            self._stack.close()
            self._stack = None
        self._queue.clear()


class WatchedFolderSource(FolderSource):
    """Micrographs as they come into a folder, those that are already there first; it never ends.

    A file is taken once it has rested and can be read. One that cannot be read may still be being written:
    it is reported only after it has not changed for ``patience_seconds``, and is looked at again should it
    change later.

    Parameters
    ----------
    folder : Path
        Watched itself, not its subfolders.
    pixel_size_angstrom : float or None
        Overrides what the first file says.
    first_file_seconds : float
        How long to wait here for the first readable file, which fixes shape and dtype.
    rest_seconds, patience_seconds : float
        See above.

    Raises
    ------
    SourceError
        If no readable micrograph comes within ``first_file_seconds``.
    """

    def __init__(
        self, folder: Path, pixel_size_angstrom: float | None = None, inputs: Roots = ANYWHERE, *,
        first_file_seconds: float = 30.0, rest_seconds: float = 0.5, patience_seconds: float = 5.0,
    ) -> None:  # fmt: skip
        self._begin(folder, pixel_size_angstrom, inputs)
        self.frame_count = None
        self._rest_seconds = rest_seconds
        self._patience_seconds = patience_seconds
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}  # size and time of change; since when
        self._settled: dict[Path, tuple[int, int]] = {}  # taken or reported, as it was then
        self._changes = watch(
            folder, recursive=False, debounce=100, step=50, rust_timeout=200, yield_on_timeout=True
        )  # fmt: skip
        deadline = time.monotonic() + first_file_seconds
        while not self._is_fixed:
            self._look()
            if not self._is_fixed and time.monotonic() > deadline:
                self.close()
                told = f" ({self.bad_files[0].reason})" if self.bad_files else ""
                raise SourceError(
                    f"{folder}: no readable micrograph came within {first_file_seconds:g} s{told}; "
                    "start when the first one is there"
                )
            if not self._is_fixed:
                next(self._changes)

    def read(self, count: int) -> FrameBatch:
        """The next frames of one file; an empty batch after a short wait where there is nothing new."""
        batch = super().read(count)
        if batch is None:
            self._look()
            batch = super().read(count)
        if batch is None:
            next(self._changes)
            return FrameBatch(np.empty((0, *self.shape), self.dtype))
        return batch

    def seek(self, frame: int) -> bool:
        """In what order files had come cannot be told any more."""
        return False

    def _look(self) -> None:
        """Queue the files that are complete, report those that rest and cannot be read."""
        now = time.monotonic()
        for path in self._micrographs():
            try:
                status = self._inputs.status(path)
                version = (status.st_size, status.st_mtime_ns)
            except NotAllowed:
                version = (0, 0)  # to be reported, as what cannot be read is
            except OSError:  # gone again
                continue
            if self._settled.get(path) == version:
                continue
            seen, since = self._seen.get(path, (None, now))
            if seen != version:
                self._seen[path] = (version, now)
                continue
            if now - since < self._rest_seconds:
                continue
            if now - since >= self._patience_seconds or self._is_readable(path):
                stack = self._admit(path)
                self._settled[path] = version
                del self._seen[path]
                if stack is not None:
                    stack.close()
                    self._queue.append(path)

    def _is_readable(self, path: Path) -> bool:
        try:
            open_stack(path, self._inputs).close()
        except SourceError:
            return False
        return True

    def close(self) -> None:
        """Stop watching, and let go of the file being read."""
        super().close()
        self._changes.close()
