"""`cryoflux live` as a user runs it: processes, signals, REST in mid-run, and what is left on disk."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mrcfile
import numpy as np
import psutil
import pytest
import starfile
import torch
from PIL import Image

from common.calibration import Calibration
from common.session import RecoverySpec
from reconstructor.archive import read_frame, read_start
from reconstructor.recovery import Recovery
from services.supervisor import free_port
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(240)

PATIENCE_SECONDS = 120.0
CRYOFLUX = [sys.executable, "-m", "services.cli"]


class Live:
    """A running ``cryoflux live``."""

    def __init__(self, output: Path, *options: str) -> None:
        self.output = output
        command = [*CRYOFLUX, "live", "--output", str(output), "--port", "0", *options]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            env={**os.environ, "CRYOFLUX_HEARTBEAT_SECONDS": "0.2"},  # counters come five times a second
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=lambda pipe=pipe, into=into: into.extend(pipe), daemon=True)
            for pipe, into in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()
        self.client = httpx.Client(timeout=60, follow_redirects=True)

    def __enter__(self) -> Live:
        address = eventually(self._address, "the header tells the REST address", self.process)
        self.client.base_url = httpx.URL(f"{address}/api/v1/sessions/current/")
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _address(self) -> str | None:
        found = re.search(r"REST +(http://[\d.:]+)", self.text)
        return found[1] if found else None

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def metrics(self) -> dict[str, Any]:
        return self.client.get("metrics").json()

    def reaches(self, frame: int) -> dict[str, Any]:
        """Wait until that many frames are acquired."""

        def reached() -> dict[str, Any] | None:
            try:
                figures = self.metrics()
            except (httpx.TransportError, json.JSONDecodeError):
                return None
            return figures if figures["frames"]["acquired"] >= frame else None

        return eventually(reached, f"frame {frame} is acquired", self.process)

    def changed(self, count: int) -> dict[str, Any]:
        """Wait until the acquisition was changed that often; the setting in force."""

        def settings() -> list[dict[str, Any]]:
            return self.client.get("").json()["acquisition"]

        eventually(lambda: len(settings()) > count, f"change {count} is made", self.process)
        return settings()[-1]

    def patch(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.patch(what, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, command: str) -> psutil.Process:
        return next(child for child in self.children() if command in child.cmdline())

    def end(self) -> dict[str, Any]:
        """Wait for a good end; the account."""
        code = self.process.wait(PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join()
        logs = "".join(path.read_text() for path in sorted((self.output / "logs").glob("*.log")))
        assert code == 0, f"exit code {code}\n{self.text}\n{''.join(self.errors)}\n{logs}"
        assert self.errors == []
        return json.loads((self.output / "session.json").read_text())


def refused(*arguments: str, code: int = 2) -> str:
    """Run a command that must refuse; its one line."""
    done = subprocess.run([*CRYOFLUX, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == code, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def table(output: Path) -> list[dict[str, str]]:
    with (output / "frames.csv").open() as file:
        return list(csv.DictReader(file))


# ---- a whole session, looked at from all sides


class Finished:
    """A session with ten changes of its acquisition and two of its recovery in mid-run."""

    def __init__(self, output: Path) -> None:
        self.output = output
        masks = [
            {"compression_factor": 4},
            {"mask": {"kind": "phase-plate", "pattern": "annular", "compression_factor": 3}},
            {"compression_factor": 2},
            {"mask": {"kind": "coded-aperture", "kernel_size": 8}, "compression_factor": 5},
            {"mask": {"kind": "none"}},
            {"mask": {"kind": "phase-plate", "pattern": "uniform", "symmetry": "paper"}},
            {"mask": {"kind": "coded-aperture", "kernel_size": 5, "mask_count": 7, "seed": 3}},
            {"compression_factor": 25},
            {"mask": {"kind": "coded-aperture"}},
        ]
        with Live(output, "--input", "pattern", "--side", "33", "--frames", "600", "--rate", "100",
                  "--reference-every", "20", "--workers", "2", "--change", "20=16") as live:  # fmt: skip
            self.settings = []
            self.planned = live.changed(1)
            for k, body in enumerate(masks):
                live.reaches(60 + 40 * k)
                self.settings.append(live.patch("acquisition", body))
            self.recoveries = [live.client.get("recovery").json()]
            self.recoveries.append(live.patch("recovery", {"method": "wiener"}))
            live.reaches(520)
            self.recoveries.append(live.patch("recovery", {"method": "tv", "parameters": {"iterations": 5}}))
            self.session = live.client.get("").json()
            self.pictures = {
                view: live.client.get("frames/0/preview.png", params={"view": view, "size": 66})
                for view in ("reference", "measurement", "recovered", "residual")
            }
            self.account = live.end()
            self.text = live.text


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("live") / "session")


def test_nothing_is_lost_and_nothing_doubled(finished: Finished) -> None:
    frames = finished.account["frames"]
    assert (frames["acquired"], frames["recovered"], frames["lost"]) == (600, 600, 0)
    assert [int(row["frame_id"]) for row in table(finished.output)] == list(range(600))
    assert finished.account["state"] == "completed"


def test_each_frame_was_taken_as_the_answers_said(finished: Finished) -> None:
    settings = finished.session["acquisition"]
    assert len(settings) == 11  # the first, the planned one, and nine by hand
    assert settings[1:] == [finished.planned, *finished.settings]
    firsts = [setting["effective_from_frame"] for setting in settings]
    assert firsts == sorted(firsts)
    rows = table(finished.output)
    for setting, first, after in zip(settings, firsts, [*firsts[1:], 600], strict=True):
        ids = {row["config_id"] for row in rows[first:after]}
        assert ids <= {setting["config_id"]}
        assert all(
            float(row["compression_factor"]) == setting["compression_factor"] for row in rows[first:after]
        )


def test_the_planned_change_was_made(finished: Finished) -> None:
    assert finished.planned == finished.session["acquisition"][1]
    assert finished.planned["compression_factor"] == pytest.approx(33 * 33 / 81)  # 9x9 blocks reach over
    assert finished.planned["effective_from_frame"] >= 20
    assert "curl -X PATCH" in finished.text


def test_every_frame_is_what_its_own_configuration_gives_offline(finished: Finished) -> None:
    start = read_start(finished.output)
    assert start is not None
    calibration = Calibration.model_validate(start.calibration)
    specs = {
        setting["recovery_id"]: RecoverySpec.model_validate(
            {name: setting[name] for name in RecoverySpec.model_fields}
        )
        for setting in finished.account["recovery"]
    }
    assert len(specs) == 3
    rows = table(finished.output)
    recovered = mrcfile.read(finished.output / "recovered.mrcs")
    alike = lambda row: (row["config_id"], row["recovery_id"])  # noqa: E731
    groups = [list(group) for _, group in itertools.groupby(sorted(rows, key=alike), key=alike)]
    assert len(groups) >= 10
    for group in groups:
        sample = [int(row["frame_id"]) for row in group[:: max(1, len(group) // 4)]]
        read = [read_frame(finished.output, frame) for frame in sample]
        configuration = read[0][0]
        assert configuration.config_id == group[0]["config_id"]
        y = torch.from_numpy(np.stack([measurement.astype(np.float32) for _, measurement in read]))
        recovery = Recovery(
            configuration.mask.build(configuration.shape), specs[group[0]["recovery_id"]], calibration
        )
        offline = recovery(y).images.numpy()
        for image, frame in zip(offline, sample, strict=True):
            assert np.abs(recovered[frame] - image).max() <= 1e-5 * np.abs(image).max(), frame


def test_the_account_adds_up(finished: Finished) -> None:
    account = finished.account
    assert account["bytes"]["raw"] == 600 * 33 * 33
    assert account["throughput_gain"] == pytest.approx(account["bytes"]["raw"] / account["bytes"]["wire"])
    assert account["gain_over_lossless"] == pytest.approx(
        account["bytes"]["raw_lossless"] / account["bytes"]["wire"]
    )
    assert sum(known["frames"] for known in account["configurations"]) == 600
    assert account["frames"]["references"] == account["quality"]["references"] >= 4
    assert account["elapsed_seconds"] > 5.0  # 600 frames at 100 a second
    assert [setting["method"] for setting in account["recovery"]] == ["dct", "wiener", "tv"]
    assert account["calibration"]["frames"] == 4
    assert {row["recovery_id"] for row in table(finished.output)} == {
        setting["recovery_id"] for setting in account["recovery"]
    }


def test_the_images_open_in_the_fields_programs(finished: Finished) -> None:
    with mrcfile.open(finished.output / "recovered.mrcs") as stack:
        assert stack.data.shape == (600, 33, 33)
        assert stack.data.dtype == np.float32
        assert float(stack.voxel_size.x) == pytest.approx(1.0)
    star = starfile.read(finished.output / "recovered.star")
    assert len(star["particles"]) == 600
    assert star["particles"]["rlnImageName"][0].endswith("@recovered.mrcs")
    assert star["optics"]["rlnImagePixelSize"][0] == pytest.approx(1.0)


def test_every_view_of_a_frame_is_a_picture(finished: Finished) -> None:
    for view, answer in finished.pictures.items():
        assert answer.status_code == 200, view
        assert answer.headers["content-type"] == "image/png"
        picture = Image.open(io.BytesIO(answer.content))
        assert picture.mode == "L"
        assert max(picture.size) == 66


def test_the_end_says_where_the_results_are(finished: Finished) -> None:
    assert str(finished.output) in finished.text.splitlines()[-1]
    assert "600 acquired, 600 recovered, none lost" in finished.text


def test_a_folder_with_a_session_is_not_overwritten_unasked(finished: Finished) -> None:
    before = (finished.output / "session.json").read_bytes()
    line = refused("live", "--output", str(finished.output))
    assert "already holds a session" in line
    assert "--overwrite" in line
    assert (finished.output / "session.json").read_bytes() == before


def test_measurements_are_recovered_again_with_another_method(finished: Finished, tmp_path: Path) -> None:
    again = tmp_path / "again"
    command = [
        *CRYOFLUX,
        "recover",
        str(finished.output),
        "--recovery",
        "minimum_norm",
        "--output",
        str(again),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    account = json.loads((again / "session.json").read_text())
    assert (account["frames"]["recovered"], account["frames"]["lost"]) == (600, 0)
    assert [setting["method"] for setting in account["recovery"]] == ["minimum_norm"]
    rows = table(again)
    assert [row["config_id"] for row in rows] == [row["config_id"] for row in table(finished.output)]
    assert {row["method"] for row in rows} == {"minimum_norm"}
    images = mrcfile.read(again / "recovered.mrcs")
    for frame in (0, 100, 599):
        configuration, measurement = read_frame(finished.output, frame)
        y = torch.from_numpy(measurement.astype(np.float32))[None]
        spec = RecoverySpec(method="minimum_norm")
        offline = Recovery(configuration.mask.build(configuration.shape), spec)(y).images[0].numpy()
        assert np.abs(images[frame] - offline).max() <= 1e-5 * np.abs(offline).max()
    assert "holds a recovery with another method" in refused(
        "recover", str(finished.output), "--output", str(again)
    )
    assert "session's own folder" in refused(
        "recover", str(finished.output), "--output", str(finished.output)
    )
    assert "no finished session" in refused("recover", str(tmp_path))


# ---- what goes wrong in mid-run


def test_ctrl_c_ends_cleanly_with_results(tmp_path: Path) -> None:
    with Live(tmp_path / "s", "--input", "pattern", "--side", "32", "--rate", "100") as live:
        live.reaches(100)
        children = live.children()
        os.killpg(live.process.pid, signal.SIGINT)
        account = live.end()
    frames = account["frames"]
    assert frames["acquired"] >= 100
    assert frames["recovered"] == frames["acquired"]
    assert frames["lost"] == 0
    assert mrcfile.read(tmp_path / "s" / "recovered.mrcs").shape == (frames["acquired"], 32, 32)
    assert "stopping" in live.text
    assert not [child for child in children if child.is_running()]


def test_killed_processes_are_started_again_and_no_frame_is_lost(tmp_path: Path) -> None:
    options = ["--input", "pattern", "--side", "32", "--rate", "60", "--frames", "900", "--workers", "2"]
    with Live(tmp_path / "s", *options) as live:
        live.reaches(60)
        (victim, _) = live.metrics()["workers"]
        os.kill(victim["pid"], signal.SIGKILL)

        def replaced() -> bool:
            workers = live.metrics()["workers"]
            return len(workers) == 2 and all(w["present"] and w["pid"] != victim["pid"] for w in workers)

        eventually(replaced, "the worker is there again", live.process)
        live.child("control").kill()
        after = live.reaches(live_frames := 500)
        assert after["frames"]["acquired"] >= live_frames
        ready = live.client.base_url.copy_with(path="/readyz")  # the new control plane has found all others
        eventually(lambda: live.client.get(ready).status_code == 200, "all are heard again", live.process)
        changed = live.patch("acquisition", {"compression_factor": 4})
        assert changed["compression_factor"] == 4
        account = live.end()
    frames = account["frames"]
    assert (frames["acquired"], frames["recovered"], frames["lost"]) == (900, 900, 0)
    assert [int(row["frame_id"]) for row in table(tmp_path / "s")] == list(range(900))
    assert [known["frames"] for known in account["configurations"]][-1] > 0
    assert "worker-1 was killed by signal 9" in live.text
    assert "worker-1 started again" in live.text
    assert "control was killed by signal 9" in live.text


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with Live(tmp_path / "s", "--input", "pattern", "--side", "32", "--rate", "50") as live:
        live.reaches(10)
        children = live.children()
        assert len(children) >= 3
        live.process.kill()
        live.process.wait()
        gone, alive = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
    assert alive == []
    assert len(gone) == len(children)


def test_without_a_spool_a_detector_that_dies_ends_the_session_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYOFLUX_SPOOL_BYTES", "0")
    output = tmp_path / "s"
    with Live(output, "--input", "pattern", "--side", "32", "--rate", "50") as live:
        live.reaches(50)
        live.child("detector").kill()
        assert live.process.wait(PATIENCE_SECONDS) == 1
    account = json.loads((output / "session.json").read_text())
    frames = account["frames"]
    assert account["state"] == "failed"
    assert frames["recovered"] == len(table(output)) > 0
    assert frames["acquired"] == frames["recovered"] + frames["lost"]
    assert len(live.errors) == 1


def test_a_bad_file_in_a_watched_folder_is_told_and_skipped(tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "s"
    folder.mkdir()

    def write(name: str, data: bytes | None = None) -> None:
        temporary = tmp_path / name
        if data is None:
            with mrcfile.new(
                temporary, np.random.default_rng(0).poisson(5, (64, 48)).astype(np.uint16)
            ) as mrc:
                mrc.voxel_size = 1.5
        else:
            temporary.write_bytes(data)
        temporary.rename(folder / name)

    def two(live: Live) -> list[str] | None:
        events = live.client.get("events").json()
        told = [event["message"] for event in events if event["kind"] == "bad_file"]
        return told if len(told) == 2 else None

    write("a.mrc")
    with Live(output, "--input", str(folder), "--watch") as live:
        live.reaches(1)
        write("b.mrc", (folder / "a.mrc").read_bytes()[:3000])
        write("c.mrc", b"not an image")
        write("d.mrc")
        live.reaches(2)
        eventually(lambda: live.metrics()["bad_files"] == 2, "both are counted", live.process)
        bad = eventually(lambda: two(live), "both are told", live.process)
        os.killpg(live.process.pid, signal.SIGINT)
        account = live.end()
    assert any("b.mrc" in message for message in bad)
    assert any("c.mrc" in message for message in bad)
    assert "b.mrc" in live.text
    assert (account["frames"]["recovered"], account["bad_files"]) == (2, 2)


# ---- what cannot be done


def test_a_wrong_option_is_told_in_one_line(tmp_path: Path) -> None:
    line = refused("live", "--output", str(tmp_path / "s"), "--kernel", "65")
    assert line == "cryoflux live: --kernel: must be a whole number from 1 to 64, got 65"


def test_a_busy_port_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("live", "--output", str(tmp_path / "s"), "--port", str(port))
        assert str(port) in line
        assert "--port" in line
        line = refused("control", "--port", str(port), "--state", str(tmp_path / "state.sqlite"), code=1)
        assert str(port) in line


def test_a_session_that_cannot_be_opened_ends_with_the_reason(tmp_path: Path) -> None:
    line = refused(
        "live", "--input", str(tmp_path / "nowhere.mrc"), "--output", str(tmp_path / "s"), "--port", "0"
    )
    assert "nowhere.mrc" in line
    assert "no such file" in line


# ---- the parts alone, as a cluster runs them


class Parts:
    """A control plane, a detector and a worker, each started by its own command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        control, http = (f"tcp://127.0.0.1:{free_port('127.0.0.1')}", free_port("127.0.0.1"))
        environment = {**os.environ, "CRYOFLUX_CONTROL_ENDPOINT": control}
        self.log = (folder / "parts.log").open("w")
        commands = [
            ["control", "--port", str(http), "--state", str(folder / "state.sqlite")],
            ["detector", "--data-bind", "tcp://127.0.0.1:0"],
            ["reconstructor", "--name", "alone", "--threads", "1"],
        ]
        self.processes = [
            subprocess.Popen([*CRYOFLUX, *command], env=environment, stdout=self.log, stderr=self.log)
            for command in commands
        ]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{http}", timeout=60)
        eventually(self._ready, "the parts find each other")

    def _ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def start(self, **specification: Any) -> httpx.Response:
        return self.client.post("/api/v1/sessions", json=specification)

    def end(self) -> list[int]:
        for process in self.processes:
            process.terminate()
        codes = [process.wait(PATIENCE_SECONDS) for process in self.processes]
        self.client.close()
        self.log.close()
        return codes


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    started = Parts(tmp_path_factory.mktemp("parts"))
    yield started
    assert started.end() == [0, 0, 0]


