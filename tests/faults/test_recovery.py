"""Frames that cannot be recovered, and memory that does not suffice: only what must be is lost, and told why.

What goes wrong is put into real processes by code that they begin with; the product knows nothing of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from detector_sim.deaths import FATAL, FATAL_AFTER, SUSPECTED_AFTER
from detector_sim.ledger import ATTEMPTS
from tests.faults.installation import Installation
from tests.faults.verdict import balanced, every_frame_once, session
from tests.integration.bus import Bus, Place
from tests.integration.test_live import PATIENCE_SECONDS, Live, eventually, table

pytestmark = pytest.mark.timeout(400)

POISON = 137
PATIENT: dict[str, Any] = {"silent_after_seconds": 30}  # a machine may be so busy that workers seem to hang

_RECOVERY = """
import ctypes, os, signal, torch
from detector_sim.sources import frame_number
from reconstructor.recovery import Recovery

_recover = Recovery.__call__

def _die(how):
    os.kill(os.getpid(), how)
    while True:  # the signal may reach another thread first: this one must not finish what it was at
        signal.pause()

def _spoilt(self, y, frame_ids=None):
    recovered = _recover(self, y, frame_ids)
    numbers = [frame_number(image) for image in recovered.images.round().numpy()]
    {what}
    return recovered


Recovery.__call__ = _spoilt
"""


def _where(what: str) -> Place:
    """A worker whose recovery does so; it knows the ``numbers`` of the frames."""
    return Place(code=_RECOVERY.format(what=what))


def _tended(bus: Bus, workers: dict[str, Place], ready: Callable[[], Any]) -> int:
    """Wait, and start workers again that end; how many did."""
    deaths = 0

    def tend() -> Any:
        nonlocal deaths
        for name, place in workers.items():
            if bus.processes[name].poll() is not None:
                deaths += 1
                bus.worker(name, place)
        return ready()

    bus.wait(tend, dead=workers)
    return deaths


def _told(bus: Bus, kind: str) -> list[str]:
    return [event.message for event in bus.events if event.kind == kind]


# ---- frames that cannot be recovered


def test_a_frame_that_no_worker_can_recover_is_lost_with_its_reason(tmp_path: Path) -> None:
    output = tmp_path / "out"
    place = _where(f"if {POISON} in numbers: raise RuntimeError('this frame is poisoned')")
    with Bus(tmp_path, block_bytes=20_000, **PATIENT) as bus:
        bus.detector()
        for name in ("a", "b"):
            bus.worker(name, place)
        opened = bus.open(session(output, rate=500))
        bus.wait(lambda: bus.of_detector("frames_lost"))
        balanced(bus.telemetry["detector"])
        now = bus.of_detector("frames_acknowledged")
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > max(now, 400))
        bus.command("detector", "stop")
        counters = bus.finished()
        rows = every_frame_once(output, opened, counters, lost={"this frame is poisoned"})
        assert set(range(counters["frames_acquired"])) - set(rows["frame_id"]) == {POISON}
        assert _told(bus, "frames_lost") == [f"frame {POISON} lost: this frame is poisoned"]
        rejected = [bus.telemetry[name]["frames_rejected"] for name in ("a", "b")]
        assert sum(rejected) == ATTEMPTS
        assert all(rejected), "the other worker was not asked"


@pytest.mark.parametrize("death", ["SIGKILL", "SIGSEGV"])
def test_a_frame_that_kills_its_workers_is_lost_and_those_beside_it_are_recovered(
    tmp_path: Path, death: str
) -> None:
    output = tmp_path / "out"
    place = _where(f"if {POISON} in numbers: _die(signal.{death})")
    with Bus(tmp_path, block_bytes=20_000, **PATIENT) as bus:
        bus.detector()
        workers = {"only": place}
        bus.worker("only", place)
        opened = bus.open(session(output, rate=300))
        deaths = 0
        for enough in (1, 2, 3):
            deaths += _tended(
                bus,
                workers,
                lambda: bus.of_detector("blocks_redelivered") >= enough,  # noqa: B023
            )
        deaths += _tended(bus, workers, lambda: bus.of_detector("frames_lost"))
        assert bus.of_detector("frames_lost") == {FATAL: 1}
        now = bus.of_detector("frames_acknowledged")
        deaths += _tended(
            bus, workers, lambda: bus.of_detector("frames_acknowledged") > max(now, POISON + 200)
        )
        bus.command("detector", "stop")
        counters = bus.finished()
        rows = every_frame_once(output, opened, counters, lost={FATAL})
        assert set(range(counters["frames_acquired"])) - set(rows["frame_id"]) == {POISON}
        assert _told(bus, "frames_lost") == [f"frame {POISON} lost: {FATAL}"]
        assert any("tried alone, frame by frame" in line for line in _told(bus, "block_suspected"))
        # one more where the last answer of a frame before it died with the worker
        assert SUSPECTED_AFTER + FATAL_AFTER <= deaths <= SUSPECTED_AFTER + FATAL_AFTER + 1


def test_a_frame_that_kills_one_kind_of_worker_is_recovered_by_another(tmp_path: Path) -> None:
    output = tmp_path / "out"
    place = _where(f"if {POISON} in numbers: _die(signal.SIGKILL)")
    with Bus(tmp_path, block_bytes=20_000, **PATIENT) as bus:
        bus.detector()
        bus.worker("frail", place)
        opened = bus.open(session(output, rate=300))
        _tended(bus, {"frail": place}, lambda: bus.of_detector("blocks_redelivered") > 0)
        bus.worker("sturdy")
        _tended(bus, {"frail": place}, lambda: bus.of_detector("frames_acknowledged") > POISON + 200)
        bus.command("detector", "stop")
        _tended(bus, {"frail": place}, lambda: "finished" in bus.kinds())
        every_frame_once(output, opened, bus.finished())


def test_measurements_that_cannot_be_decoded_cost_their_block_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "out"
    spoil = f"""
