"""The spool on disk: what was written comes back in order, exactly once, whatever becomes of the process."""

from __future__ import annotations

import os
import resource
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.wire.messages import ArrayHeader, Frames, Start
from detector_sim.spool import (
    ACCOUNT,
    LOCK,
    MISSING,
    Answer,
    Answers,
    Change,
    Exposed,
    Found,
    Head,
    Spool,
    SpoolDamaged,
    SpoolTaken,
    Turn,
    scan,
    unfinished,
)

LIMIT = 1_000_000


def head(series: str = "s1") -> Head:
    start = Start(
        series=series,
        session="x",
        frames_expected=None,
        shape=(8, 8),
        dtype="uint8",
        pixel_size_angstrom=1.0,
        output="out",
        optics={},
        calibration={"mean": 2.5},
    )
    return Head(start=start, spec={"camera": {"rate": 5.0}}, began_at=1.0)


def frames(block: int, ids: list[int], series: str = "s1") -> Frames:
    return Frames(
        series=series,
        block=block,
        config_id="A",
        frame_ids=ids,
        acquired_at=[float(frame) for frame in ids],
        payload=ArrayHeader(shape=[len(ids), 4], dtype="uint8", coding="plain"),
        metadata={"rlnDefocusU": [100.0 + frame for frame in ids]},
    )


def payload(block: int, size: int = 100) -> list[bytes]:
    return [bytes((block + k) % 256 for k in range(size)), b"reference %d" % block]


def acked(block: int, ids: list[int]) -> Answers:
    return Answers(answers=[Answer(block=block, frame_ids=ids)])


def again(spool: Spool) -> tuple[Spool, Found]:
    """Go on in another process: this one says nothing more."""
    spool.close()
    return Spool.resume(spool.folder, spool.limit_bytes)


def contents(spool: Spool, found: Found) -> dict[int, tuple[list[int], list[bytes]]]:
    """Every open block: the frames wanted, and the buffers."""
    result = {}
    for block in found.blocks:
        header, buffers = spool.read(block.block)
        wanted = header.frame_ids if header.wanted is None else header.wanted
        assert tuple(wanted) == block.frame_ids
        assert block.size == sum(map(len, buffers))
        result[block.block] = (wanted, [bytes(buffer) for buffer in buffers])
    return result


def balanced(found: Found) -> bool:
    waiting = sum(len(block.frame_ids) for block in found.blocks)
    lost = sum(found.lost.values())
    return found.exposed == found.acknowledged + lost + waiting + len(found.gathering)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path, head(), LIMIT)


# ---- what a successor finds


def test_what_was_not_settled_is_found_again_in_order(spool: Spool) -> None:
    for block in range(5):
        spool.append(frames(block, [2 * block, 2 * block + 1]), payload(block))
    spool.note(acked(1, [2, 3]))
    spool.note(acked(3, [7]))
    spool, found = again(spool)
    assert [block.block for block in found.blocks] == [0, 2, 3, 4]
    assert contents(spool, found) == {
        block: ([6] if block == 3 else [2 * block, 2 * block + 1], payload(block)) for block in (0, 2, 3, 4)
    }
    assert (found.exposed, found.acknowledged, found.lost, found.next_block) == (10, 3, {}, 5)
    assert found.head == head()
    header, _ = spool.read(2)
    assert header == frames(2, [4, 5])
    assert balanced(found)


def test_frames_exposed_and_not_in_a_block_are_told_apart(spool: Spool) -> None:
    spool.note(Exposed(until=4))
    spool.append(frames(0, [0, 1, 3]), payload(0))
    spool.note(Answers(answers=[Answer(block=None, frame_ids=[2], reason="not finite")]))
    spool.note(Exposed(until=9))
    spool.note(Answers(answers=[Answer(block=None, frame_ids=[6], reason="not finite")]))
    _, found = again(spool)
    assert found.gathering_from == 4
    assert found.gathering == [4, 5, 7, 8]
    assert (found.exposed, found.lost) == (9, {"not finite": 2})
    assert balanced(found)


def test_a_dropped_block_is_lost_and_not_exposed_again(spool: Spool) -> None:
    spool.note(Exposed(until=6))
    spool.append(frames(0, [0, 1, 2]), payload(0))
    spool.note(Answers(answers=[Answer(block=1, frame_ids=[3, 4, 5], reason="spool full")]))
    _, found = again(spool)
    assert found.gathering == []
    assert found.lost == {"spool full": 3}
    assert found.next_block == 2


def test_changes_phase_and_figures_are_kept(spool: Spool) -> None:
    changes = [Change(configuration={"config_id": name}, first_frame=k) for k, name in enumerate("AB")]
    for change in changes:
        spool.note(change)
    spool.note(Turn(phase="paused"))
    spool.note(Answers(answers=[], figures={"bytes_wire": 5}))
    spool.note(Answers(answers=[]))
    for _ in range(2):  # from the records, and from the snapshot that the first successor wrote
        spool, found = again(spool)
        assert found.changes == changes
        assert (found.phase, found.figures) == ("paused", {"bytes_wire": 5})