def bad_inputs(folder: Path) -> dict[str, Path]:
    """Files of every kind that cannot be used."""
    good = folder / "good.mrc"
    with mrcfile.new(good, np.ones((32, 32), np.float32), overwrite=True):
        pass
    data = good.read_bytes()
    paths = {
        name: folder / f"{name}.mrc" for name in ("missing", "truncated", "text", "mode", "empty", "nan")
    }
    paths["truncated"].write_bytes(data[:2000])
    paths["text"].write_text("this is not an image " * 100)
    paths["mode"].write_bytes(data[:12] + (4).to_bytes(4, "little") + data[16:])  # complex
    paths["empty"].write_bytes(b"")
    with mrcfile.new(paths["nan"], np.full((32, 32), np.nan, np.float32), overwrite=True):
        pass
    paths["star"] = folder / "nowhere.star"
    paths["star"].write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n1 1.5\n\n"
        "data_particles\n\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n000001@gone.mrcs 1\n"
    )
    paths["folder"] = folder / "void"
    paths["folder"].mkdir()
    return paths


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", ["missing.mrc", "no such file"]),
        ("truncated", ["truncated.mrc"]),
        ("text", ["text.mrc"]),
        ("mode", ["mode.mrc", "mode"]),
        ("empty", ["empty.mrc"]),
        ("nan", ["finite"]),
        ("star", ["gone.mrcs"]),
        ("folder", ["void"]),
    ],
)
def test_input_that_cannot_be_used_is_refused_in_one_line(
    parts: Parts, tmp_path: Path, name: str, words: list[str]
) -> None:
    path = bad_inputs(tmp_path)[name]
    answer = parts.start(source={"kind": "file", "path": str(path)}, output=str(tmp_path / "s"))
    assert answer.status_code == 422, answer.text
    detail = answer.json()["detail"]
    assert "\n" not in detail
    for word in words:
        assert word in detail


