"""The archive as a facility uses it: recorded live, recovered offline, killed, cut and replayed."""

import contextlib
import functools
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import psutil
import pytest
import starfile

from common.archive import Archive
from common.operators.spec import MaskSpec
from common.wire.messages import Frames
from reconstructor.archive import archives, read_frame, records
from tests.integration.test_live import CRYOFLUX, PATIENCE_SECONDS, Live, eventually, refused, table

pytestmark = pytest.mark.timeout(400)

FRAMES = 800
MASKS = {
    "coded-aperture": [{"compression_factor": 4}, {"mask": {"kind": "coded-aperture", "kernel_size": 4}}],
    "phase-plate": [
        {"compression_factor": 4},
        {"mask": {"kind": "none"}},
        {"mask": {"kind": "phase-plate", "compression_factor": 2.5}},
    ],
}


class Recorded:
    """A finished session with its archive; two workers, the mask changed in mid-run."""

    def __init__(self, folder: Path, mask: str) -> None:
        self.output, self.archive = folder / mask, folder / f"{mask}.h5"
        options = ["--frames", str(FRAMES), "--rate", "400", "--workers", "2", "--recovery", "dct"]
        wanted = ["--mask", mask, "--archive", str(self.archive)]
        with Live(self.output, *options, *wanted) as live:
            for number, change in enumerate(MASKS[mask]):
                live.reaches((number + 1) * FRAMES // (len(MASKS[mask]) + 1))
                live.patch("acquisition", change)
            self.account = live.end()
            self.text = live.text

    def images(self) -> np.ndarray:
        return mrcfile.read(self.output / "recovered.mrcs")

    def payload_bytes(self) -> int:
        """Coded bytes of every frame, and of the references, as they went over the wire; each once."""
        total, seen = 0, set[int]()
        for path in archives(self.output):
            for record in records(path):
                if isinstance(record.message, Frames) and not seen.issuperset(record.message.frame_ids):
                    assert not seen.intersection(record.message.frame_ids)
                    seen.update(record.message.frame_ids)
                    total += sum(span.length for span in record.payloads)
        assert len(seen) == FRAMES
        return total


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recorded]:
    """A session with a mask of a kind; one for all tests."""
    return functools.cache(functools.partial(Recorded, tmp_path_factory.mktemp("recorded")))


@pytest.fixture(params=list(MASKS))
def recorded(request: pytest.FixtureRequest, recording: Callable[[str], Recorded]) -> Recorded:
    return recording(request.param)


@pytest.fixture
def coded(recording: Callable[[str], Recorded]) -> Recorded:
    return recording("coded-aperture")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*CRYOFLUX, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def equal(images: np.ndarray, expected: np.ndarray) -> bool:
    """To 1e-5 of each image's norm."""
    difference = np.sqrt(np.square(images - expected, dtype=np.float64).sum((1, 2)))
    return bool((difference <= 1e-5 * np.sqrt(np.square(expected, dtype=np.float64).sum((1, 2)))).all())


# ---- what is recorded


def test_an_archive_holds_every_frame_once_and_little_more_than_the_wire(recorded: Recorded) -> None:
    held = recorded.account["archive"]
    size = recorded.archive.stat().st_size
    assert (held["frames"], held["lost"], held["bytes"]) == (FRAMES, 0, size)
    assert size <= 1.02 * recorded.payload_bytes()
    assert "archive" in recorded.text
    with Archive(recorded.archive) as archive:
        assert archive.whole
        assert sorted(frame for part in archive.parts for frame in part.frame_ids.tolist()) == list(
            range(FRAMES)
        )
        assert archive.account["frames"] == recorded.account["frames"]
        assert archive.specification["mask"]["kind"] == recorded.account["specification"]["mask"]["kind"]
        assert len(archive.references) == recorded.account["frames"]["references"]


