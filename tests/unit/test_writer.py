"""Results on disk: whoever wrote what, how often, and however it ended."""

from __future__ import annotations

import csv
import errno
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import msgspec
import numpy as np
import pandas as pd
import pytest
import starfile

from common.configuration import CodecSpec, Configuration
from common.operators.spec import MaskSpec
from common.wire.codec import encode_array
from common.wire.messages import ConfigurationNotice, Frames, MalformedMessage, Start
from reconstructor.archive import (
    ArchiveWriter,
    archives,
    read_configurations,
    read_frame,
    read_reference,
    read_start,
    records,
)
from reconstructor.finalise import finalise, read_journals
from reconstructor.journal import find_row
from reconstructor.writer import Learned, Results, ResultsWriter, read_recovered

SHAPE = (12, 10)
CODEC = CodecSpec(values="integer", coding="packed")
CONFIGURATION = Configuration.create(
    MaskSpec(kind="none"),  # pyright: ignore[reportCallIssue]
    SHAPE,
    "uint8",
    CODEC,
    mask_hash="h",
    compression_factor=2.0,
    printed_compression_factor=2.0,
)
NOTICE = ConfigurationNotice(configuration=CONFIGURATION.model_dump(mode="json"))
OPENED = {
    "shape": list(SHAPE),
    "pixel_size_angstrom": 1.25,
    "optics": {"rlnOpticsGroup": 1, "rlnOpticsGroupName": "o1", "rlnVoltage": 300.0},
}


def _start(output: Path, expected: int | None = None) -> Start:
    return Start(
        series="s1",
        session="x",
        frames_expected=expected,
        shape=SHAPE,
        dtype="uint8",
        pixel_size_angstrom=1.25,
        output=str(output),
        optics=OPENED["optics"],  # pyright: ignore[reportArgumentType]
        calibration={},
    )


def _image(frame: int) -> np.ndarray:
    return np.random.default_rng(frame).normal(frame, 1, SHAPE).astype(np.float32)


def _measurement(frame: int) -> np.ndarray:
    return np.random.default_rng(frame).integers(0, 200, (7,)).astype(np.uint16)


def _reference(frame: int) -> np.ndarray:
    return np.random.default_rng(frame).integers(0, 255, SHAPE).astype(np.uint8)


def _results(
    ids: list[int],
    *,
    references: list[int] | None = None,
    recovered_at: float = 20.0,
    rows: list[int] | None = None,
) -> Results:
    references = references or []
    payload, buffer = encode_array(np.stack([_measurement(frame) for frame in ids]), CODEC)
    buffers = [buffer]
    reference_payload = None
    if references:
        reference_payload, whole = encode_array(np.stack([_reference(frame) for frame in references]), CODEC)
        buffers.append(whole)
    header = Frames(
        series="s1",
        block=ids[0],
        config_id=CONFIGURATION.config_id,
        frame_ids=ids,
        acquired_at=[10.0 + frame for frame in ids],
        payload=payload,
        reference_ids=references,
        reference_payload=reference_payload,
        metadata={
            "rlnDefocusU": [1000.0 + f for f in ids],
            "rlnImageName": [f'{f:06d}@in, "put".mrcs' for f in ids],
        },
    )
    rows = list(range(len(ids))) if rows is None else rows
    return Results(
        header=header,
        buffers=buffers,
        rows=rows,
        images=np.stack([_image(ids[row]) for row in rows]),
        compression_factor=2.0,
        recovery_id="r1",
        method="dct",
        recovered_at=recovered_at,
        free_residual=[0.5 if ids[row] % 2 else None for row in rows],
        psnr=dict.fromkeys(references, 30.0),
        ssim=dict.fromkeys(references, 0.9),
        lpips=dict.fromkeys(references, 0.25),
        frc_resolution_angstrom=dict.fromkeys(references, 4.0),
    )


def _write(output: Path, worker: str, *groups: list[Results]) -> None:
    with ResultsWriter(_start(output), worker) as writer:
        writer.configure(NOTICE)
        for group in groups:
            writer.write(group)


