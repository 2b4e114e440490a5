"""Finding a frame's line in journals of any length."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconstructor import journal
from reconstructor.journal import COLUMNS, JournalWriter, find_row


def _row(frame_id: int, worker: str) -> tuple[object, ...]:
    known = {"frame_id": frame_id, "config_id": "c", "worker": worker, "psnr": frame_id / 8}
    return tuple(known.get(name) for name in COLUMNS)


@pytest.mark.parametrize("last_bytes", [1, 100, 1000, 1 << 20])
def test_every_line_is_found_whether_it_is_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_bytes: int
) -> None:
    monkeypatch.setattr(journal, "LAST_BYTES", last_bytes)
    for worker, begin in (("a", 0), ("b", 100)):
        with JournalWriter(tmp_path, worker) as writer:
            writer.append(_row(number, worker) for number in range(begin, begin + 100))
    for frame_id in (0, 1, 9, 10, 42, 99, 100, 101, 150, 199):
        row = find_row(tmp_path, frame_id)
        assert (int(row["frame_id"]), row["worker"]) == (frame_id, "a" if frame_id < 100 else "b")
    for missing in (200, 1000):
        with pytest.raises(KeyError):
            find_row(tmp_path, missing)


@pytest.mark.parametrize("last_bytes", [30, 1 << 20])
def test_line_of_a_worker_that_was_killed_while_writing_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_bytes: int
) -> None:
    monkeypatch.setattr(journal, "LAST_BYTES", last_bytes)
    with JournalWriter(tmp_path, "a") as writer:
        writer.append([_row(1, "a"), _row(2, "a")])
    path = tmp_path / journal.FOLDER / "a.csv"
    path.write_bytes(path.read_bytes()[:-1])
    assert find_row(tmp_path, 1)["worker"] == "a"
    with pytest.raises(KeyError):
        find_row(tmp_path, 2)


def test_newest_line_is_found_without_reading_the_whole_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with JournalWriter(tmp_path, "a") as writer:
        writer.append(_row(number, "a") for number in range(50_000))

    def whole(path: Path) -> bytes:
        raise AssertionError(f"{path} was read whole")

    monkeypatch.setattr(journal, "whole_lines", whole)
    assert find_row(tmp_path, 49_999)["frame_id"] == "49999"
