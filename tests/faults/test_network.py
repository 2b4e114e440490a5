"""Networks that are cut, heal, let through one way only or lose packets: every frame is recovered once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.network import HERE, Network
from tests.faults.verdict import balanced, every_frame_once, session
from tests.integration.bus import Bus

pytestmark = pytest.mark.timeout(400)


@contextmanager
def laid_out(folder: Path, workers: tuple[str, ...], **settings: Any) -> Iterator[tuple[Network, Bus]]:
    """A detector and workers on machines of their own; what they say is heard here."""
    with (
        Network("detector", *workers) as network,
        Bus(
            folder,
            host=network.address(),
            data_bind=f"tcp://{network.address('detector')}:0",
            unprotected=["planes"],
            **{"block_bytes": 20_000, **settings},
        ) as bus,
    ):
        bus.detector(network.place("detector"))
        for name in workers:
            bus.worker(name, network.place(name))
        yield network, bus


def goes_on(bus: Bus, frames: int = 200) -> None:
    before = bus.of_detector("frames_acknowledged")
    bus.wait(lambda: bus.of_detector("frames_acknowledged") > before + frames)


def recovers(bus: Bus, name: str) -> None:
    """The worker has its share of the frames."""
    before = bus.telemetry[name]["frames_recovered"]
    bus.wait(lambda: bus.telemetry[name]["frames_recovered"] > before)


def lost_sight_of(bus: Bus, name: str) -> bool:
    """Whether the detector has given the worker's blocks to others."""
    kinds = ("worker_silent", "worker_left")
    return any(event.kind in kinds and f"worker {name}-" in event.message for event in bus.events)


@pytest.mark.parametrize("cut", ["both ways", "to the worker", "to the detector"])
def test_a_worker_that_is_cut_off_is_done_without_and_comes_back(tmp_path: Path, cut: str) -> None:
    output = tmp_path / "out"
    with laid_out(tmp_path, ("cut", "other")) as (network, bus):
        opened = bus.open(session(output, rate=500))
        goes_on(bus)
        recovers(bus, "cut")
        ends = ("cut", "detector") if cut == "to the detector" else ("detector", "cut")
        network.cut(*ends, both_ways=cut == "both ways")
        bus.wait(lambda: lost_sight_of(bus, "cut"))
        goes_on(bus)
        balanced(bus.telemetry["detector"])
        network.heal()
        recovers(bus, "cut")
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


@pytest.mark.parametrize(
    "seconds", [3, pytest.param(25, marks=pytest.mark.slow)], ids=["connections live", "connections die"]
)
def test_all_workers_are_cut_off_for_a_while(tmp_path: Path, seconds: int) -> None:
    """Frames wait in the spool; what was on its way, and is delivered after all, counts once."""
    output, rate = tmp_path / "out", 400
    with laid_out(tmp_path, ("a", "b"), window_bytes=60_000) as (network, bus):
        opened = bus.open(session(output, rate=rate))
        goes_on(bus)
        for name in ("a", "b"):
            network.cut("detector", name)
        gone = bus.of_detector("frames_acquired")
        bus.wait(lambda: bus.of_detector("frames_acquired") > gone + seconds * rate)
        bus.wait(lambda: all(lost_sight_of(bus, name) for name in ("a", "b")))
        assert bus.of_detector("frames_spooled") > 0
        assert bus.of_detector("idle_seconds") == 0
        balanced(bus.telemetry["detector"])
        network.heal()
        acquired = bus.of_detector("frames_acquired")
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > acquired)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


def test_a_whole_session_over_a_network_that_loses_a_fifth_of_all_packets(tmp_path: Path) -> None:
    """Both ways, frames and answers, commands and counters."""
    output = tmp_path / "out"
    with laid_out(tmp_path, ("a", "b")) as (network, bus):
        network.lose(0.2)
        opened = bus.open(session(output, rate=100))
        goes_on(bus)
        bus.command("detector", "pause")
        bus.command("detector", "resume")
        goes_on(bus, 300)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


@pytest.mark.parametrize("cut", ["both ways", "to the detector"])
def test_frames_flow_while_whoever_steers_is_cut_off(tmp_path: Path, cut: str) -> None:
    output = tmp_path / "out"
    with laid_out(tmp_path, ("w",)) as (network, bus):
        opened = bus.open(session(output, rate=500))
        goes_on(bus)
        for name in ("detector", "w"):
            network.cut(HERE, name, both_ways=cut == "both ways")
        journal = output / "journal"

        def written() -> int:
            return sum(path.stat().st_size for path in journal.iterdir())

        held = written()
        bus.wait(lambda: written() > 3 * held)
        network.heal()
        goes_on(bus)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())