def test_a_mask_larger_than_the_frame_is_refused(parts: Parts, tmp_path: Path) -> None:
    answer = parts.start(
        source={"kind": "pattern", "shape": [32, 32]},
        mask={"kind": "coded-aperture", "kernel_size": 64},
        output=str(tmp_path / "s"),
    )
    assert answer.status_code == 422, answer.text
    assert "64" in answer.json()["detail"]


def test_parts_run_one_session_after_another(parts: Parts, tmp_path: Path) -> None:
    for name in ("first", "second"):
        answer = parts.start(
            source={"kind": "pattern", "shape": [32, 32]},
            camera={"frames": 50, "rate": 200},
            output=str(tmp_path / name),
        )
        assert answer.status_code == 201, answer.text
        here = answer.headers["location"]
        eventually(
            lambda here=here: parts.client.get(here).json()["state"] == "completed", f"the {name} ends"
        )
        figures = parts.client.get(f"{here}/metrics").json()
        assert figures["frames"]["acknowledged"] == 50
        assert figures["quality"]["references"] == 4
        account = json.loads((tmp_path / name / "session.json").read_text())
        assert (account["frames"]["recovered"], account["frames"]["lost"]) == (50, 0)
    answer = parts.start(source={"kind": "pattern"}, output=str(tmp_path / "first"))
    assert answer.status_code == 422
    assert "already holds" in answer.json()["detail"]