def test_a_settled_spool_leaves_no_blocks_and_takes_no_room(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, head(), 20_000)
    largest = 0
    for block in range(500):
        assert spool.fits(112)
        spool.append(frames(block, [block]), payload(block))
        spool.note(acked(block, [block]))
        largest = max(largest, sum(path.stat().st_size for path in spool.folder.glob("blocks-*")))
        assert spool.bytes <= 20_000
    assert largest <= 20_000
    _, found = again(spool)
    assert (found.blocks, found.acknowledged, found.exposed) == ([], 500, 500)
    assert not list(spool.folder.glob("blocks-*"))


def test_the_limit_is_told_and_an_empty_spool_takes_any_block(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, head(), 2000)
    assert spool.fits(10**9)
    block = 0
    while spool.fits(112):
        spool.append(frames(block, [block]), payload(block))
        block += 1
    assert 2 < block < 20
    assert spool.bytes <= 2000 + 300  # at most a header over it
    for settled in range(block):
        spool.note(acked(settled, [settled]))
    assert spool.fits(10**9)


def test_space_comes_back_behind_a_block_that_nobody_settles(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, head(), 100_000)
    spool.append(frames(0, [0]), payload(0))
    for block in range(1, 2000):
        assert spool.fits(112), block
        spool.append(frames(block, [block]), payload(block))
        spool.note(acked(block, [block]))
    _, found = again(spool)
    assert [block.block for block in found.blocks] == [0]
    assert found.acknowledged == 1999
    assert balanced(found)


def test_a_long_account_is_rewritten_and_says_the_same(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector_sim.spool.COMPACTED_AT_BYTES", 2000)
    for block in range(300):
        spool.note(Exposed(until=2 * block + 2))
        spool.append(frames(block, [2 * block, 2 * block + 1]), payload(block))
        spool.note(acked(block, [2 * block] if block % 7 == 0 else [2 * block, 2 * block + 1]))
    assert (spool.folder / ACCOUNT).stat().st_size < 4000
    spool, found = again(spool)
    expected = list(range(0, 300, 7))
    assert [block.block for block in found.blocks] == expected
    assert {block: wanted for block, (wanted, _) in contents(spool, found).items()} == {
        block: [2 * block + 1] for block in expected
    }
    assert found.acknowledged == 600 - len(expected)
    assert balanced(found)


def test_only_one_process_has_a_series(spool: Spool, tmp_path: Path) -> None:
    with pytest.raises(SpoolTaken, match="another detector"):
        Spool.resume(spool.folder, LIMIT)
    assert unfinished(tmp_path) == [spool.folder]
    spool.remove()
    assert unfinished(tmp_path) == []
    assert unfinished(tmp_path / "nowhere") == []


# ---- torn and damaged files


def _whole(tmp_path: Path) -> tuple[Spool, dict[int, tuple[list[int], list[bytes]]]]:
    """A spool with three open blocks and a bit of history."""
    spool = Spool.create(tmp_path, head(), LIMIT)
    for block in range(4):
        spool.note(Exposed(until=2 * block + 2))
        spool.append(frames(block, [2 * block, 2 * block + 1]), payload(block, 40))
    spool.note(acked(1, [2, 3]))
    spool.note(acked(2, [4]))
    spool.close()
    resumed, found = Spool.resume(_copy(spool.folder, tmp_path / "reference"), LIMIT)
    return spool, contents(resumed, found)


def _copy(folder: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    for path in folder.iterdir():
        if path.name != LOCK:
            shutil.copy(path, to / path.name)
    return to


def test_a_tail_torn_at_any_byte_takes_nothing_else_along(tmp_path: Path) -> None:
    spool, whole = _whole(tmp_path)
    (segment,) = spool.folder.glob("blocks-*")
    data = segment.read_bytes()
    ends = [found.end for found in scan(segment) if not isinstance(found, str)]
    assert ends[-1] == len(data)
    for cut in range(len(data)):
        copy = _copy(spool.folder, tmp_path / "torn")
        with (copy / segment.name).open("r+b") as file:
            file.truncate(cut)
        torn, found = Spool.resume(copy, LIMIT)
        left = [block for block in whole if ends[block] <= cut]
        assert contents(torn, found) == {block: whole[block] for block in left}
        assert found.damages == []
        assert balanced(found)
        # blocks are never lost by a tear that an account written later than they knows of
        known = sum(len(wanted) for wanted, _ in whole.values())
        kept = sum(len(whole[block][0]) for block in left)
        assert found.lost.get(MISSING, 0) + len(found.gathering) == known - kept
        torn.close()


def test_an_account_torn_at_any_byte_never_says_more_than_was_written(tmp_path: Path) -> None:
    spool, whole = _whole(tmp_path)
    account = spool.folder / ACCOUNT
    records = [found for found in scan(account) if not isinstance(found, str)]
    for cut in range(records[0].end, account.stat().st_size):
        copy = _copy(spool.folder, tmp_path / "torn")
        with (copy / ACCOUNT).open("r+b") as file:
            file.truncate(cut)
        torn, found = Spool.resume(copy, LIMIT)
        assert found.damages == []
        assert balanced(found)
        assert found.lost == {}
        assert found.exposed == 8
        assert {block for block, _, _ in found.blocks} >= set(whole)  # asked for again at most
        torn.close()


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    spool, whole = _whole(tmp_path)
    (segment,) = spool.folder.glob("blocks-*")
    records = [found for found in scan(segment) if not isinstance(found, str)]
    settled = records[1]  # nobody will read its payload again
    unread = range(settled.end - settled.payload_bytes, settled.end)
    for path in [segment, spool.folder / ACCOUNT]:
        data = path.read_bytes()
        for position in range(len(data)):
            if path == segment and position in unread:
                continue
            copy = _copy(spool.folder, tmp_path / "flipped")
            flipped = bytearray(data)
            flipped[position] ^= 1 << (position % 8)
            (copy / path.name).write_bytes(flipped)
            try:
                damaged, found = Spool.resume(copy, LIMIT)
            except SpoolDamaged:
                assert path.name == ACCOUNT
                continue
            assert balanced(found)
            noticed = bool(found.damages)
            for block, wanted, _ in found.blocks:
                try:
                    _, buffers = damaged.read(block)
                except SpoolDamaged:
                    noticed = True
                    continue
                if block in whole:
                    assert [bytes(buffer) for buffer in buffers] == whole[block][1]
                    assert set(wanted) >= set(whole[block][0])
            assert noticed, f"{path.name} byte {position}"
            damaged.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=300), where=st.sampled_from(["account", "blocks-00000001"]))