import detector_sim.assembler as assembler
from detector_sim.sources import frame_number
_encode = assembler.encode_array

def _torn(values, codec):
    header, buffer = _encode(values, codec)
    if {POISON} in [frame_number(frame.reshape(32, 32)) for frame in values]:
        buffer = memoryview(buffer).cast("B")[:-8]
    return header, buffer

assembler.encode_array = _torn
"""
    with Bus(tmp_path, block_bytes=20_000, **PATIENT) as bus:
        bus.detector(Place(code=spoil))
        bus.worker("w")
        opened = bus.open(session(output, rate=500))
        bus.wait(lambda: bus.of_detector("frames_lost"))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > POISON + 200)
        bus.command("detector", "stop")
        counters = bus.finished()
        ((reason, count),) = counters["frames_lost"].items()
        assert "payload of" in reason
        rows = every_frame_once(output, opened, counters, lost={reason})
        missing = sorted(set(range(counters["frames_acquired"])) - set(rows["frame_id"]))
        assert POISON in missing
        assert missing == list(range(missing[0], missing[0] + count))


def test_a_live_session_tells_of_a_frame_whose_values_nobody_can_recover(tmp_path: Path) -> None:
    """A real one: pixels at the end of what float32 holds are finite, and their recovery is not."""
    frames = np.random.default_rng(0).normal(10, 1, (60, 32, 32)).astype(np.float32)
    frames[23, 5, 5] = 3.3e38
    with np.errstate(over="ignore"), mrcfile.new(tmp_path / "frames.mrcs") as stack:  # its statistics do
        stack.set_data(frames)
    output = tmp_path / "s"
    options = ["--input", str(tmp_path / "frames.mrcs"), "--values", "float32", "--workers", "2"]
    reason = "the recovered image is not finite"
    with Live(output, *options) as live:
        assert live.process.wait(PATIENCE_SECONDS) == 1  # what is incomplete is no success
        eventually(
            lambda: f"1 of 60 frames are lost: {reason} (1)" in live.text + "".join(live.errors), "told"
        )
    account = json.loads((output / "session.json").read_text())
    assert account["state"] == "completed"
    assert account["frames"]["lost_by_reason"] == account["accounts"]["lost"] == {reason: 1}
    assert account["accounts"]["acknowledged"] == 59
    assert [int(row["frame_id"]) for row in table(output)] == [k for k in range(60) if k != 23]
    assert account["frames"]["recovered"] == 59


# ---- memory


def _fits(frames: str) -> Place:
    """A worker whose device holds so many frames at a time: an expression."""
    short = "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')"
    return _where(f"if len(y) > ({frames}): raise {short}")


def test_a_batch_that_memory_does_not_hold_is_halved_and_loses_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000, **PATIENT) as bus:
        bus.detector()
        bus.worker("w", _fits("3"))
        opened = bus.open(session(output, rate=500))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 400)
        bus.wait(lambda: bus.telemetry["w"]["frames_per_batch"] < 10)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())
        assert bus.of_detector("blocks_redelivered") == 0
        assert bus.telemetry["w"]["frames_rejected"] == 0
        assert bus.telemetry["w"]["batch_halvings"] > 0
        told = _told(bus, "batch_halved")
        assert 1 <= len(told) <= 2  # first batches may be smaller than later ones
        assert "memory of cpu is short" in told[-1]
        assert "frames recovered at a time" in told[-1]
        assert "minimum_norm" in told[-1]


def test_a_frame_that_does_not_fit_alone_goes_to_a_worker_with_more_memory(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000, **PATIENT) as bus:
        bus.detector()
        bus.worker("small", _fits("0"))
        bus.worker("large")
        opened = bus.open(session(output, rate=100))
        bus.wait(lambda: "small" in bus.telemetry and bus.telemetry["small"]["frames_rejected"] > 0)
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 200)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())
        assert bus.processes["small"].poll() is None


def test_a_frame_that_fits_nowhere_is_lost_with_advice_and_the_worker_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000, **PATIENT) as bus:
        bus.detector()
        bus.worker("w", _fits(f"0 if {POISON} in numbers else 1000"))
        opened = bus.open(session(output, rate=300))
        bus.wait(lambda: bus.of_detector("frames_lost"))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > POISON + 200)
        bus.command("detector", "stop")
        counters = bus.finished()
        ((reason, count),) = counters["frames_lost"].items()
        assert count == 1
        assert "one frame of 32 x 32 pixels alone does not fit (minimum_norm)" in reason
        assert "a smaller batch_pixels does not help" in reason
        every_frame_once(output, opened, counters, lost={reason})
        assert bus.processes["w"].poll() is None


# ---- a results' folder that one worker cannot write


_NOT_WRITABLE = """
import os
_open = os.open

