"""Reading and writing all of something at a file descriptor, which the system may do in parts."""

from __future__ import annotations

import os
from collections.abc import Sequence

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