def test_rubbish_is_refused_or_skipped(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, where: str
) -> None:
    spool = Spool.create(tmp_path_factory.mktemp("rubbish"), head(), LIMIT)
    spool.append(frames(0, [0]), payload(0))
    spool.close()
    (spool.folder / where).write_bytes(data)
    try:
        resumed, found = Spool.resume(spool.folder, LIMIT)
    except SpoolDamaged:
        assert where == ACCOUNT
    else:
        assert balanced(found)
        resumed.close()


def test_another_format_is_not_guessed_at(tmp_path: Path) -> None:
    import msgspec

    spool = Spool.create(tmp_path, msgspec.structs.replace(head(), format=99), LIMIT)
    spool.close()
    with pytest.raises(SpoolDamaged, match="format 99"):
        Spool.resume(spool.folder, LIMIT)


# ---- a disk that is full


class FullDisk:
    """No file of this process may grow beyond some size: writing further fails as on a full disk."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._before[1]))

    def __exit__(self, *error: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def test_a_block_that_could_not_be_written_leaves_nothing_behind(spool: Spool) -> None:
    spool.append(frames(0, [0]), payload(0))
    before = spool.bytes
    with FullDisk(before + 50), pytest.raises(OSError, match="large"):
        spool.append(frames(1, [1]), payload(1))
    assert spool.bytes == before == sum(path.stat().st_size for path in spool.folder.glob("blocks-*"))
    spool.append(frames(2, [2]), payload(2))
    _, found = again(spool)
    assert [block.block for block in found.blocks] == [0, 2]
    assert found.damages == []
    assert found.lost == {MISSING: 1}  # it was in memory only
    assert balanced(found)


def test_what_could_not_be_noted_is_noted_with_the_next(spool: Spool) -> None:
    for block in range(3):
        spool.append(frames(block, [block]), payload(block))
    with FullDisk(10):
        for block in range(2):
            with pytest.raises(OSError, match="large"):
                spool.note(acked(block, [block]))
    spool.note(Exposed(until=3))
    _, found = again(spool)
    assert [block.block for block in found.blocks] == [2]
    assert (found.acknowledged, found.exposed) == (2, 3)
    assert found.damages == []


def test_a_folder_that_cannot_be_made_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        Spool.create(tmp_path / "file", head(), LIMIT)
    with FullDisk(10), pytest.raises(OSError, match="large"):
        Spool.create(tmp_path, head(), LIMIT)
    assert unfinished(tmp_path) == []
    assert not (tmp_path / "s1").exists()


def test_files_are_closed(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    spool = Spool.create(tmp_path, head(), 5000)
    for block in range(30):
        spool.append(frames(block, [block]), payload(block))
    for block in range(25):
        spool.note(acked(block, [block]))
    spool, found = again(spool)
    contents(spool, found)
    assert descriptors() - before < 20
    spool.close()
    assert descriptors() == before
    assert Counter(block.block for block in found.blocks) == Counter(range(25, 30))