def test_results_open_in_mrcfile_and_starfile_with_everything_kept(tmp_path: Path) -> None:
    _write(tmp_path, "a", [_results([0, 1, 2], references=[0, 2])], [_results([4, 5])])
    accounts = {"frames_acquired": 7, "frames_lost": {"not finite": 2}}
    summary = finalise(tmp_path, OPENED, accounts)
    assert (summary.frames_acquired, summary.frames_recovered, summary.frames_missing) == (7, 5, 0)
    assert mrcfile.validate(tmp_path / "recovered.mrcs")
    with mrcfile.open(tmp_path / "recovered.mrcs") as stack:
        assert stack.is_image_stack()
        assert stack.data.shape == (7, *SHAPE)
        assert float(stack.voxel_size.x) == float(stack.voxel_size.y) == 1.25
        for frame in (0, 1, 2, 4, 5):
            np.testing.assert_array_equal(stack.data[frame], _image(frame))
        assert not stack.data[3].any()
        assert float(stack.header.dmax) == stack.data.max()
        assert float(stack.header.dmean) == pytest.approx(stack.data.mean(), rel=1e-5)
        assert float(stack.header.rms) == pytest.approx(stack.data.std(), rel=1e-5)
    assert mrcfile.validate(tmp_path / "references.mrcs")
    with mrcfile.open(tmp_path / "references.mrcs") as stack:
        np.testing.assert_array_equal(stack.data, [_reference(0), _reference(2)])
    star = starfile.read(tmp_path / "recovered.star")
    assert star["optics"]["rlnVoltage"].tolist() == [300.0] or star["optics"]["rlnVoltage"] == 300.0
    particles = star["particles"]
    assert particles["rlnImageName"].tolist() == [f"{k:06d}@recovered.mrcs" for k in (1, 2, 3, 5, 6)]
    assert particles["rlnDefocusU"].tolist() == [1000.0, 1001.0, 1002.0, 1004.0, 1005.0]
    table = pd.read_csv(tmp_path / "frames.csv")
    assert table["frame_id"].tolist() == [0, 1, 2, 4, 5]
    assert table["latency_seconds"].tolist() == [10.0, 9.0, 8.0, 6.0, 5.0]
    assert table["reference_slot"].dropna().tolist() == [0, 1]
    assert table["free_residual"].isna().tolist() == [True, False, True, True, False]
    assert set(table["config_id"]) == {CONFIGURATION.config_id}
    assert table["lpips"].isna().tolist() == [False, True, False, True, True]
    quality = summary.quality[CONFIGURATION.config_id]
    assert (quality["psnr"], quality["lpips"]) == (30.0, 0.25)


def test_what_a_learned_prior_did_stands_in_the_frames_own_row(tmp_path: Path) -> None:
    learned = [Learned(0.25, None, 20), Learned(None, 1.5, 10)]
    with_prior = replace(_results([0, 1]), learned=learned, method="diffusion")
    _write(tmp_path, "a", [with_prior], [_results([2, 3])])
    summary = finalise(tmp_path, OPENED, {"frames_acquired": 4})
    lines = (tmp_path / "frames.csv").read_text().splitlines()
    names = lines[0].split(",")
    first = names.index("prior_shift")
    assert names[first - 1 : first + 4] == [
        "free_residual", "prior_shift", "posterior_spread", "evaluations", "reference",
    ]  # fmt: skip
    rows = [line.split(",")[first : first + 3] for line in lines[1:]]
    assert rows == [["0.25", "", "20"], ["", "1.5", "10"], ["", "", ""], ["", "", ""]]
    quality = summary.quality[CONFIGURATION.config_id]
    assert (quality["learned_frames"], quality["prior_shift"]) == (1, 0.25)
    assert find_row(tmp_path, 1)["evaluations"] == "10"


def test_a_session_without_a_learned_prior_has_empty_columns_for_it(tmp_path: Path) -> None:
    _write(tmp_path, "a", [_results([0, 1])])
    summary = finalise(tmp_path, OPENED, {"frames_acquired": 2})
    table = pd.read_csv(tmp_path / "frames.csv")
    assert table[["prior_shift", "posterior_spread", "evaluations"]].isna().all(axis=None)
    quality = summary.quality[CONFIGURATION.config_id]
    assert quality["learned_frames"] == 0
    assert "prior_shift" not in quality


