"""What the records of an archive may say, whoever wrote them: checked before anything is made of it."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import numpy as np
from pydantic import ValidationError

from common.archive.log import ARCHIVE_VERSION, FrameChunk, Opening, Part
from common.configuration import Configuration
from common.wire.codec import INTEGER_DTYPES
from common.wire.messages import MAX_ARRAY_BYTES, MalformedMessage, Start, decode, encode

LARGEST_FRAME_PIXELS = 1 << 29
MOST_SPARSE = 64  # times as many frames acquired as are there, and a million more
LARGEST_ROW_BYTES = 1 << 18  # RELION columns of a frame
LARGEST_CHUNK_VALUES = 1 << 22  # of several frames; a single one may have as many as it has pixels
FRAME_DTYPES = frozenset((*INTEGER_DTYPES, "float16", "float32", "float64"))
KEPT_DTYPES = frozenset(("|i1", "|u1", "<i2", "<i4", "<i8", "<f4"))
_TEXT_COLUMN = re.compile(r"\|S([1-9][0-9]{0,5})")


class BrokenArchive(ValueError):
    """A file that is no archive, or cannot be read any further; the message is one line."""


def check_opening(opening: Opening) -> None:
    """Raise BrokenArchive unless the session's *start* is one that could go over the wire."""
    if opening.archive_version != ARCHIVE_VERSION:
        raise BrokenArchive(
            f"an archive of version {opening.archive_version}; this CryoFlux reads version {ARCHIVE_VERSION}"
        )
    try:
        start = msgspec.convert({**opening.start, "type": "start"}, Start)
        decode(encode(start))
    except (msgspec.ValidationError, MalformedMessage, TypeError, OverflowError, RecursionError) as error:
        raise BrokenArchive(f"the session's start is none: {one_line(error)}") from error
    if start.dtype not in FRAME_DTYPES:
        raise BrokenArchive(f"frames of {start.dtype!a:.40}, numbers expected")
    if math.prod(start.shape) > LARGEST_FRAME_PIXELS:
        raise BrokenArchive(f"frames of shape {start.shape} are larger than {LARGEST_FRAME_PIXELS} pixels")
    if not math.isfinite(start.pixel_size_angstrom):
        raise BrokenArchive(f"a pixel size of {start.pixel_size_angstrom}")


def check_part(part: Part, opening: Opening) -> Configuration:
    """The part's configuration; BrokenArchive if it contradicts itself or the session."""
    try:
        configuration = Configuration.model_validate(part.configuration)
    except ValidationError as error:
        raise BrokenArchive(f"configuration: {one_line(error.errors()[0]['msg'])}") from error
    name = f"configuration {configuration.config_id!a:.40}"
    if list(configuration.shape) != list(opening.start["shape"]):
        raise BrokenArchive(f"{name}: for frames of another shape than the session's")
    if not math.isfinite(configuration.compression_factor):
        raise BrokenArchive(f"{name}: C = {configuration.compression_factor}")
    if part.dtype not in KEPT_DTYPES or part.wire_dtype not in FRAME_DTYPES:
        raise BrokenArchive(f"{name}: data of {part.dtype!a:.40}, numbers expected")
    if not math.isfinite(part.scale):
        raise BrokenArchive(f"{name}: a scale of {part.scale}")
    if not part.measurement_shape or part.offset_shape not in ((1,), part.measurement_shape):
        raise BrokenArchive(f"{name}: offset of shape {part.offset_shape} does not go with the data")
    values, width = math.prod(part.measurement_shape), np.dtype(part.dtype).itemsize
    if not 0 < values <= LARGEST_FRAME_PIXELS or (
        part.chunk_rows > 1 and part.chunk_rows * values > LARGEST_CHUNK_VALUES
    ):
        raise BrokenArchive(f"{name}: chunks of {part.chunk_rows} times {part.measurement_shape} values")
    if values * width > MAX_ARRAY_BYTES:
        raise BrokenArchive(f"{name}: measurements of {values * width} bytes")
    if row_dtype(part).itemsize > LARGEST_ROW_BYTES:
        raise BrokenArchive(f"{name}: rows of metadata of more than {LARGEST_ROW_BYTES} bytes")
    return configuration


def check_chunk(chunk: FrameChunk, part: Part, size: int) -> None:
    """Raise BrokenArchive unless the chunk has what its part says, in a body of ``size`` bytes."""
    if len(chunk.sizes) != (4 if part.columns else 3) or sum(chunk.sizes) != size:
        raise BrokenArchive(f"a record of {size} bytes whose chunks have {chunk.sizes}")
    if chunk.frames > part.chunk_rows or chunk.row % part.chunk_rows:
        raise BrokenArchive(f"a chunk of {chunk.frames} frames at row {chunk.row}, of {part.chunk_rows} each")


def row_dtype(part: Part) -> np.dtype[Any]:
    """Of a row's RELION columns, strings as bytes.

    Raises
    ------
    BrokenArchive
        If they are other than numbers and texts, or of one name.
    """
    names = [name for name, _ in part.columns]
    if len(set(names)) < len(names) or not all(0 < len(name) <= 255 for name in names):
        raise BrokenArchive("columns of metadata without names of their own")
    for name, kind in part.columns:
        if kind not in ("<i8", "<f8") and not _TEXT_COLUMN.fullmatch(kind):
            raise BrokenArchive(f"column {name!a:.60} of {kind!a:.40}, numbers or text expected")
    return np.dtype([(name, kind) for name, kind in part.columns])


def one_line(error: object) -> str:
    """What a library has to say about a stranger's bytes, printable and short."""
    return ascii(" ".join(str(error).split()))[1:-1][:200]
