"""A look at a TIFF file's directories before tifffile builds anything of them.

What a directory says is a stranger's word: here it is held against the size of the file, so that what is
allocated because of it is bounded by what the file really holds. Chains that bite their own tail, tables of
a billion strips and pages of a million pixels a side end here, in one line.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from common.roots import ANYWHERE, Roots
from detector_sim.sources.base import SourceError

MAX_PAGES = 100_000  # frames of a stack; tifffile takes some 10 kB for each
MAX_TABLE_BYTES = 64 << 20  # of all tags of a file together, each of which becomes up to 40 times as many
MAX_SIDE_PIXELS = 1 << 17
MAX_PAGE_BYTES = 2_000_000_000  # as much as travels in one payload
MAX_TILE_BYTES = 64 << 20
MAX_RATIO = 200_000  # of a page to its compressed bytes; Zstandard reaches some 20 000 with equal pixels

_TYPE_BYTES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8,
}  # fmt: skip
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 259, 277, 322, 323
_DEPTHS = (32997, 32998)  # of images and tiles with a third dimension
_COUNTS = {279: "strips", 325: "tiles"}
_SINGLE = (_WIDTH, _HEIGHT, _COMPRESSION, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT, *_DEPTHS)
_CODINGS = {
    1: "none", 5: "LZW", 8: "Deflate", 32773: "PackBits", 32946: "Deflate", 34925: "LZMA", 34926: "Zstandard",
    50000: "Zstandard",
}  # fmt: skip


class _Layout(NamedTuple):
    """How directories are written: classic TIFF or BigTIFF, of one byte order."""

    order: str
    count: str  # of the number of tags
    tag: str
    offset: str
    inline: int  # bytes of a value that stands in its tag


def check_directories(path: Path, inputs: Roots = ANYWHERE) -> None:
    """Read a TIFF file's directories, their values not; raises as ``check_opened`` does."""
    with inputs.open(path) as file:
        check_opened(path, file)


def check_opened(path: Path, file: BinaryIO) -> None:
    """Read the directories of a TIFF file that is open at its beginning, their values not.

    Raises
    ------
    SourceError
        One line, if the file is no TIFF, or if a directory asks for more than the file can hold or is of a
        coding that is not read here.
    """
    size = os.fstat(file.fileno()).st_size
    tables = 0
    for number, (tags, layout) in enumerate(_directories(path, file, size), 1):
        found: dict[int, int] = {}
        stored = 0
        for code, kind, count, value in tags:
            length = _TYPE_BYTES.get(kind, 0) * count
            tables += length if length > layout.inline else 0
            if length > size or tables > MAX_TABLE_BYTES:
                raise SourceError(f"{path}: page {number}: tag {code} of {length} bytes: no usable TIFF")
            if code in found or (code in _SINGLE and (count != 1 or length > layout.inline)):
                raise SourceError(f"{path}: page {number}: tag {code}, twice or of {count} values")
            if code in _SINGLE:
                found[code] = _integer(value, kind, layout.order)
            if code in _COUNTS:
                found[code] = stored = _sum(file, value, kind, count, layout)
        _check_page(path, number, found, stored)


def _check_page(path: Path, number: int, found: dict[int, int], stored: int) -> None:
    where = f"{path}: page {number}"
    width, height = found.get(_WIDTH, 0), found.get(_HEIGHT, 0)
    if max(width, height) > MAX_SIDE_PIXELS:
        raise SourceError(f"{where}: {height} x {width} pixels; sides up to {MAX_SIDE_PIXELS} can be read")
    coding = found.get(_COMPRESSION, 1)
    if coding not in _CODINGS:
        known = ", ".join(dict.fromkeys(_CODINGS.values()))
        raise SourceError(f"{where}: coding {coding} is not read; write it again with one of: {known}")
    if any(found.get(depth, 1) != 1 for depth in _DEPTHS):
        raise SourceError(f"{where}: an image of three dimensions; write its sections as pages")
    pixels = width * height
    if found.get(_TILE_WIDTH, 0) * found.get(_TILE_HEIGHT, 0) > MAX_TILE_BYTES:
        raise SourceError(f"{where}: tiles of {found[_TILE_HEIGHT]} x {found[_TILE_WIDTH]} are too large")
    if pixels > MAX_PAGE_BYTES or found.get(_SAMPLES, 1) > 8:
        raise SourceError(f"{where}: {height} x {width} pixels are more than can be read")
    if pixels > (8 if coding == 1 else MAX_RATIO) * stored:  # uncompressed: a bit a pixel at least
        raise SourceError(f"{where}: truncated: {height} x {width} pixels cannot be in {stored} bytes")


_Tag = tuple[int, int, int, bytes]


def _directories(path: Path, file: BinaryIO, size: int) -> Iterator[tuple[list[_Tag], _Layout]]:
    """The tags (code, type, count, value or its offset) of each page in turn."""
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    version = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) >= 8 else 0
    if version == 42:
        layout = _Layout(f"{order}", f"{order}H", f"{order}HHI4s", f"{order}I", 4)
        at = struct.unpack(layout.offset, head[4:8])[0]
    elif version == 43 and len(head) == 16 and struct.unpack(f"{order}HH", head[4:8]) == (8, 0):
        layout = _Layout(f"{order}", f"{order}Q", f"{order}HHQ8s", f"{order}Q", 8)
        at = struct.unpack(layout.offset, head[8:16])[0]
    else:
        raise SourceError(f"{path}: not a TIFF file (it begins with {head[:4]!r}); check what wrote it")
    count_bytes, tag_bytes = struct.calcsize(layout.count), struct.calcsize(layout.tag)
    seen: set[int] = set()
    while at:
        if at in seen or len(seen) >= MAX_PAGES:
            raise SourceError(f"{path}: its pages have no end; not a usable TIFF")
        seen.add(at)
        file.seek(min(at, size))
        counted = file.read(count_bytes)
        count = struct.unpack(layout.count, counted)[0] if len(counted) == count_bytes else -1
        if not 0 < count <= 4096 or at + count_bytes + count * tag_bytes > size:
            raise SourceError(f"{path}: truncated: page {len(seen)} is not in the file; copy it again")
        table = file.read(count * tag_bytes)
        yield list(struct.iter_unpack(layout.tag, table)), layout
        file.seek(at + count_bytes + count * tag_bytes)  # reading a page's values moved it
        behind = file.read(struct.calcsize(layout.offset))
        at = struct.unpack(layout.offset, behind)[0] if len(behind) == struct.calcsize(layout.offset) else 0


def _integer(value: bytes, kind: int, order: str) -> int:
    letter = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
    return struct.unpack_from(f"{order}{letter}", value)[0] if letter else 0


def _sum(file: BinaryIO, value: bytes, kind: int, count: int, layout: _Layout) -> int:
    """The bytes of all strips or tiles of a page together."""
    letter = {3: "H", 4: "I", 16: "Q"}.get(kind)
    if letter is None:
        return 0
    width = struct.calcsize(letter)
    if count * width > layout.inline:
        file.seek(struct.unpack(layout.offset, value)[0])
        value = file.read(count * width)
    whole = min(count, len(value) // width)
    return sum(struct.unpack_from(f"{layout.order}{whole}{letter}", value))
