"""The detector is killed, its disk fills, its spool is full: what was acquired is delivered or counted."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest

from tests.faults.verdict import balanced, every_frame_once, session
from tests.integration.bus import Bus
from tests.integration.test_live import Live, table

pytestmark = pytest.mark.timeout(400)

UNLIMITED = resource.RLIM_INFINITY


def _goes_on(bus: Bus) -> None:
    """Kill the detector, start it again, wait until it has taken up the series; what was told still holds."""
    told = dict(bus.telemetry["detector"])
    bus.kill("detector")
    del bus.telemetry["detector"]
    bus.detector()
    bus.wait(lambda: bus.of_detector("restarts") == told["restarts"] + 1)
    counters = bus.telemetry["detector"]
    assert bus.registered["detector"].details["session"] == counters["session"] == told["session"]
    assert counters["frames_acquired"] >= told["frames_acquired"]
    balanced(counters)


def test_a_detector_killed_three_times_in_a_session_loses_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        bus.worker("a")
        bus.worker("b")
        opened = bus.open(session(output, rate=800))
        for _ in range(3):
            before = bus.of_detector("frames_acknowledged")
            bus.wait(lambda before=before: bus.of_detector("frames_acknowledged") > before + 200)
            _goes_on(bus)
        bus.command("detector", "stop")
        counters = bus.finished()
        every_frame_once(output, opened, counters)
        assert counters["restarts"] == 3
        assert counters["bytes_wire"] > counters["frames_acquired"] * 32 * 32 * 0.5
        assert counters["configurations"][0]["frames"] == counters["frames_acquired"]
        assert bus.terminate("detector") == 0
        assert not list((tmp_path / "spool").iterdir())


def test_a_detector_killed_without_workers_delivers_what_it_had_spooled(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000, window_bytes=60_000) as bus:
        bus.detector()
        opened = bus.open(session(output, rate=800))
        bus.wait(lambda: bus.of_detector("frames_spooled") > 200)
        assert bus.of_detector("idle_seconds") == 0
        bus.command("detector", "pause")
        paused = bus.of_detector("frames_acquired")
        _goes_on(bus)
        assert bus.of_detector("state") == "paused"
        assert bus.of_detector("frames_acquired") >= paused
        assert bus.of_detector("frames_spooled") > 200
        bus.worker("late")
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 200)
        _goes_on(bus)
        bus.command("detector", "resume")
        now = bus.of_detector("frames_acquired")
        bus.wait(lambda: bus.of_detector("frames_acquired") > now)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


def test_a_detector_killed_after_a_change_goes_on_with_the_mask_in_force(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        bus.worker("w")
        opened = bus.open(session(output, rate=500))
        mask = {"kind": "coded-aperture", "kernel_size": 1, "mask_count": 1}
        changed = bus.command("detector", "acquisition", mask=mask)
        _goes_on(bus)
        now = bus.of_detector("frames_acquired")
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > now + 50)
        bus.command("detector", "stop")
        rows = every_frame_once(output, opened, bus.finished(), is_exact=False)
        first = changed["effective_from_frame"]
        after = rows.loc[rows["frame_id"] >= first, "config_id"]
        assert set(after) == {changed["config_id"]}
        assert changed["config_id"] not in set(rows.loc[rows["frame_id"] < first, "config_id"])


def test_a_detector_killed_while_it_only_delivers_goes_on_delivering(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000, window_bytes=60_000) as bus:
        bus.detector()
        opened = bus.open(session(output, rate=800))
        bus.wait(lambda: bus.of_detector("frames_spooled") > 100)
        bus.command("detector", "stop")
        bus.wait(lambda: bus.of_detector("state") == "draining")
        acquired = bus.of_detector("frames_acquired")
        _goes_on(bus)
        bus.worker("w")
        counters = bus.finished()
        assert counters["frames_acquired"] == acquired
        every_frame_once(output, opened, counters)


def test_a_session_given_up_is_not_delivered_later(tmp_path: Path) -> None:
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        bus.open(session(tmp_path / "out", rate=800))
        bus.wait(lambda: bus.of_detector("frames_acquired") > 100)
        _goes_on(bus)
        bus.command("detector", "abandon", session="another", reason="not this one")
        assert bus.of_detector("state") == "acquiring"
        bus.command("detector", "abandon", session="session-1", reason="it was given up")
        counters = bus.finished()
        balanced(counters)
        assert counters["frames_lost"] == {"it was given up": counters["frames_acquired"]}


# ---- a spool that is full


def test_a_full_spool_makes_the_camera_wait(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=10_000, window_bytes=30_000, spool_bytes=200_000) as bus:
        bus.detector()
        opened = bus.open(session(output, rate=1500))
        bus.wait(lambda: bus.of_detector("idle_seconds") > 0.3)
        counters = bus.telemetry["detector"]
        assert counters["frames_spooled"] > 100
        assert counters["spool_bytes"] <= 220_000  # the limit, and the block that was being gathered
        balanced(counters)
        bus.worker("w")
        bus.wait(lambda: bus.of_detector("frames_acquired") > counters["frames_acquired"] + 100)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


def test_a_full_spool_drops_frames_and_counts_them_where_that_is_the_policy(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(
        tmp_path, block_bytes=10_000, window_bytes=30_000, spool_bytes=200_000, spool_policy="drop"
    ) as bus:
        bus.detector()
        opened = bus.open(session(output, rate=1500))
        bus.wait(lambda: (bus.of_detector("frames_lost") or {}).get("spool full", 0) > 100)
        assert bus.of_detector("idle_seconds") == 0
        balanced(bus.telemetry["detector"])
        _goes_on(bus)
        assert bus.of_detector("frames_lost")["spool full"] > 100
        bus.worker("w")
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 300)
        bus.command("detector", "stop")
        counters = bus.finished()
        every_frame_once(output, opened, counters, lost={"spool full"})
        assert counters["frames_lost"]["spool full"] > 100


def test_a_worker_that_hangs_for_longer_than_the_spool_lasts_makes_the_camera_wait(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=10_000, window_bytes=30_000, spool_bytes=200_000) as bus:
        bus.detector()
        bus.worker("w")
        opened = bus.open(session(output, rate=1000))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 100)
        bus.processes["w"].send_signal(signal.SIGSTOP)
        bus.wait(lambda: "worker_silent" in bus.kinds() and bus.of_detector("idle_seconds") > 0.3)
        hung = bus.telemetry["detector"]
        assert hung["frames_spooled"] > 100
        balanced(hung)
        bus.processes["w"].send_signal(signal.SIGCONT)
        bus.wait(lambda: bus.of_detector("frames_acquired") > hung["frames_acquired"] + 100)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


# ---- a spool that two want


def test_a_second_detector_is_refused_the_spool_of_one_that_runs(tmp_path: Path) -> None:
    """Also of one that only stands still: what it wrote would else be delivered by both."""
    output = tmp_path / "out"
    (tmp_path / "second").mkdir()
    with (
        Bus(tmp_path, block_bytes=20_000) as bus,
        Bus(tmp_path / "second", spool=str(tmp_path / "spool")) as second,
    ):
        bus.detector()
        bus.worker("w")
        opened = bus.open(session(output, rate=800))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 100)
        bus.processes["detector"].send_signal(signal.SIGSTOP)
        second.detector()
        second.wait(lambda: second.processes["detector"].poll() is not None, dead=["detector"])
        assert second.processes["detector"].returncode == 1
        (line,) = second.log("detector").strip().splitlines()
        taken = f"the spool {tmp_path / 'spool'} belongs to another detector"
        assert line.startswith(f"cryoflux detector: {taken}")
        bus.processes["detector"].send_signal(signal.SIGCONT)
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 300)
        _goes_on(bus)  # the lock of one that is dead keeps nobody out
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


# ---- a disk that is full


def test_a_full_disk_is_told_frames_flow_on_and_the_spool_comes_back(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=10_000, window_bytes=200_000) as bus:
        bus.detector()
        bus.worker("w")
        opened = bus.open(session(output, rate=500))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 100)
        pid = bus.processes["detector"].pid
        log = (tmp_path / "detector.log").stat().st_size
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (log + 20_000, UNLIMITED))  # as a full disk: EFBIG
        bus.wait(lambda: "spool_failed" in bus.kinds())
        bus.wait(lambda: bus.of_detector("spool_error"))
        now = bus.of_detector("frames_acknowledged")
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > now + 200)
        balanced(bus.telemetry["detector"])
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
        bus.wait(lambda: "spool_back" in bus.kinds())
        bus.wait(lambda: not bus.of_detector("spool_error"))
        now = bus.of_detector("frames_acquired")
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > now + 100)  # none in memory only
        _goes_on(bus)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


def test_a_spool_that_cannot_be_made_is_told_and_the_series_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "out"
    (tmp_path / "file").write_text("")
    with Bus(tmp_path, block_bytes=10_000, window_bytes=50_000, spool=str(tmp_path / "file")) as bus:
        bus.detector()
        opened = bus.open(session(output, rate=1000))
        bus.wait(lambda: "spool_failed" in bus.kinds())
        bus.wait(lambda: bus.of_detector("idle_seconds") > 0.2)
        assert bus.of_detector("bytes_in_flight") <= 50_000
        assert "Not a directory" in bus.of_detector("spool_error")
        bus.worker("w")
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


# ---- everything at once, as a user sees it


@pytest.mark.parametrize("also", [pytest.param([], marks=pytest.mark.slow), ["control"]])
def test_a_live_session_goes_on_when_its_detector_is_killed(tmp_path: Path, also: list[str]) -> None:
    output = tmp_path / "s"
    options = ["--input", "pattern", "--side", "32", "--rate", "60", "--frames", "600"]
    with Live(output, *options) as live:
        live.reaches(60)
        for name in ("detector", *also):
            live.child(name).kill()
        live.reaches(300)
        account = live.end()
    assert account["state"] == "completed"
    assert account["detector_restarts"] == 1
    assert account["accounts"] == {
        "acquired": 600, "acknowledged": 600, "in_flight": 0, "spooled": 0, "lost": {}, "unaccounted": 0,
    }  # fmt: skip
    assert [int(row["frame_id"]) for row in table(output)] == list(range(600))
    assert json.loads((output / "session.json").read_text())["frames"]["recovered"] == 600
    assert os.listdir(output / "spool") == []
