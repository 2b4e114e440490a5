"""The disk of the results is full, for one worker or all: nothing is torn, and what waited is delivered."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.faults.disk import SmallDisk
from tests.faults.installation import CURRENT, OVER, Installation, eventually
from tests.faults.verdict import balanced, completed, every_frame_once, session
from tests.integration.bus import Bus

pytestmark = pytest.mark.timeout(400)

UNLIMITED = resource.RLIM_INFINITY


def failed(bus: Bus, name: str) -> bool:
    return any(event.kind == "results_failed" and event.name == name for event in bus.events)


def test_a_worker_whose_disk_is_full_leaves_its_frames_to_others_and_comes_back(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        for name in ("full", "other"):
            bus.worker(name)
        opened = bus.open(session(output, rate=500))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 200)
        pid = bus.processes["full"].pid
        log = (tmp_path / "full.log").stat().st_size
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (log + 50_000, UNLIMITED))  # as a full disk: EFBIG
        bus.wait(lambda: failed(bus, "full"))
        bus.wait(lambda: "File too large" in bus.telemetry["full"]["results_error"])
        before = bus.of_detector("frames_acknowledged")
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > before + 500)
        balanced(bus.telemetry["detector"])
        assert bus.processes["full"].poll() is None
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
        bus.wait(lambda: "results_back" in bus.kinds())
        recovered = bus.telemetry["full"]["frames_recovered"]
        bus.wait(lambda: bus.telemetry["full"]["frames_recovered"] > recovered + 50)
        assert not bus.telemetry["full"]["results_error"]
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


def test_all_workers_see_a_full_disk_until_somebody_makes_room(tmp_path: Path) -> None:
    """Also one that is told to end meanwhile, and one that comes then."""
    with (
        SmallDisk(tmp_path / "disk", 32_000_000) as disk,
        Bus(tmp_path, block_bytes=20_000, window_bytes=60_000) as bus,
    ):
        bus.detector()
        for name in ("a", "b"):
            bus.worker(name, disk.place)
        disk.fill_but(2_000_000)
        opened = bus.open(session(disk.path / "out", rate=500, frames=2500))
        bus.wait(lambda: failed(bus, "a") and failed(bus, "b"))
        bus.wait(lambda: "No space left" in bus.telemetry["a"]["results_error"])
        bus.wait(lambda: bus.of_detector("frames_spooled") > 0)
        balanced(bus.telemetry["detector"])
        assert bus.terminate("b") == 0
        bus.worker("c", disk.place)
        bus.wait(lambda: failed(bus, "c"))
        acknowledged = bus.of_detector("frames_acknowledged")
        disk.make_room()
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > acknowledged)
        counters = bus.finished()
        assert counters["frames_acquired"] == 2500
        assert counters["idle_seconds"] == 0
        every_frame_once(disk.seen / "out", opened, counters)


def test_a_disk_that_is_full_when_results_are_finalised_ends_the_session_and_nothing_else(
    tmp_path: Path,
) -> None:
    with SmallDisk(tmp_path / "results", 48_000_000) as disk:
        places = dict.fromkeys(("control", "worker-1"), disk.place)
        with Installation(tmp_path, places=places) as house:
            pattern = {"kind": "pattern", "shape": [256, 256]}
            house.begin(source=pattern, camera={"rate": 50, "reference_every": 1})
            house.reaches(60)
            assert house.client.post(f"{CURRENT}/pause").status_code == 200
            eventually(
                lambda: (now := house.metrics()["frames"])["acquired"] == now["acknowledged"], "all are here"
            )
            disk.fill_but(1_000_000)
            assert house.client.post(f"{CURRENT}/stop").status_code == 200
            eventually(lambda: house.current()["state"] in OVER, "it ends")
            assert "results not finalised" in house.current()["error"]
            assert "No space left" in house.current()["error"]
            frames = house.metrics()["frames"]
            assert (frames["acquired"], frames["lost"]) == (frames["acknowledged"], 0)
            disk.make_room()
            house.begin()
            house.goes_on()
            view = house.finish()
            assert house.processes["control"].poll() is None
            completed({**view, "output": str(disk.seen / Path(view["output"]).name)})