def test_a_block_that_is_written_in_parts_keeps_its_measurements_once(tmp_path: Path) -> None:
    whole = _results([0, 1, 2, 3])
    parts = [
        replace(
            whole,
            header=msgspec.structs.replace(whole.header, wanted=[first, first + 1]),
            rows=[first, first + 1],
            images=whole.images[first : first + 2],
            free_residual=whole.free_residual[first : first + 2],
        )
        for first in (0, 2)
    ]
    _write(tmp_path, "a", [parts[0]], [parts[1]])
    assert [type(record.message) for record in records(archives(tmp_path)[0])] == [
        Start, ConfigurationNotice, Frames,
    ]  # fmt: skip
    summary = finalise(tmp_path, OPENED, {"frames_acquired": 4})
    assert (summary.frames_recovered, summary.duplicates_dropped) == (4, 0)
    for frame in range(4):
        np.testing.assert_array_equal(read_frame(tmp_path, frame)[1], _measurement(frame))
        np.testing.assert_array_equal(read_recovered(tmp_path, frame), _image(frame))


def test_a_frame_delivered_twice_appears_once(tmp_path: Path) -> None:
    _write(tmp_path, "a", [_results([0, 1], recovered_at=20.0)])
    _write(tmp_path, "b", [_results([1, 2], recovered_at=21.0)], [_results([2], recovered_at=22.0)])
    summary = finalise(tmp_path, OPENED, {"frames_acquired": 3})
    assert (summary.frames_recovered, summary.duplicates_dropped) == (3, 2)
    table = pd.read_csv(tmp_path / "frames.csv")
    assert list(table["worker"]) == ["a", "b", "b"]
    assert table["recovered_at"].tolist() == [20.0, 21.0, 22.0]


def test_finalising_again_changes_nothing(tmp_path: Path) -> None:
    _write(tmp_path, "a", [_results([0, 1], references=[0])])
    names = ("recovered.mrcs", "references.mrcs", "recovered.star", "frames.csv")
    finalise(tmp_path, OPENED, {"frames_acquired": 2})
    once = {name: (tmp_path / name).read_bytes() for name in names[:1] + names[3:]}
    finalise(tmp_path, OPENED, {"frames_acquired": 2})
    assert once == {name: (tmp_path / name).read_bytes() for name in once}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(names)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_what_a_killed_worker_left_torn_is_ignored(tmp_path: Path, cut: int) -> None:
    _write(tmp_path, "a", [_results([0, 1, 2])])
    journal = tmp_path / "journal" / "a.csv"
    os.truncate(journal, journal.stat().st_size - cut)
    archive = archives(tmp_path)[0]
    _write(tmp_path, "b", [_results([2, 3])])
    table, duplicates = read_journals(tmp_path)
    assert table["frame_id"].tolist() == [0, 1, 2, 3]
    assert table["worker"].tolist() == ["a", "a", "b", "b"]
    assert duplicates == 0
    assert find_row(tmp_path, 2)["worker"] == "b"
    whole = [type(record.message) for record in records(archive)]
    os.truncate(archive, archive.stat().st_size - cut)
    assert [type(record.message) for record in records(archive)] == whole[:-1]


