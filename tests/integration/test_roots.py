"""Sessions asked for by REST of real processes that may read and write in two folders only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import mrcfile
import numpy as np
import pytest

from services.control_plane.app import BASE
from services.supervisor import free_port
from tests import waiting

pytestmark = pytest.mark.timeout(400)

PATIENCE_SECONDS = 150.0
eventually = partial(waiting.eventually, seconds=PATIENCE_SECONDS)
SECRET = "nobody's business"


class House:
    """Control plane, detector and worker, each started alone, with the limits that it is given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port("127.0.0.1")
        self.inputs, self.outputs, self.outside = (folder / name for name in ("in", "out", "outside"))
        for place in (self.inputs, self.outputs, self.outside, folder / "work"):
            place.mkdir()
        self._control = f"tcp://127.0.0.1:{free_port('127.0.0.1')}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120, trust_env=False)

    def start(self, part: str, *options: str, **limits: str) -> None:
        environment = {
            **os.environ, "CRYOFLUX_CONTROL_ENDPOINT": self._control, "CRYOFLUX_HEARTBEAT_SECONDS": "0.2",
            "CRYOFLUX_INPUTS": str(self.inputs), "CRYOFLUX_OUTPUTS": str(self.outputs),
            "CRYOFLUX_RESULTS": str(self.folder / "results"), "OMP_NUM_THREADS": "1",
            "CRYOFLUX_DATA_BIND": "tcp://127.0.0.1:0", **limits,
        }  # fmt: skip
        with (self.folder / f"{part}.log").open("ab") as log:
            self.processes[part] = subprocess.Popen(
                [sys.executable, "-m", "services.cli", part, *options],
                env=environment, cwd=self.folder / "work", stdout=log, stderr=log,
            )  # fmt: skip

    def end(self, part: str) -> None:
        self.processes[part].terminate()
        assert self.processes.pop(part).wait(PATIENCE_SECONDS) == 0

    def ready(self) -> bool:
        assert all(process.poll() is None for process in self.processes.values())
        try:
            return self.client.get("/readyz").json()["status"] == "ready"
        except httpx.TransportError:
            return False

    def ask(self, **spec: Any) -> httpx.Response:
        """For a session of a few frames."""
        wanted = {"source": {"kind": "pattern", "shape": [32, 32]}, "camera": {"frames": 20}, **spec}
        return self.client.post(f"{BASE}/sessions", json=wanted)

    def ended(self) -> dict[str, Any]:
        def view() -> dict[str, Any] | None:
            found = self.client.get(f"{BASE}/sessions/current").json()
            return found if found["state"] in ("completed", "failed") else None

        return eventually(view, "the session ends")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("roots"))
    frames = np.arange(3 * 32 * 32, dtype=np.float32).reshape(3, 32, 32)
    mrcfile.write(made.inputs / "frames.mrcs", frames, voxel_size=1.0)
    mrcfile.write(made.outside / "frames.mrcs", frames, voxel_size=1.0)
    mrcfile.write(made.outside / "stack.mrcs", frames, voxel_size=1.0)
    (made.outside / "notes.txt").write_text(SECRET)
    (made.inputs / "link.mrcs").symlink_to(made.outside / "frames.mrcs")
    (made.inputs / "nothing.mrcs").symlink_to(made.outside / "nothing.mrcs")
    (made.inputs / "up").symlink_to("..")
    os.mkfifo(made.inputs / "pipe.mrc")
    (made.outputs / "link").symlink_to(made.outside)
    (made.inputs / "p.star").write_text(
        "data_\nloop_\n_rlnImageName\n1@../outside/stack.mrcs\n2@../outside/stack.mrcs\n"
    )
    try:
        made.start("control", "--port", str(made.port))
        made.start("detector")
        made.start("reconstructor")
        eventually(made.ready, "all are there")
        yield made
    finally:
        for process in made.processes.values():
            process.kill()
            process.wait()


def file(path: str | Path) -> dict[str, Any]:
    return {"source": {"kind": "file", "path": str(path)}}


def structure(path: str | Path) -> dict[str, Any]:
    return {"source": {"kind": "specimen", "specimen": {"structure": str(path)}}}


