"""A recorded session's frames in order, at their times, and what is not there with the reason."""

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.archive import ArchiveWriter, BrokenArchive
from common.archive.chunks import encode_chunk
from common.configuration import CodecSpec
from detector_sim.replay import LOST_AT_ONCE, RecordedCamera, RecordedFrames
from tests.fuzz.forging import chunks_of, of_kind, put_together, refill, taken_apart
from tests.unit.test_archive import CODED, configuration, filled, measured, noise, opening, spoil


def read_all(recorded: RecordedFrames, count: int) -> tuple[dict[int, Any], dict[int, str]]:
    """Every frame with its values, configuration and metadata; and what was lost."""
    frames: dict[int, Any] = {}
    lost: dict[int, str] = {}
    while (batch := recorded.read(count)) is not None:
        assert len(batch.frame_ids) <= count
        assert len(batch) > 0
        for row, frame in enumerate(batch.frame_ids):
            assert frame > max(frames, default=-1)
            metadata = {name: column[row] for name, column in (batch.metadata or {}).items()}
            frames[frame] = (batch.values[row], batch.configuration, metadata)
        lost |= batch.lost
    return frames, lost


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_frames_come_in_order_each_with_what_it_was_taken_with(count: int, tmp_path: Path) -> None:
    every = filled(tmp_path / "a.h5")
    recorded = RecordedFrames(tmp_path / "a.h5")
    frames, lost = read_all(recorded, count)
    assert list(frames) == list(range(len(every)))
    for frame, (values, known, metadata) in frames.items():
        assert (values == every[frame]).all()
        assert known.codec.level == (3 if frame // 13 // 8 % 2 == 0 else 4)
        assert metadata == {"rlnDefocusU": float(frame), "rlnImageName": f"{frame}@stack.mrcs"}
    assert lost == {len(every): "spoiled", len(every) + 1: "spoiled"}
    recorded.close()


def test_workers_that_were_out_of_step_are_put_in_order(tmp_path: Path) -> None:
    known = configuration(CODED, CodecSpec(values="quantised", coding="packed", step=0.5))
    every = noise(90).astype(np.float32) / 4
    with ArchiveWriter.create(tmp_path / "a.h5", opening()) as writer:
        for first in (30, 0, 70, 10, 20, 60, 80):  # 40 to 59 are lost
            writer.append(measured(known, every[first : first + 10], first))
        writer.finish(90, lambda frame: "one" if frame < 50 else "another")
    recorded = RecordedFrames(tmp_path / "a.h5")
    frames, lost = read_all(recorded, 16)
    assert sorted([*frames, *lost]) == list(range(90))
    assert lost == {frame: "one" if frame < 50 else "another" for frame in range(40, 60)}
    steps = np.rint(every / 0.5) * 0.5
    assert all((values == steps[frame]).all() for frame, (values, _, _) in frames.items())


def test_it_goes_on_where_it_is_told_and_ends_where_it_is_told(tmp_path: Path) -> None:
    filled(tmp_path / "a.h5")
    recorded = RecordedFrames(tmp_path / "a.h5")
    recorded.seek(100)
    recorded.end = 110
    frames, lost = read_all(recorded, 4)
    assert (list(frames), lost) == (list(range(100, 110)), {})


def test_a_damaged_chunk_loses_its_frames_alone(tmp_path: Path) -> None:
    every = filled(tmp_path / "a.h5")
    spoil(tmp_path / "a.h5", "damaged chunk")
    recorded = RecordedFrames(tmp_path / "a.h5")
    rows = recorded.archive.parts[0].chunk_rows
    frames, lost = read_all(recorded, 10)
    damaged = {frame for frame, reason in lost.items() if "damaged" in reason}
    assert len(damaged) == rows
    assert len(frames) == len(every) - rows


def test_frames_that_are_far_apart_take_no_memory(tmp_path: Path) -> None:
    """A handful of frames of far apart numbers, and a claim that millions in between were lost."""
    known = configuration(CODED, CodecSpec(values="integer", coding="plain"))
    with ArchiveWriter.create(tmp_path / "a.h5", opening()) as writer:
        writer.append(measured(known, noise(10), 0))
        writer.finish(10, str)
    head, records, _ = taken_apart((tmp_path / "a.h5").read_bytes())
    numbers = np.array([0, 1, 2, 40_000, 80_000, 120_000, 160_000, 3 * 10**7, 3 * 10**7 + 1, 6 * 10**7])
    (chunk,), (ending,) = of_kind(records, "frames"), of_kind(records, "ending")
    frame_ids = encode_chunk(numbers.astype("<i8"), 128)
    refill(chunk, [chunks_of(chunk)[0], frame_ids, *chunks_of(chunk)[2:]])
    ending.header["frames_acquired"] = 6 * 10**7 + 1
    gaps = [(a + 1, b - 1) for a, b in itertools.pairwise(numbers.tolist()) if b - a > 1]
    ending.header["lost"] = [{"first": a, "last": b, "reason": "gone"} for a, b in gaps]
    (tmp_path / "a.h5").write_bytes(put_together(head, records))
    tracemalloc.start()
    recorded = RecordedFrames(tmp_path / "a.h5")
    seen: list[int] = []
    for start in (0, 3 * 10**7 - 100_000, 6 * 10**7 - 100_000):
        recorded.seek(start)
        at = start
        for _ in range(6):
            batch = recorded.read(64)
            if batch is None:
                break
            every = sorted([*batch.frame_ids, *batch.lost])
            assert every == list(range(at, at + len(every)))
            assert len(batch.lost) <= LOST_AT_ONCE
            assert set(batch.lost.values()) <= {"gone"}
            at += len(every)
            seen += batch.frame_ids
    assert seen == numbers.tolist()
    assert at == 6 * 10**7 + 1
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()
    recorded.close()


def test_an_archive_without_frames_is_refused(tmp_path: Path) -> None:
    with ArchiveWriter.create(tmp_path / "a.h5", opening()) as writer:
        writer.finish(0, str)
    with pytest.raises(BrokenArchive, match="not a single frame"):
        RecordedFrames(tmp_path / "a.h5")


# ---- the clock


@given(
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=40),
    steps=st.lists(st.floats(0.001, 0.2), min_size=1, max_size=400),
)
def test_exposures_end_when_they_did(gaps: list[float], steps: list[float]) -> None:
    ends = np.cumsum([0.0, *gaps])
    camera, now = RecordedCamera(ends, 100.0), 100.0
    times: list[float] = []
    for step in steps:
        while len(times) < len(ends) and (count := camera.due(now, len(ends) - len(times))):
            times += camera.take(count, now)
            assert times[-1] <= now + 1e-6
        if len(times) < len(ends):
            wait = camera.wait(now)
            assert wait is not None
            assert wait > 0
            assert times[-1] + ends[len(times)] - ends[len(times) - 1] == pytest.approx(now + wait, abs=1e-6)
        now += step
    assert np.allclose(np.array(times) - 100.0, ends[: len(times)], atol=1e-6)


def test_a_reader_that_is_late_shifts_the_clock() -> None:
    camera = RecordedCamera(np.arange(10) / 10, 0.0)
    assert camera.due(5.0, 10) == 3  # the camera keeps a quarter of a second
    assert camera.take(3, 5.0) == pytest.approx([4.75, 4.85, 4.95])
    assert camera.due(5.0, 10) == 0
    assert camera.wait(5.0) == pytest.approx(0.05)


def test_paused_time_is_not_made_up_for() -> None:
    camera = RecordedCamera(np.arange(10) / 10, 0.0)
    camera.take(camera.due(0.0, 1), 0.0)
    camera.pause(0.05)
    assert camera.due(3.0, 10) == 0
    camera.resume(3.0)
    assert camera.due(3.0, 10) == 1
    assert camera.idle_seconds(3.0) == 0
