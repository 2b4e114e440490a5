"""Frames into blocks: full ones at once, the rest when it has waited long enough, none of them lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import detector_sim.assembler
from common.configuration import CodecSpec, Configuration
from common.operators.spec import MaskSpec
from common.wire.codec import decode_array
from common.wire.link import Buffer
from common.wire.messages import MAX_FRAMES_HEADER_BYTES, Frames, encode
from detector_sim.assembler import Assembler, Shots
from detector_sim.latency import LatencyHistogram

SHAPE = (8, 8)
FRAME_BYTES = 64


def _configuration(codec: CodecSpec | None = None) -> Configuration:
    return Configuration.create(
        MaskSpec(kind="none"),  # pyright: ignore[reportCallIssue]
        SHAPE,
        "uint8",
        codec or CodecSpec(values="integer", coding="plain"),
        mask_hash="h",
        compression_factor=1.0,
        printed_compression_factor=1.0,
    )


class _Outlet:
    def __init__(self) -> None:
        self.blocks: list[tuple[Frames, Sequence[Buffer]]] = []
        self.lost: list[tuple[int, str]] = []

    def assembler(self, block_bytes: int = 10 * FRAME_BYTES, block_frames: int = 1000) -> Assembler:
        return Assembler(
            "s1",
            block_bytes=block_bytes,
            block_frames=block_frames,
            linger_seconds=0.05,
            publish=lambda header, buffers: self.blocks.append((header, buffers)),
            lose=lambda frame_ids, reason: self.lost.append((len(frame_ids), reason)),
        )

    @property
    def frame_ids(self) -> list[list[int]]:
        return [header.frame_ids for header, _ in self.blocks]


def _star_row(frame: int, size: int) -> str:
    return f"{frame:06d}@" + "x" * size


@pytest.mark.parametrize(("frames", "blocks"), [(8, 1), (9, 2), (30, 4)])
def test_frames_with_much_metadata_travel_in_more_blocks(
    monkeypatch: pytest.MonkeyPatch, frames: int, blocks: int
) -> None:
    monkeypatch.setattr(detector_sim.assembler, "LARGEST_METADATA_BYTES", 8 * 120)
    outlet = _Outlet()
    assembler = outlet.assembler(block_bytes=100 * FRAME_BYTES)
    assembler.configure(_configuration(), FRAME_BYTES)
    shots = _shots(list(range(frames)), references=[1, 7])
    shots.metadata = {"rlnImageName": [_star_row(frame, 100) for frame in range(frames)]}
    assembler.add(shots, 0.0)
    assembler.flush()
    assert not outlet.lost
    assert [frame for block in outlet.frame_ids for frame in block] == list(range(frames))
    assert len(outlet.blocks) == blocks
    for header, buffers in outlet.blocks:
        assert header.metadata == {"rlnImageName": [_star_row(frame, 100) for frame in header.frame_ids]}
        values = decode_array(header.payload, buffers[0])
        assert values[:, 0, 0].tolist() == header.frame_ids
        if header.reference_ids:
            assert header.reference_payload is not None
            whole = decode_array(header.reference_payload, buffers[1])
            assert whole[:, 0, 0].tolist() == header.reference_ids
    assert sorted(frame for header, _ in outlet.blocks for frame in header.reference_ids) == [1, 7]


def test_a_frame_whose_metadata_no_header_holds_is_lost_alone() -> None:
    outlet = _Outlet()
    assembler = outlet.assembler()
    assembler.configure(_configuration(), FRAME_BYTES)
    shots = _shots([0, 1, 2])
    shots.metadata = {"rlnComment": ["short", "x" * MAX_FRAMES_HEADER_BYTES, "short"]}
    assembler.add(shots, 0.0)
    assembler.flush()
    assert sorted(frame for block in outlet.frame_ids for frame in block) == [0, 2]
    ((count, reason),) = outlet.lost
    assert count == 1
    assert "metadata take 33554" in reason
    for header, _ in outlet.blocks:
        assert len(encode(header)) < MAX_FRAMES_HEADER_BYTES


def _shots(ids: list[int], references: list[int] | None = None, dtype: str = "uint8") -> Shots:
    frames = np.stack([np.full(SHAPE, frame % 200, dtype) for frame in ids])
    references = references or []
    return Shots(
        frame_ids=ids,
        acquired_at=[float(frame) for frame in ids],
        measurements=frames,
        reference_ids=references,
        references=frames[[ids.index(frame) for frame in references]] if references else None,
        metadata={"rlnDefocusU": [1000.0 + frame for frame in ids]},
    )


def test_a_full_block_goes_at_once_and_the_rest_after_the_linger_time() -> None:
    outlet = _Outlet()
    assembler = outlet.assembler()
    assembler.configure(_configuration(), FRAME_BYTES)
    assembler.add(_shots([0, 1, 2, 3]), now=1.0)
    assert assembler.wait(1.0) == pytest.approx(0.05)
    assert assembler.missing == 6
    assembler.add(_shots([4, 5, 6, 7, 8, 9]), now=1.01)
    assert outlet.frame_ids == [list(range(10))]
    assert assembler.wait(1.01) is None
    assembler.add(_shots([10]), now=2.0)
    assert assembler.wait(2.06) == 0
    assembler.flush()
    assembler.flush()
    assert outlet.frame_ids[1:] == [[10]]


def test_a_block_holds_what_its_frames_brought() -> None:
    outlet = _Outlet()
    assembler = outlet.assembler()
    assembler.configure(_configuration(), FRAME_BYTES)
    assembler.add(_shots([5, 6], references=[6]), now=0.0)
    assembler.add(_shots([7, 9], references=[7]), now=0.0)
    assembler.flush()
    ((header, buffers),) = outlet.blocks
    assert header.frame_ids == [5, 6, 7, 9]
    assert header.acquired_at == [5.0, 6.0, 7.0, 9.0]
    assert header.metadata == {"rlnDefocusU": [1005.0, 1006.0, 1007.0, 1009.0]}
    assert decode_array(header.payload, buffers[0])[:, 0, 0].tolist() == [5, 6, 7, 9]
    assert header.reference_payload is not None
    assert header.reference_ids == [6, 7]
    assert decode_array(header.reference_payload, buffers[1])[:, 0, 0].tolist() == [6, 7]
    assert assembler.reference_bytes_raw == 2 * FRAME_BYTES
    assert assembler.reference_bytes > 0


def test_a_block_never_mixes_configurations() -> None:
    outlet = _Outlet()
    assembler = outlet.assembler()
    assembler.configure(_configuration(), FRAME_BYTES)
    assembler.add(_shots([0, 1]), now=0.0)
    other = _configuration(CodecSpec(values="integer", coding="bitshuffle-zstd"))
    assembler.configure(other, FRAME_BYTES)
    assembler.add(_shots([2]), now=0.0)
    assembler.flush()
    assert outlet.frame_ids == [[0, 1], [2]]
    assert [header.config_id for header, _ in outlet.blocks] == [_configuration().config_id, other.config_id]


def test_blocks_fill_by_what_frames_really_take_and_never_beyond_the_frame_limit() -> None:
    outlet = _Outlet()
    assembler = outlet.assembler(block_bytes=100 * FRAME_BYTES, block_frames=300)
    assembler.configure(_configuration(CodecSpec(values="integer", coding="packed")), FRAME_BYTES)
    assert assembler.frames_per_block == 100
    assembler.add(_shots([0] * 100), now=0.0)  # all alike: packed into next to nothing
    assert assembler.frames_per_block == 300


def test_one_frame_that_cannot_be_coded_is_the_only_one_lost() -> None:
    outlet = _Outlet()
    assembler = outlet.assembler()
    assembler.configure(
        _configuration(CodecSpec(values="quantised", step=1e-3, coding="bitshuffle-zstd")), 4 * FRAME_BYTES
    )
    shots = _shots([0, 1, 2, 3], references=[1, 3], dtype="float32")
    shots.measurements[2] = 1e30
    assembler.add(shots, now=0.0)
    assembler.flush()
    assert sorted(frame for ids in outlet.frame_ids for frame in ids) == [0, 1, 3]
    assert sorted(frame for header, _ in outlet.blocks for frame in header.reference_ids) == [1, 3]
    assert [count for count, _ in outlet.lost] == [1]


def test_latencies_are_counted_in_bins_twelve_percent_wide() -> None:
    histogram = LatencyHistogram()
    assert histogram.percentile(50) is None
    histogram.add([0.01] * 98 + [5.0, 1e9])
    histogram.add([-1.0])  # clocks may disagree
    assert histogram.counts.sum() == 101
    assert histogram.percentile(50) == pytest.approx(0.01, rel=0.13)
    assert histogram.percentile(99) == pytest.approx(5.0, rel=0.13)
    assert (histogram.counts[0], histogram.counts[-1]) == (1, 1)