def _refusing(path, *arguments, **options):
    if str(path).endswith("recovered.mrcs"):
        raise PermissionError(13, "Permission denied", str(path))
    return _open(path, *arguments, **options)

os.open = _refusing
"""


def test_a_worker_that_cannot_write_ends_with_one_line_and_the_others_go_on(tmp_path: Path) -> None:
    """As often as it is started again; frames that it was given go to others, and none is suspected."""
    workers = ("worker-1", "worker-2")
    with Installation(tmp_path, workers=workers, places={"worker-1": Place(code=_NOT_WRITABLE)}) as house:
        house.begin()
        for _ in range(3):
            bad = house.processes["worker-1"]
            assert bad.wait(PATIENCE_SECONDS) == 1
            last = (tmp_path / "worker-1.log").read_text().strip().splitlines()[-1]
            assert last.startswith("cryoflux reconstructor: ")
            assert "recovered.mrcs" in last
            assert "Permission denied" in last
            house.start("worker-1")
        house.goes_on()
        assert any(
            event["kind"] == "failed" and "Permission denied" in event["message"] for event in house.events()
        )
        assert "block_suspected" not in house.kinds()
        assert house.finish()["state"] == "completed"
        frames = house.metrics()["frames"]
        assert frames["acknowledged"] == frames["acquired"] > 0