def test_h5py_alone_reads_measurements_masks_and_references(recorded: Recorded) -> None:
    seen: set[str] = set()
    star = starfile.read(recorded.output / "recovered.star")["particles"]
    references = mrcfile.read(recorded.output / "references.mrcs")
    with h5py.File(recorded.archive) as file:
        order = np.argsort(file["entry/references/frame_id"][:])
        assert (file["entry/references/data"][:][order] == references).all()
        for group in file["entry/measurements"].values():
            assert group.attrs["NX_class"] == b"NXdata"
            configuration = json.loads(group["configuration"][()])
            seen.add(configuration["config_id"])
            row = len(group["data"]) // 2
            frame = int(group["frame_id"][row])
            measurement = (group["data"][row] + group["offset"][:]) * group["scale"][()]
            known, expected = read_frame(recorded.output, frame)
            assert known.model_dump(mode="json") == configuration
            np.testing.assert_allclose(measurement, expected, rtol=1e-6)
            operator = MaskSpec.model_validate(configuration["mask"]).build(tuple(configuration["shape"]))
            assert operator.mask_hash == configuration["mask_hash"]
            defocus = float(group["relion"][row]["rlnDefocusU"])
            assert defocus == pytest.approx(star["rlnDefocusU"][frame], abs=1e-5)  # the table rounds
        for filtered in (file["entry/references/data"], group["data"], group["relion"]):
            plist = filtered.id.get_create_plist()
            used = {plist.get_filter(k)[0] for k in range(plist.get_nfilters())}
            assert used <= {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32}
    assert seen == {known["config_id"] for known in recorded.account["configurations"] if known["frames"]}


# ---- recovered again


def test_recover_gives_the_images_of_the_live_session(recorded: Recorded, tmp_path: Path) -> None:
    run("recover", str(recorded.archive), "--recovery", "dct", "--output", str(tmp_path / "r"))
    assert equal(mrcfile.read(tmp_path / "r" / "recovered.mrcs"), recorded.images())
    live, again = (starfile.read(folder / "recovered.star") for folder in (recorded.output, tmp_path / "r"))
    assert live["particles"].equals(again["particles"])
    assert live["optics"].equals(again["optics"])
    account = json.loads((tmp_path / "r" / "session.json").read_text())
    assert account["frames"] == recorded.account["frames"]
    assert account["quality"]["psnr"] == pytest.approx(recorded.account["quality"]["psnr"], abs=1e-4)
    references = (mrcfile.read(folder / "references.mrcs") for folder in (recorded.output, tmp_path / "r"))
    assert np.array_equal(*references)


def lines(output: Path) -> dict[str, list[str]]:
    """The whole lines of every journal."""
    return {
        path.name: path.read_text().rpartition("\n")[0].splitlines()[1:]
        for path in (output / "journal").glob("*.csv")
    }


