"""Files that claim more than they hold are refused before anything is allocated for them."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from detector_sim.sources import SourceError
from detector_sim.sources.stack import open_stack
from detector_sim.sources.star import MAX_COLUMNS, MAX_LINE_BYTES, StarSource
from detector_sim.sources.tiff_survey import check_directories


def refusal(read: Callable[[], Any], most_bytes: int = 2_000_000) -> str:
    """How it is refused: in one line, without a large allocation on the way."""
    tracemalloc.start()
    try:
        with pytest.raises(SourceError) as caught:
            read()
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def mrc(path: Path, nx: int, ny: int, nz: int, extended: int = 0) -> Path:
    header = bytearray(1024)
    struct.pack_into("<4i", header, 0, nx, ny, nz, 2)
    struct.pack_into("<i", header, 92, extended)
    header[208:216] = b"MAP DD\0\0"
    path.write_bytes(bytes(header) + bytes(400))
    return path


@pytest.mark.parametrize(
    ("sides", "extended"),
    [
        ((2**31 - 1, 2**31 - 1, 2**31 - 1), 0),
        ((10_000, 10_000, 1000), 0),
        ((10, 10, 1), 2**31 - 1),
        ((200_000, 1, 1), 0),
        ((-10, 10, 1), 0),
    ],
)
def test_mrc_headers_are_held_against_the_file(
    tmp_path: Path, sides: tuple[int, int, int], extended: int
) -> None:
    path = mrc(tmp_path / "a.mrc", *sides, extended)
    assert str(path) in refusal(lambda: open_stack(path))


def tiff(path: Path, **options: Any) -> bytearray:
    tifffile.imwrite(path, np.arange(64 * 64, dtype=np.uint16).reshape(64, 64), metadata=None, **options)
    return bytearray(path.read_bytes())


def tags(content: bytearray) -> dict[int, int]:
    """Where each tag of the first page stands."""
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    return {struct.unpack_from("<H", content, at + 2 + 12 * k)[0]: at + 2 + 12 * k for k in range(count)}


@pytest.mark.parametrize(
    ("tag", "changes", "told"),
    [
        (256, ((2, "<H", 4), (8, "<I", 2**31)), "sides up to"),
        (256, ((2, "<H", 4), (8, "<I", 131_072)), "truncated"),
        (256, ((4, "<I", 2),), "values"),
        (257, ((0, "<H", 256),), "twice"),
        (259, ((8, "<H", 7),), "coding 7 is not read"),
        (259, ((8, "<H", 34892),), "coding 34892 is not read"),
        (273, ((4, "<I", 2**31),), "tag 273"),
        (279, ((4, "<I", 2**31),), "tag 279"),
        (279, ((8, "<I", 0),), "truncated"),
    ],
)
def test_tiff_directories_are_held_against_the_file(
    tmp_path: Path, tag: int, changes: tuple[tuple[int, str, int], ...], told: str
) -> None:
    path = tmp_path / "a.tif"
    content = tiff(path)
    for place, layout, number in changes:
        struct.pack_into(layout, content, tags(content)[tag] + place, number)
    path.write_bytes(content)
    assert told in refusal(lambda: open_stack(path))


def test_a_chain_of_tiff_pages_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    content = tiff(path)
    (first,) = struct.unpack_from("<I", content, 4)
    struct.pack_into("<I", content, max(tags(content).values()) + 12, first)
    path.write_bytes(content)
    assert "no end" in refusal(lambda: open_stack(path))


@pytest.mark.parametrize("options", [{"bigtiff": True}, {"byteorder": ">"}, {"compression": "zstd"}, {}])
def test_good_directories_pass(tmp_path: Path, options: dict[str, Any]) -> None:
    tiff(tmp_path / "a.tif", **options)
    check_directories(tmp_path / "a.tif")
    zeros = np.zeros((4, 2048, 2048), np.uint16)  # a dark frame compresses to next to nothing
    tifffile.imwrite(tmp_path / "z.tif", zeros, compression="zstd", metadata=None, photometric="minisblack")
    stack = open_stack(tmp_path / "z.tif")
    assert stack.count == 4
    assert not stack.frames(0, 4).any()
    stack.close()


HEAD = "data_\nloop_\n_rlnImageName\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD + "1@s.mrcs " * MAX_COLUMNS + "x\n", "values"),
        (HEAD + "x" * (MAX_LINE_BYTES + 1), "bytes"),
        (HEAD + "1@s.mrcs\0\n", "control characters"),
        ("data_\nloop_\n_rlnImageName\n_rlnImageName\n1@s.mrcs 2@s.mrcs\n", "twice"),
        (HEAD + "9" * 300 + "@s.mrcs\n", "index@stack"),
        (HEAD + "\u00b2@s.mrcs\n", "index@stack"),
        (HEAD + "1@" + "s" * 5000 + "\n", "name"),
    ],
)
def test_star_files_out_of_proportion_are_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "p.star"
    path.write_text(text)
    assert told in refusal(lambda: StarSource(path), 20_000_000)


def test_a_star_file_that_was_mended_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((2, 8, 8), np.uint8), photometric="minisblack")
    path.write_text(HEAD.replace("_rln", "_rlnOther\n_rln") + "1@s.tif\n2@s.tif\n")
    refusal(lambda: StarSource(path), 20_000_000)
    path.write_text(HEAD + "1@s.tif\n2@s.tif\n")
    with StarSource(path, 1.0) as source:
        assert source.frame_count == 2
