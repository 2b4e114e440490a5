"""Reading and writing all of something, which the system does in parts; files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

MOST_PARTS = 64  # handed to the system at a time; it takes no more than about a thousand


def write_all(file: int, parts: Sequence[bytes | memoryview]) -> None:
    """Write all parts where the file stands, one after the other, without joining them first."""
    left = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
    while left:
        written = os.writev(file, left[:MOST_PARTS])
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]


def write_all_at(file: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` (bytes) from ``offset`` on."""
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


def read_all_at(file: int, size: int, offset: int) -> bytearray:
    """``size`` bytes from ``offset`` on.

    Raises
    ------
    EOFError
        If the file ends before.
    """
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        read = os.preadv(file, [view[done:]], offset + done)
        if not read:
            raise EOFError(f"ends after {offset + done} bytes")
        done += read
    return data


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """A file to write beside ``path``, whose place it takes when all is written; nobody sees half a file."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