@pytest.mark.parametrize("source", ["archive", pytest.param("folder", marks=pytest.mark.slow)])
def test_a_killed_recovery_goes_on_without_redoing_or_missing_a_frame(
    coded: Recorded, source: str, tmp_path: Path
) -> None:
    output = tmp_path / "r"
    name = str(coded.archive if source == "archive" else coded.output)
    options = ["recover", name, "--recovery", "dct", "--output", str(output), "--workers", "2"]
    command = [*CRYOFLUX, *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    eventually(lambda: sum(map(len, lines(output).values())) >= 200, "it has begun")
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
    assert alive == []
    assert gone
    before = lines(output)
    done = sum(map(len, before.values()))
    assert 0 < done < FRAMES, "killed in the middle"
    assert not (output / "session.json").exists()

    line = refused("recover", name, "--recovery", "tv", "--output", str(output))
    assert "another method" in line
    assert "--overwrite" in line

    finished = run(*options)
    assert f"{done} frames are there already" in finished.stdout
    after = lines(output)
    assert {name: after[name] for name in before} == before, "what was there was not touched"
    ids = [int(line.split(",")[0]) for journal in after.values() for line in journal]
    assert sorted(ids) == list(range(FRAMES)), "every frame once"
    assert equal(mrcfile.read(output / "recovered.mrcs"), coded.images())
    assert len(table(output)) == FRAMES

    again = run(*options)  # nothing is left to do
    assert lines(output) == after
    assert f"{FRAMES} recovered, {FRAMES} of them before" in again.stdout


@pytest.mark.parametrize("share", [0.3, pytest.param(0.6, marks=pytest.mark.slow), 0.95])
def test_a_truncated_archive_is_recovered_up_to_its_last_whole_chunk(
    coded: Recorded, share: float, tmp_path: Path
) -> None:
    size = int(share * coded.archive.stat().st_size)
    cut = tmp_path / "cut.h5"
    cut.write_bytes(coded.archive.read_bytes()[:size])
    whole: list[int] = []
    with h5py.File(coded.archive) as file:  # what lies before the cut, as the library sees the whole file
        for group in file["entry/measurements"].values():
            rows = group["data"].chunks[0]
            for k in range(group["relion"].id.get_num_chunks()):
                chunk = group["relion"].id.get_chunk_info(k)
                if chunk.byte_offset + chunk.size <= size:
                    whole += group["frame_id"][k * rows : (k + 1) * rows].tolist()
    done = run("recover", str(cut), "--recovery", "dct", "--output", str(tmp_path / "r"))
    assert f"{len(whole)} frames in whole chunks" in done.stdout
    assert sorted(int(row["frame_id"]) for row in table(tmp_path / "r")) == sorted(whole)
    account = json.loads((tmp_path / "r" / "session.json").read_text())
    frames = account["frames"]
    assert frames["recovered"] == len(whole) > 0.15 * FRAMES
    assert frames["acquired"] == frames["recovered"] + frames["lost"] == max(whole) + 1
    images = mrcfile.read(tmp_path / "r" / "recovered.mrcs")
    assert equal(images[sorted(whole)], coded.images()[sorted(whole)])


def test_what_is_no_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no archive")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    for name, words in (("text", "not an HDF5 file"), ("other", "not an archive"), ("none", "no such")):
        assert words in refused("recover", str(tmp_path / f"{name}.h5"), "--output", str(tmp_path / "r"))
    line = refused("detector", "--input", str(tmp_path / "other.h5"))
    assert "not an archive" in line
    assert not (tmp_path / "r").exists()


# ---- written under difficulties


def archiver(live: Live) -> psutil.Process | None:
    for child in live.children():
        with contextlib.suppress(psutil.Error):
            if "archive" in child.cmdline() and "--follow" in child.cmdline():
                return child
    return None


def test_killed_archivers_and_control_planes_leave_a_complete_archive(tmp_path: Path) -> None:
    path, output = tmp_path / "a.h5", tmp_path / "s"
    options = ["--input", "pattern", "--side", "32", "--rate", "150", "--frames", "1800", "--workers", "1"]
    with Live(output, *options, "--archive", str(path)) as live:
        first = eventually(lambda: archiver(live), "the archive is packed", live.process)
        eventually(path.exists, "it is there", live.process)
        live.reaches(300)
        first.kill()
        live.reaches(500)
        live.child("control").kill()  # its successor goes on with the archive
        eventually(lambda: archiver(live), "it is packed again", live.process)
        account = live.end()
    assert account["archive"]["frames"] == 1800
    with Archive(path) as archive:
        assert (archive.frames, archive.lost, archive.whole) == (1800, [], True)


def test_an_archive_that_cannot_be_written_costs_no_frame(tmp_path: Path) -> None:
    path, output = tmp_path / "nowhere" / "a.h5", tmp_path / "s"
    options = ["--input", "pattern", "--side", "32", "--rate", "100", "--frames", "150", "--workers", "1"]
    with Live(output, *options, "--archive", str(path)) as live:
        account = live.end()
    assert (account["state"], account["frames"]["recovered"]) == ("completed", 150)
    assert "No such file or directory" in account["archive"]["error"]
    assert "No such file or directory" in live.text
    path = tmp_path / "later.h5"
    assert "150 frames" in run("archive", str(output), str(path)).stdout
    with Archive(path) as archive:
        assert (archive.frames, archive.whole) == (150, True)
    assert "complete" in refused("archive", str(output), str(path))
    there = refused("live", "--output", str(tmp_path / "t"), "--port", "0", "--archive", str(path))
    assert "exists already" in there


# ---- replayed


@pytest.fixture
def detector_parts(coded: Recorded, tmp_path: Path) -> Iterator[Any]:
    """A control plane, a worker, and a detector that was started with the archive."""
    from tests.integration import test_live

    class Replaying(test_live.Parts):
        def __init__(self) -> None:
            popen = subprocess.Popen

            def with_input(command: list[str], **more: Any) -> Any:
                if "detector" in command:
                    command = [*command, "--input", str(coded.archive), "--speed", "0"]
                return popen(command, **more)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(subprocess, "Popen", with_input)
                super().__init__(tmp_path)

    parts = Replaying()
    yield parts
    assert parts.end() == [0, 0, 0]


def test_a_detector_replays_the_archive_it_was_started_with(
    detector_parts: Any, coded: Recorded, tmp_path: Path
) -> None:
    wanted = {"source": {"kind": "archive"}, "recovery": {"method": "dct"}, "output": str(tmp_path / "s")}
    answer = detector_parts.start(**wanted, mask={"kind": "none"})
    assert answer.status_code == 422
    assert "as recorded" in answer.json()["detail"]
    answer = detector_parts.start(**wanted)
    assert answer.status_code == 201, answer.text
    here = answer.headers["location"]
    eventually(lambda: detector_parts.client.get(here).json()["state"] == "completed", "it ends")
    assert equal(mrcfile.read(tmp_path / "s" / "recovered.mrcs"), coded.images())


def test_a_replayed_session_is_the_recorded_one(coded: Recorded, tmp_path: Path) -> None:
    output, path = tmp_path / "s", tmp_path / "again.h5"
    options = ["--input", str(coded.archive), "--rate", "200", "--workers", "1", "--recovery", "dct"]
    with Live(output, *options, "--archive", str(path)) as live:
        live.reaches(20)
        answer = live.client.patch("acquisition", json={"compression_factor": 8})
        assert answer.status_code == 409
        assert "a replayed session's masks are as recorded" in answer.json()["detail"]
        live.patch("recovery", {"free_share": 0.05})  # the recovery may be another
        account = live.end()
    assert account["frames"]["recovered"] == FRAMES
    assert equal(mrcfile.read(output / "recovered.mrcs"), coded.images())
    for name in ("configurations", "calibration", "optics", "pixel_size_angstrom", "shape", "dtype"):
        if name == "configurations":
            ids = [
                [(c["config_id"], c["first_frame"], c["frames"]) for c in a[name]]
                for a in (account, coded.account)
            ]
            assert ids[0] == ids[1]
        else:
            assert account[name] == coded.account[name]
    live_bytes, replayed_bytes = coded.account["bytes"]["wire"], account["bytes"]["wire"]
    assert replayed_bytes == pytest.approx(live_bytes, rel=0.05)
    by_frame = [
        {row["frame_id"]: row["config_id"] for row in table(folder)} for folder in (output, coded.output)
    ]
    assert by_frame[0] == by_frame[1]
    with Archive(path) as again, Archive(coded.archive) as first:
        assert again.frames == first.frames
        assert sorted(again.references) == sorted(first.references)


def test_what_was_lost_when_recorded_is_lost_again_with_the_reason(coded: Recorded, tmp_path: Path) -> None:
    cut = tmp_path / "cut.h5"
    cut.write_bytes(coded.archive.read_bytes()[: coded.archive.stat().st_size // 3])
    with Archive(cut) as archive:
        lost, frames = sum(archive.lost_by_reason.values()), archive.frames
    output = tmp_path / "s"
    with Live(output, "--input", str(cut), "--speed", "0", "--workers", "1", "--recovery", "dct") as live:
        code = live.process.wait(PATIENCE_SECONDS)
    assert code == (1 if lost else 0)
    account = json.loads((output / "session.json").read_text())
    assert (account["frames"]["recovered"], account["frames"]["lost"]) == (frames, lost)


def test_options_that_a_replay_has_no_use_for_are_refused(coded: Recorded, tmp_path: Path) -> None:
    line = refused("live", "--input", str(coded.archive), "--mask", "none", "--output", str(tmp_path / "s"))
    assert "--mask" in line
    assert "as recorded" in line
    line = refused("live", "--input", "specimen", "--speed", "2", "--output", str(tmp_path / "s"))
    assert "--speed" in line


def test_an_interrupted_recovery_says_how_to_go_on(coded: Recorded, tmp_path: Path) -> None:
    command = [*CRYOFLUX, "recover", str(coded.archive), "--recovery", "tv", "--output", str(tmp_path / "r")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        # as at a terminal, also where the tests themselves run in the background of a shell
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    eventually(lambda: sum(map(len, lines(tmp_path / "r").values())) > 0, "it has begun", process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "goes on where this stopped" in errors
    assert "Traceback" not in errors