ASKED: dict[str, tuple[str, Callable[[House], dict[str, Any]]]] = {
    "a file outside": ("source.path", lambda h: file(h.outside / "frames.mrcs")),
    "a file outside that is not there": ("source.path", lambda h: file(h.outside / "nothing.mrcs")),
    "a path back": ("source.path", lambda h: file(f"{h.inputs}/../outside/frames.mrcs")),
    "a path back by a link": ("source.path", lambda h: file(h.inputs / "up" / "outside" / "frames.mrcs")),
    "a link to a file": ("source.path", lambda h: file(h.inputs / "link.mrcs")),
    "a link to nothing": ("source.path", lambda h: file(h.inputs / "nothing.mrcs")),
    "what the detector knows": ("source.path", lambda h: file("/proc/self/environ")),
    "a relative path": ("source.path", lambda h: file("frames.mrcs")),
    "somebody's home": ("source.path", lambda h: file("~/frames.mrcs")),
    "a zero byte": ("source.path", lambda h: file(f"{h.inputs}/a\0.mrcs")),
    "a long path": ("source.path", lambda h: file(f"{h.inputs}/{'a' * 5000}.mrcs")),
    "a device": ("source.path", lambda h: file("/dev/zero")),
    "an archive outside": (
        "source.path", lambda h: {"source": {"kind": "archive", "path": str(h.outside / "notes.txt")}}),
    "a structure outside": ("source.specimen.structure", lambda h: structure(h.outside / "a.pdb")),
    "a structure by a link": ("source.specimen.structure", lambda h: structure(h.inputs / "link.mrcs")),
    "results outside": ("output", lambda h: {"output": str(h.outside / "results")}),
    "results among inputs": ("output", lambda h: {"output": str(h.inputs / "results")}),
    "results by a link": ("output", lambda h: {"output": str(h.outputs / "link" / "results")}),
    "an archive to be made outside": ("archive", lambda h: {"archive": str(h.outside / "a.h5")}),
    "an archive to be made by a link": ("archive", lambda h: {"archive": str(h.outputs / "link" / "a.h5")}),
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
def test_what_lies_elsewhere_is_refused_by_the_field_that_names_it(house: House, what: str) -> None:
    field, spec = ASKED[what]
    before = sorted(house.outside.rglob("*"))
    answer = house.ask(**spec(house))
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert [error["field"] for error in problem["errors"]] == [field]
    assert "\n" not in problem["detail"]
    assert SECRET not in answer.text
    assert sorted(house.outside.rglob("*")) == before


def test_the_answer_is_the_same_whether_something_is_there_or_not(house: House) -> None:
    for there, not_there in (
        (file(house.outside / "frames.mrcs"), file(house.outside / "nothing.mrcs")),
        (file(house.inputs / "link.mrcs"), file(house.inputs / "nothing.mrcs")),
    ):
        told = [house.ask(**spec).json()["detail"] for spec in (there, not_there)]
        assert told[0].replace("frames", "X").replace("link", "X") == told[1].replace("nothing", "X")


@pytest.mark.timeout(100)
def test_a_pipe_and_stacks_outside_are_no_frames_and_hold_nobody_up(house: House) -> None:
    for name, told in (("pipe.mrc", "a pipe"), ("p.star", "as far as sessions may read")):
        answer = house.ask(**file(house.inputs / name))
        assert answer.status_code == 422
        assert told in answer.text


def test_what_lies_inside_is_read_and_written_and_nothing_is_replaced(house: House) -> None:
    output, archive = house.outputs / "a" / "session", house.outputs / "a.h5"
    answer = house.ask(**file(house.inputs / "frames.mrcs"), output=str(output), archive=str(archive))
    assert answer.status_code == 201, answer.text
    view = house.ended()
    assert view["state"] == "completed", view["error"]
    assert json.loads((output / "session.json").read_text())["frames"]["recovered"] == 3
    assert house.client.get(f"{BASE}/sessions/current/frames/0/preview.png").status_code == 200
    again = house.ask(output=str(output))
    assert again.json()["errors"][0]["field"] == "output"
    assert "already holds" in again.text
    again = house.ask(archive=str(archive))
    assert again.json()["errors"][0]["field"] == "archive"
    assert "exists already" in again.text
    replayed = house.ask(source={"kind": "archive", "path": str(archive)}, camera={"frames": 3})
    assert replayed.status_code == 201, replayed.text
    assert house.ended()["state"] == "completed"
    (house.outputs / "mine").mkdir()
    (house.outputs / "mine" / "frames.csv").write_text("mine")
    assert house.ask(output=str(house.outputs / "mine")).status_code == 422
    assert (house.outputs / "mine" / "frames.csv").read_text() == "mine"


def test_a_worker_that_must_not_write_there_rejects_the_frames_and_stays(house: House) -> None:
    house.end("reconstructor")
    house.start("reconstructor", CRYOFLUX_OUTPUTS=str(house.folder / "of-another-session"))
    eventually(house.ready, "another worker is there")
    assert house.ask(output=str(house.outputs / "not-for-it")).status_code == 201
    view = house.ended()
    reasons = house.client.get(f"{BASE}/sessions/current/metrics").json()["frames"]["lost_by_reason"]
    assert sum(reasons.values()) == 20, view
    assert all("is not in a folder that sessions may write to" in reason for reason in reasons)
    assert not (house.outputs / "not-for-it" / "journal").exists()
    assert house.processes["reconstructor"].poll() is None
    house.end("reconstructor")
    house.start("reconstructor")
    eventually(house.ready, "the worker is back")
    assert house.ask().status_code == 201
    assert house.ended()["state"] == "completed"
