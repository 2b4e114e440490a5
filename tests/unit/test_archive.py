"""The archive: what goes in comes out, by h5py alone too, and from a file that was cut or never closed."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from common.archive import Archive, ArchiveWriter, BrokenArchive, Measured, Opening
from common.archive.chunks import decode_chunk, encode_chunk, fletcher32
from common.archive.hdf5 import lookup3
from common.archive.reader import DAMAGED
from common.configuration import CodecSpec, Configuration
from common.flat_level import FlatLevel
from common.operators.spec import MaskSpec
from common.wire.codec import decode_array, encode_array
from reconstructor.packing import as_sent
from tests.fuzz.forging import chunks_of, deflated, of_kind, put_together, refill, taken_apart

SIDE = 16


def opening(side: int = SIDE) -> Opening:
    start = {
        "series": "u", "session": "s", "frames_expected": None, "shape": [side, side], "dtype": "uint8",
        "pixel_size_angstrom": 1.5, "output": "/nowhere", "optics": {"rlnVoltage": 300.0}, "calibration": {},
    }  # fmt: skip
    return Opening(
        software="test", created_at=0.0, start=start, specification={"source": {"kind": "pattern"}}
    )


def configuration(mask: dict[str, Any], codec: CodecSpec, dtype: str = "uint8") -> Configuration:
    spec = MaskSpec.model_validate(mask)
    operator = spec.build((SIDE, SIDE))
    return Configuration.create(
        spec, (SIDE, SIDE), dtype, codec, mask_hash=operator.mask_hash,
        compression_factor=operator.compression_factor,
        printed_compression_factor=operator.printed_compression_factor,
    )  # fmt: skip


CODED = {"kind": "coded-aperture", "kernel_size": 4, "mask_count": 8}


def measured(known: Configuration, values: np.ndarray, first: int, **more: Any) -> Measured:
    """Frames from ``first`` on, through the wire's codec as a session has it."""
    header, payload = encode_array(values, known.codec)
    operator = known.mask.build(known.shape)
    zeros = np.zeros((1, *operator.measurement_shape), np.int64)
    return Measured(
        configuration=known.model_dump(mode="json"),
        values=as_sent(header, payload),
        scale=known.codec.step if known.codec.values == "quantised" else 1.0,
        flat=FlatLevel(operator, known.codec.level).put_back(zeros)[0]
        if known.codec.level
        else np.zeros(1, int),
        frame_ids=range(first, first + len(values)),
        acquired_at=[1e9 + frame / 7 for frame in range(first, first + len(values))],
        **more,
    )


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 20, (count, 8, 4, 4)).round().astype(np.int16)