def test_two_workers_write_at_once_without_disturbing_each_other(tmp_path: Path) -> None:
    together = threading.Barrier(2)

    def work(worker: str, first: int) -> None:
        together.wait()
        blocks = [[_results([frame, frame + 2])] for frame in range(first, 100, 4)]
        _write(tmp_path, worker, *blocks)

    threads = [threading.Thread(target=work, args=args) for args in (("a", 0), ("b", 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    summary = finalise(tmp_path, OPENED, {"frames_acquired": 100})
    assert (summary.frames_recovered, summary.duplicates_dropped) == (100, 0)
    assert mrcfile.validate(tmp_path / "recovered.mrcs")
    with mrcfile.open(tmp_path / "recovered.mrcs") as stack:
        for frame in range(100):
            np.testing.assert_array_equal(stack.data[frame], _image(frame))


def test_a_session_without_a_frame_has_empty_tables(tmp_path: Path) -> None:
    summary = finalise(tmp_path, OPENED, {"frames_acquired": 0, "frames_lost": {}})
    assert summary.frames_recovered == 0
    assert len(pd.read_csv(tmp_path / "frames.csv")) == 0
    assert not (tmp_path / "recovered.mrcs").exists()


def test_frames_are_read_back_while_the_session_runs(tmp_path: Path) -> None:
    with ResultsWriter(_start(tmp_path, expected=10), "a") as writer:
        writer.configure(NOTICE)
        writer.write([_results([0, 1], references=[1]), _results([5, 6, 7], rows=[0, 2])])
        np.testing.assert_array_equal(read_recovered(tmp_path, 1), _image(1))
        np.testing.assert_array_equal(read_recovered(tmp_path, 7), _image(7))
        configuration, measurement = read_frame(tmp_path, 7)
        assert configuration == CONFIGURATION
        np.testing.assert_array_equal(measurement, _measurement(7))
        np.testing.assert_array_equal(read_reference(tmp_path, 1), _reference(1))
        assert read_reference(tmp_path, 0) is None
        for frame in (6, 2, 100):
            with pytest.raises(KeyError, match=f"frame {frame}"):
                read_recovered(tmp_path, frame)
    assert read_configurations(tmp_path) == {CONFIGURATION.config_id: CONFIGURATION}
    start = read_start(tmp_path)
    assert start is not None
    assert start.series == "s1"


def test_metadata_with_any_text_stays_on_one_line(tmp_path: Path) -> None:
    _write(tmp_path, "a", [_results([0, 1])])
    with (tmp_path / "journal" / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 3
    assert len((tmp_path / "journal" / "a.csv").read_text().splitlines()) == 3


def test_a_worker_never_writes_into_anothers_files(tmp_path: Path) -> None:
    _write(tmp_path, "a", [_results([0])])
    with pytest.raises(FileExistsError):
        ResultsWriter(_start(tmp_path), "a")


def test_an_archive_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path, "a") as archive:
        archive.append(_start(tmp_path))
        path = archive.path
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + b"\xff\xff\xff\x7f" + whole[12:])
    with pytest.raises(MalformedMessage, match="parts"):
        list(records(path))
    path.write_bytes(whole[:12] + (2**60).to_bytes(8, "little") + whole[20:])
    assert list(records(path)) == []
    path.write_bytes(b"something else altogether")
    with pytest.raises(MalformedMessage, match="not an archive"):
        list(records(path))


# ---- a disk that is full


class _Disk:
    """Takes so many bytes more and then none, as a full one does: it may take a part of what is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = sys.maxsize
        write, write_at = os.write, os.pwrite
        monkeypatch.setattr(os, "writev", lambda file, parts: write(file, self._taken(b"".join(parts))))
        monkeypatch.setattr(os, "pwrite", lambda file, data, at: write_at(file, self._taken(bytes(data)), at))

    def _taken(self, data: bytes) -> bytes:
        if data and not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = data[: self.room]
        self.room -= len(taken)
        return taken


def test_what_a_full_disk_cut_short_is_written_again_and_nothing_is_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in the files it was full."""
    disk = _Disk(monkeypatch)
    group = [_results([0, 1], references=[1]), _results([2])]

    def written(output: Path, room: int) -> int:
        """Write everything, each step again if the disk was full; the bytes that it took."""
        disk.room = room

        def again(step: Callable[[], Any]) -> Any:
            try:
                return step()
            except OSError:
                disk.room = sys.maxsize
                return step()

        writer = again(lambda: ResultsWriter(_start(output), "w"))
        again(lambda: writer.configure(NOTICE))
        again(lambda: writer.write(group))
        writer.close()
        return room - disk.room

    rooms = written(tmp_path / "all", sys.maxsize)
    for room in range(0, rooms, max(1, rooms // 30)):
        output = tmp_path / str(room)
        written(output, room)
        assert len(list(records(archives(output)[0]))) == 4
        summary = finalise(output, OPENED, {"frames_acquired": 3, "frames_lost": {}})
        assert (summary.frames_recovered, summary.duplicates_dropped) == (3, 0)
        for frame in range(3):
            np.testing.assert_array_equal(read_recovered(output, frame), _image(frame))
            np.testing.assert_array_equal(read_frame(output, frame)[1], _measurement(frame))
        np.testing.assert_array_equal(read_reference(output, 1), _reference(1))