def filled(path: Path, blocks: int = 40, frames: int = 13) -> np.ndarray:
    """An archive of two configurations in turn, with references; returns the measurements by frame_id."""
    codecs = [CodecSpec(values="integer", coding="packed", level=level) for level in (3, 4)]
    two = [configuration(CODED, codec) for codec in codecs]
    every = noise(blocks * frames)
    with ArchiveWriter.create(path, opening()) as writer:
        for block in range(blocks):
            first = block * frames
            writer.append(
                measured(
                    two[block // 8 % 2], every[first : first + frames], first,
                    metadata={"rlnDefocusU": [float(first + k) for k in range(frames)],
                              "rlnImageName": [f"{first + k}@stack.mrcs" for k in range(frames)]},
                )
            )  # fmt: skip
            writer.add_reference(first, np.full((SIDE, SIDE), block, np.uint8))
        writer.renew_view()
        writer.finish(len(every) + 2, lambda frame: "spoiled", {"frames": {}})
    return every


# ---- the parts of the format


@pytest.mark.parametrize(
    ("data", "hashed"), [(b"", 0xDEADBEEF), (b"Four score and seven years ago", 0x17770551)]
)
def test_the_checksum_of_metadata_is_lookup3(data: bytes, hashed: int) -> None:
    assert lookup3(data) == hashed


@pytest.mark.parametrize("size", [0, 1, 2, 7, 1000, 2_500_001])
def test_the_checksum_of_chunks_is_that_of_the_library(size: int, tmp_path: Path) -> None:
    data = np.random.default_rng(size).integers(0, 256, max(size, 1), np.uint8)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        dataset = file.create_dataset("d", data=data, chunks=data.shape, fletcher32=True)
        _, chunk = dataset.id.read_direct_chunk((0,))
    assert chunk[-4:] == fletcher32(data.tobytes()).to_bytes(4, "little")


@given(
    rows=npst.arrays(
        st.sampled_from(["<i2", "<i4", "<i8", "u1", "<f4", "<f8"]),
        st.tuples(st.integers(1, 9), st.integers(1, 50), st.integers(1, 3)),
        fill=st.just(0),
    ),
    missing=st.integers(0, 20),
)
def test_a_chunk_comes_back(rows: np.ndarray, missing: int) -> None:
    chunk = encode_chunk(rows, len(rows) + missing)
    per_row = rows.size // len(rows)
    decoded = decode_chunk(chunk, rows.dtype, (len(rows) + missing) * per_row)
    assert decoded[: rows.size].tobytes() == rows.tobytes()
    assert not decoded[rows.size :].view(np.uint8).any()


# ---- measurements


@st.composite
def sessions(draw: st.DrawFn) -> tuple[Configuration, list[np.ndarray]]:
    values = draw(st.sampled_from(["integer", "quantised", "float32", "float16"]))
    packs = values in ("integer", "quantised")
    codings = ["plain", "bitshuffle-lz4", "bitshuffle-zstd", *(["packed"] if packs else [])]
    coding = draw(st.sampled_from(codings))
    if values == "integer":
        dtype = draw(st.sampled_from(["uint8", "int16", "uint16", "int32", "int64"]))
        limits = np.iinfo(dtype)
        top = draw(st.sampled_from([20, 300, 40000, 2**31 - 1, 2**40]))
        elements = st.integers(max(limits.min, -top), min(limits.max, top))
        codec = CodecSpec(values="integer", coding=coding, level=draw(st.integers(0, 60)))
        if dtype == "int64" and coding == "packed":
            codec = CodecSpec(values="integer", coding="plain")
    else:
        dtype = "float32"
        elements = st.floats(-1e6, 1e6, width=32)
        step = draw(st.floats(1e-2, 10)) if values == "quantised" else 0.0
        codec = CodecSpec(values=values, coding=coding, step=step)
    shape = (8, 4, 4)
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    blocks = [draw(npst.arrays(dtype, (count, *shape), elements=elements)) for count in counts]
    return configuration(CODED, codec), blocks


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(session=sessions())
def test_measurements_come_back_as_they_were_sent(
    session: tuple[Configuration, list[np.ndarray]], tmp_path: Path
) -> None:
    known, blocks = session
    path = tmp_path / "a.h5"
    path.unlink(missing_ok=True)
    first = 0
    with ArchiveWriter.create(path, opening()) as writer:
        for block in blocks:
            assert writer.append(measured(known, block, first)) == len(block)
            assert writer.append(measured(known, block, first)) == 0  # delivered twice
            first += len(block)
        writer.finish(first, lambda frame: "?")
    wired = [decode_array(*encode_array(block, known.codec)) for block in blocks]
    expected = np.concatenate(wired)
    level = FlatLevel(known.mask.build((SIDE, SIDE)), known.codec.level)
    with h5py.File(path) as file:
        seen = {}
        for group in file["entry/measurements"].values():
            mask = json.loads(group["configuration"][()])["mask"]
            assert mask == known.mask.model_dump(mode="json")
            values = (group["data"][:] + group["offset"][:]) * group["scale"][()]
            seen |= dict(zip(group["frame_id"][:].tolist(), values, strict=True))
    assert sorted(seen) == list(range(first))
    by_h5py = np.stack([seen[frame] for frame in range(first)])
    whole = expected.astype(np.int64) if known.codec.values == "integer" else expected
    np.testing.assert_allclose(by_h5py, level.put_back(whole), rtol=1e-7)
    with Archive(path) as archive:
        assert (archive.frames, archive.frames_acquired, archive.lost, archive.whole) == (
            first,
            first,
            [],
            True,
        )
        for part in archive.parts:
            rows = part.read(0, part.frames)
            sent = np.concatenate([as_sent(*encode_array(block, known.codec)) for block in blocks])
            np.testing.assert_array_equal(rows.values, sent[rows.frame_ids])
            assert rows.acquired_at == [1e9 + frame / 7 for frame in rows.frame_ids]


def test_columns_that_change_their_kind_or_width_are_kept(tmp_path: Path) -> None:
    known = configuration(CODED, CodecSpec(values="integer", coding="plain"))
    tables: list[dict[str, list[Any]] | None] = [
        {"rlnDefocusU": [1, 2]}, {"rlnDefocusU": [1.5, 2]}, {"rlnDefocusU": [1, 2]}, None,
        {"rlnImageName": ["a", "bé"]}, {"rlnImageName": ["x" * 300, ""]}, {"rlnImageName": ["y", "z"]},
    ]  # fmt: skip
    with ArchiveWriter.create(tmp_path / "a.h5", opening()) as writer:
        for k, table in enumerate(tables):
            writer.append(measured(known, noise(2, k), 2 * k, metadata=table))
        writer.finish(2 * len(tables), str)
    found: dict[int, dict[str, Any]] = {}
    with Archive(tmp_path / "a.h5") as archive:
        assert len(archive.parts) < len(tables)
        for part in archive.parts:
            rows = part.read(0, part.frames)
            for k, frame in enumerate(rows.frame_ids):
                found[frame] = {name: column[k] for name, column in (rows.metadata or {}).items()}
    expected = [
        {name: column[row] for name, column in (table or {}).items()} for table in tables for row in (0, 1)
    ]
    assert [found[frame] for frame in range(2 * len(tables))] == expected


def test_what_is_lost_is_listed_and_references_are_whole(tmp_path: Path) -> None:
    every = filled(tmp_path / "a.h5")
    with Archive(tmp_path / "a.h5") as archive:
        assert archive.lost_by_reason == {"spoiled": 2}
        assert archive.frames_acquired == len(every) + 2
        assert archive.message == ""
        assert np.array_equal(archive.read_reference(26), np.full((SIDE, SIDE), 2))
        assert archive.read_reference(27) is None
        assert len(archive.parts) == 2


def test_the_library_can_append_to_an_archive(tmp_path: Path) -> None:
    """The structures are not only readable: the library's own B-tree code works on them."""
    filled(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        data = file["entry/measurements/configuration_001/data"]
        before = data[:]
        data.resize(len(data) + 5000, axis=0)
        data[-5000:] = 7
        file["entry"].create_group("notes").attrs["by"] = "h5py"
    with h5py.File(tmp_path / "a.h5") as file:
        data = file["entry/measurements/configuration_001/data"]
        assert (data[: len(before)] == before).all()
        assert (data[len(before) :] == 7).all()
        assert file["entry/notes"].attrs["by"] == "h5py"


# ---- cut, killed


def test_a_cut_archive_is_read_up_to_its_last_whole_chunk(tmp_path: Path) -> None:
    path, cut_path = tmp_path / "a.h5", tmp_path / "cut.h5"
    every = filled(path)
    data = path.read_bytes()
    ends: list[tuple[int, int]] = []  # where a group of rows ends in the file, and how many they are
    with h5py.File(path) as file:
        known = {}
        for group in file["entry/measurements"].values():
            last, rows = group["relion"].id, group["data"].chunks[0]
            for k in range(last.get_num_chunks()):
                chunk = last.get_chunk_info(k)
                ends.append((chunk.byte_offset + chunk.size, min(rows, len(group["data"]) - k * rows)))
            values = group["data"][:] + group["offset"].attrs["centre"]
            known |= dict(zip(group["frame_id"][:].tolist(), values, strict=True))
    assert all((known[frame] == every[frame]).all() for frame in range(len(every)))
    assert len(ends) > 4
    edges = [end + by for end, _ in ends for by in (-1, 0, 1)]
    cuts = {*np.linspace(64, len(data) - 1, 60).astype(int).tolist(), *edges}
    for cut in sorted(cut for cut in cuts if cut < len(data)):
        cut_path.write_bytes(data[:cut])
        whole = sum(frames for end, frames in ends if end <= cut)
        try:
            with Archive(cut_path) as archive:
                assert archive.frames == whole, cut
                for part in archive.parts:
                    rows = part.read(0, part.frames)
                    for frame, values in zip(rows.frame_ids, rows.values, strict=True):
                        assert (values == every[frame]).all()
                if not archive.whole:
                    assert f"{whole} frames" in archive.message
                    assert archive.frames_acquired == whole + sum(archive.lost_by_reason.values())
        except BrokenArchive:
            assert whole == 0, cut  # not even the session's own record is there
    assert path.stat().st_size == len(data)


WRITER = """
import sys, numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.unit.test_archive import *
known = configuration(CODED, CodecSpec(values="integer", coding="packed", level=3))
with ArchiveWriter.create(Path(sys.argv[1]), opening()) as writer:
    for k in range(100000):
        writer.append(measured(known, noise(64, k), 64 * k))
        if k % 7 == 0:
            writer.renew_view()
        print(k, flush=True)
"""


@pytest.mark.parametrize("blocks", [1, 23])
def test_what_a_killed_writer_left_can_be_read_and_gone_on_with(blocks: int, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parents[2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= blocks:
                break
        time.sleep(np.random.default_rng(blocks).uniform(0, 0.01))  # at any moment
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    with h5py.File(path) as file:  # as it is: the library needs no repair
        seen = len(file["entry/measurements/configuration_001/frame_id"])
        assert len(file["entry/measurements/configuration_001/data"][:]) == seen
    with Archive(path) as archive:
        here = archive.frames
        assert not archive.whole
        assert max(seen, blocks * 64 - 128) <= here
        rows = archive.parts[0].read(0, here)
        assert rows.frame_ids == list(range(here))
        assert all(
            (rows.values[k : k + 64] == noise(64, k // 64)[: here - k]).all() for k in range(0, here, 64)
        )
    known = configuration(CODED, CodecSpec(values="integer", coding="packed", level=3))
    with ArchiveWriter.resume(path) as writer:
        assert writer.frames == here
        for k in range(here // 64 + 3):
            writer.append(measured(known, noise(64, k), 64 * k))
        writer.finish(0, str)
    with Archive(path) as archive:
        assert (archive.frames, archive.lost, archive.whole) == ((here // 64 + 3) * 64, [], True)
    with pytest.raises(BrokenArchive, match="is complete"):
        ArchiveWriter.resume(path)


def test_only_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with ArchiveWriter.create(path, opening()):
        code = (
            "import sys; from pathlib import Path; from common.archive import ArchiveWriter\n"
            "try: ArchiveWriter.resume(Path(sys.argv[1]))\nexcept OSError as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
    assert "another process is writing it" in done.stdout


def test_a_full_disk_leaves_what_was_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    known = configuration(CODED, CodecSpec(values="integer", coding="packed", level=3))
    with ArchiveWriter.create(path, opening()) as writer:
        writer.append(measured(known, noise(128), 0))
        size = writer.size
        really = os.pwrite

        def full(file: int, data: Any, at: int) -> int:
            if at >= size + 1000:
                raise OSError(28, "No space left on device")
            return really(file, memoryview(data)[:500], at)

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            writer.append(measured(known, noise(128), 128))
        assert path.stat().st_size == size
    monkeypatch.undo()
    with Archive(path) as archive:
        assert archive.frames == 128


# ---- not ours


def spoil(path: Path, how: str) -> None:
    """Make an archive wrong in one way."""
    if how == "text":
        path.write_text("this is no archive " * 100)
        return
    if how == "empty":
        path.write_bytes(b"")
        return
    if how == "damaged chunk":
        with h5py.File(path) as file:
            chunk = file["entry/measurements/configuration_001/data"].id.get_chunk_info(0)
        data = bytearray(path.read_bytes())
        data[chunk.byte_offset + 100] ^= 0xFF
        path.write_bytes(data)
        return
    if how == "other HDF5":
        path.unlink()
        with h5py.File(path, "w") as file:
            file["x"] = 1
        return
    head, records, _ = taken_apart(path.read_bytes())
    first_part, chunk, reference = (of_kind(records, kind)[0] for kind in ("part", "frames", "reference"))
    beginning, ending = records[0].header, of_kind(records, "ending")[0].header
    match how:
        case "version":
            beginning["archive_version"] = 99
        case "no start":
            del beginning["start"]["shape"]
        case "no beginning":
            del records[0]
        case "absurd length":
            first_part.header["chunk_rows"] = 4096
        case "absurd frames":
            beginning["start"]["shape"] = [1 << 17, 1 << 17]
        case "no shape":
            beginning["start"]["shape"] = "wide"
        case "no numbers":
            beginning["start"]["dtype"] = "S2000000000"
        case "values of another kind":
            first_part.header["dtype"] = "|V16"
        case "no configuration":
            first_part.header["configuration"]["codec"]["level"] = {}
        case "another shape":
            first_part.header["configuration"]["shape"] = [8, 8]
        case "no columns":
            first_part.header["columns"][1][1] = "O"
        case "sizes":
            chunk.header["sizes"][0] += 1
        case "a part that is none":
            chunk.header["part"] = 7
        case "row":
            chunk.header["row"] = 5
        case "offset":
            first_part.body = deflated(bytes(1 << 20))
        case "twice":
            refill(chunk, [*chunks_of(chunk)[:1], *chunks_of(of_kind(records, "frames")[1])[1:]])
        case "number":
            frame_ids = encode_chunk(np.arange(128, dtype="<i8") + 2**62, 128)
            refill(chunk, [chunks_of(chunk)[0], frame_ids, *chunks_of(chunk)[2:]])
        case "time":
            times = encode_chunk(np.full(128, np.nan), 128)
            refill(chunk, [*chunks_of(chunk)[:2], times, *chunks_of(chunk)[3:]])
        case "reference twice":
            records.insert(-2, reference)
        case "balance":
            ending["frames_acquired"] = 10**7
        case "sparse":
            ending["frames_acquired"] = 2**31 - 1
        case "losses overlap":
            ending["lost"].append({"first": 0, "last": 1, "reason": "?"})
        case "lost and there":
            ending["lost"] = [{"first": 3, "last": 4, "reason": "?"}]
        case _:
            raise AssertionError(how)
    path.write_bytes(put_together(head, records))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("text", "not an HDF5 file"),
        ("empty", "not an HDF5 file"),
        ("other HDF5", "not an archive of CryoFlux"),
        ("version", "version 99"),
        ("no start", "start is none"),
        ("no beginning", "not that of a session"),
        ("absurd length", "of 4096 each"),
        ("absurd frames", "frames of shape"),
        ("no shape", "start is none"),
        ("no numbers", "numbers expected"),
        ("values of another kind", "numbers expected"),
        ("no configuration", "configuration"),
        ("another shape", "another shape"),
        ("no columns", "numbers or text expected"),
        ("sizes", "whose chunks have"),
        ("a part that is none", "contradicts"),
        ("row", "at row 5"),
        ("offset", "offset is damaged: a chunk that does not hold"),
        ("twice", "twice"),
        ("number", "a number beyond"),
        ("time", "a time that is no number"),
        ("reference twice", "twice"),
        ("balance", "10000000 frames acquired, but"),
        ("sparse", "2147483647 frames acquired, of which"),
        ("losses overlap", "overlap"),
        ("lost and there", "some are there"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(how: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    filled(path, blocks=20)
    spoil(path, how)
    with pytest.raises(BrokenArchive, match=words) as raised:
        Archive(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_damaged_chunk_is_noticed_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    every = filled(path)
    spoil(path, "damaged chunk")
    with Archive(path) as archive:
        part = archive.parts[0]
        with pytest.raises(BrokenArchive, match="damaged"):
            part.read(0, 1)
        rows = part.read(part.chunk_rows, part.chunk_rows)
        assert (rows.values == every[rows.frame_ids]).all()


def test_a_chunk_inflates_to_what_it_must_hold_and_no_further() -> None:
    bomb = deflated(bytes(300 << 20))  # 300 MB in 300 KB
    tracemalloc.start()
    try:
        for count in (0, 1, 1000, 1 << 40):
            with pytest.raises(ValueError, match="hold"):
                decode_chunk(bomb, np.dtype("<i4"), count)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["part", "frames", "reference", "contents", "ending"])
def test_a_damaged_record_costs_what_it_holds(kind: str, tmp_path: Path) -> None:
    """One letter of a record's header: the others are read, the frames that are missing are counted."""
    path = tmp_path / "a.h5"
    every = filled(path)
    head, records, _ = taken_apart(path.read_bytes())
    damaged = of_kind(records, kind)[1 if kind == "part" else 0]
    place = len(put_together(head, records[: records.index(damaged)]))
    data = bytearray(path.read_bytes())
    data[place + 25] ^= 1
    path.write_bytes(data)
    with Archive(path) as archive:
        assert archive.damaged_at == place
        assert f"damaged at byte {place}" in archive.message
        assert archive.whole == (kind != "ending")
        assert archive.frames + sum(archive.lost_by_reason.values()) == archive.frames_acquired
        rows = [part.read(0, part.frames) for part in archive.parts]
        assert all((some.values == every[some.frame_ids]).all() for some in rows)
        missing = len(every) - archive.frames
        assert missing == {"part": 208, "frames": 128}.get(kind, 0)
        assert archive.lost_by_reason.get(DAMAGED, 0) == missing
        assert len(archive.references) == 40 - (kind == "reference")


def test_no_archive_is_ever_shown_to_the_hdf5_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links into other files, plug-in filters, virtual datasets: nothing that could follow them looks."""
    filled(tmp_path / "a.h5")
    (tmp_path / "secret").write_bytes(b"secret" * 100)
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file.attrs["cryoflux_archive_version"] = 1
        file["entry"] = h5py.ExternalLink("a.h5", "/entry")
        file.create_dataset("x", (600,), "u1", external=[(tmp_path / "secret", 0, 600)])

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("the HDF5 library was shown a file")

    for name in ("File.__init__", "is_hdf5", "h5f.open"):
        monkeypatch.setattr(f"h5py.{name}", opened)
    with Archive(tmp_path / "a.h5") as archive:
        assert len(archive.parts[0].read(0, 9).frame_ids) == 9
        assert archive.read_reference(0) is not None
    with pytest.raises(BrokenArchive, match="not an archive of CryoFlux"):
        Archive(tmp_path / "links.h5")


def test_archives_whose_parts_are_not_numbered_are_read_up_to_damage(tmp_path: Path) -> None:
    """As earlier versions wrote them. Behind damage a part may be missing, so none is taken for another."""
    path = tmp_path / "a.h5"
    every = filled(path)
    head, records, tail = taken_apart(path.read_bytes())
    for part in of_kind(records, "part"):
        del part.header["number"]
    whole = put_together(head, records, tail)
    path.write_bytes(whole)
    with Archive(path) as archive:
        assert archive.frames == len(every)
    damaged = bytearray(whole)
    damaged[len(put_together(head, records[: records.index(of_kind(records, "part")[1])])) + 25] ^= 1
    path.write_bytes(damaged)
    with Archive(path) as archive:
        assert len(archive.parts) == 1
        rows = archive.parts[0].read(0, archive.parts[0].frames)
        assert (rows.values == every[rows.frame_ids]).all()
        assert archive.lost_by_reason[DAMAGED] == len(every) - archive.frames
