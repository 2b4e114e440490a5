"""Workers die, hang, dawdle, disconnect and answer out of turn: every frame is recovered exactly once."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pandas as pd
import pytest

from common.wire.messages import PROTOCOL_VERSION, Ack, End, Goodbye, Heartbeat, Refusal
from services.supervisor import free_port
from tests.faults.proxy import Proxy
from tests.faults.raw import RawWorker
from tests.faults.verdict import balanced, every_frame_once, session
from tests.integration.bus import Bus, Place

pytestmark = pytest.mark.timeout(400)


def test_a_worker_killed_in_mid_batch_again_and_again(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        for name in ("victim-1", "victim-2", "survivor"):
            bus.worker(name)
        opened = bus.open(session(output))
        for name in ("victim-1", "victim-2"):
            before = bus.of_detector("frames_acknowledged")
            bus.wait(lambda before=before: bus.of_detector("frames_acknowledged") > before + 100)
            bus.kill(name)
            balanced(bus.telemetry["detector"])
        before = bus.of_detector("frames_acknowledged")
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > before + 100)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


@pytest.mark.parametrize("seconds", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_all_workers_gone_and_back(tmp_path: Path, seconds: int) -> None:
    """The window overflows into the spool, and the camera does not wait for anybody."""
    output = tmp_path / "out"
    rate = 400
    with Bus(tmp_path, block_bytes=20_000, window_bytes=60_000) as bus:
        bus.detector()
        for name in ("a", "b"):
            bus.worker(name)
        opened = bus.open(session(output, rate=rate))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 100)
        for name in ("a", "b"):
            bus.kill(name)
        gone = bus.of_detector("frames_acquired")
        bus.wait(lambda: bus.of_detector("frames_acquired") > gone + seconds * rate)
        assert bus.of_detector("frames_spooled") > 0
        assert bus.of_detector("bytes_in_flight") <= 60_000
        assert bus.of_detector("idle_seconds") == 0
        balanced(bus.telemetry["detector"])
        bus.worker("c")
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > gone)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


def test_a_worker_that_hung_and_answers_late_changes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        for name in ("hanging", "other"):
            bus.worker(name)
        opened = bus.open(session(output))
        for _ in range(2):
            before = bus.of_detector("frames_acknowledged")
            bus.wait(lambda before=before: bus.of_detector("frames_acknowledged") > before + 100)
            silent, back = bus.kinds().count("worker_silent"), bus.kinds().count("worker_back")
            bus.processes["hanging"].send_signal(signal.SIGSTOP)
            bus.wait(lambda silent=silent: bus.kinds().count("worker_silent") > silent)
            balanced(bus.telemetry["detector"])
            bus.processes["hanging"].send_signal(signal.SIGCONT)
            bus.wait(lambda back=back: bus.kinds().count("worker_back") > back)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


def test_a_slow_worker_beside_fast_ones_holds_nobody_up(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=10_000) as bus:
        bus.detector()
        for name in ("slow", "fast"):
            bus.worker(name)
        opened = bus.open(session(output))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 100)
        ended = threading.Event()

        def hold_back() -> None:  # runs an eighth of the time
            stop = True
            while not ended.wait(0.35 if stop else 0.05):
                bus.processes["slow"].send_signal(signal.SIGCONT if stop else signal.SIGSTOP)
                stop = not stop
            bus.processes["slow"].send_signal(signal.SIGCONT)

        holding = threading.Thread(target=hold_back)
        holding.start()
        try:
            now = bus.of_detector("frames_acknowledged")
            bus.wait(lambda: bus.of_detector("frames_acknowledged") > now + 2000)
        finally:
            ended.set()
            holding.join()
        bus.command("detector", "stop")
        rows = every_frame_once(output, opened, bus.finished())
        shares = rows["worker"].str.rsplit("-", n=1).str[0].value_counts()
        assert shares["fast"] > shares["slow"]


def test_connections_that_are_reset_lose_nothing(tmp_path: Path) -> None:
    output, port = tmp_path / "out", free_port("127.0.0.1")
    with (
        Proxy(port) as proxy,
        Bus(
            tmp_path,
            block_bytes=20_000,
            data_bind=f"tcp://127.0.0.1:{port}",
            data_endpoint=f"tcp://127.0.0.1:{proxy.port}",
        ) as bus,
    ):
        bus.detector()
        bus.worker("w")
        opened = bus.open(session(output))
        for connections in (2, 3, 4):
            before = bus.of_detector("frames_acknowledged")
            bus.wait(lambda before=before: bus.of_detector("frames_acknowledged") > before + 200)
            proxy.reset()
            bus.wait(lambda connections=connections: proxy.connections >= connections)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


def test_control_bus_connections_that_are_reset_are_made_anew(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with (
        Bus(tmp_path, block_bytes=20_000) as bus,
        Proxy(int(bus.endpoint.rsplit(":", 1)[1])) as proxy,
    ):
        bus.settings["control_endpoint"] = f"tcp://127.0.0.1:{proxy.port}"
        bus.detector()
        bus.worker("w")
        opened = bus.open(session(output, rate=500))
        for _ in range(3):
            before = bus.of_detector("frames_acknowledged")
            bus.wait(lambda before=before: bus.of_detector("frames_acknowledged") > before + 100)
            bus.registrations.clear()
            proxy.reset()
            bus.wait(lambda: {"detector", "w"} <= set(bus.registrations))
            bus.command("detector", "pause")
            bus.command("detector", "resume")
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


DIES_AFTER_WRITING = """
import os, signal
from reconstructor.writer import ResultsWriter
write = ResultsWriter.write
written = 0

def write_and_die(self, group):
    global written
    write(self, group)
    written += 1
    if written == 3:
        os.kill(os.getpid(), signal.SIGKILL)

ResultsWriter.write = write_and_die
"""


def test_a_worker_killed_between_writing_and_answering_leaves_each_frame_once(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        bus.worker("dies", Place(code=DIES_AFTER_WRITING))
        opened = bus.open(session(output, rate=500))
        bus.wait(lambda: bus.processes["dies"].poll() is not None)
        bus.worker("other")
        bus.wait(lambda: bus.of_detector("blocks_redelivered") > 0)
        acquired = bus.of_detector("frames_acquired")
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > acquired)
        bus.command("detector", "stop")
        rows = every_frame_once(output, opened, bus.finished())
        journals = [pd.read_csv(path) for path in (output / "journal").glob("*.csv")]
        assert sum(map(len, journals)) > len(rows)  # frames were delivered and written twice


# ---- a detector that hears strange things


def test_duplicate_reordered_late_and_strange_acks_count_once(tmp_path: Path) -> None:
    with Bus(tmp_path, block_bytes=10_000, silent_after_seconds=60) as bus:
        bus.detector()
        bus.open(session(tmp_path / "out", frames=300))
        with RawWorker(bus.registered["detector"].data_endpoint, credit=100) as worker:
            worker.until(lambda: sum(len(block.frame_ids) for block in worker.blocks) == 300)
            blocks = worker.blocks
            series = blocks[0].series
            for ack in (
                Ack(series="another", block=blocks[0].block, frame_ids=blocks[0].frame_ids),
                Ack(series=series, block=10**6, frame_ids=[0]),
                Ack(series=series, block=blocks[0].block, frame_ids=blocks[-1].frame_ids),  # not in it
            ):
                worker.link.send(ack)
            for block in reversed(blocks[1:]):
                first, *rest = reversed(block.frame_ids)
                for frame_ids in ([first, first], rest, [first], block.frame_ids):
                    worker.link.send(Ack(series=series, block=block.block, frame_ids=frame_ids))
            left = len(blocks[0].frame_ids)
            bus.wait(lambda: bus.of_detector("frames_acknowledged") == 300 - left)
            balanced(bus.telemetry["detector"])
            worker.link.send(Ack(series=series, block=blocks[0].block, frame_ids=blocks[0].frame_ids))
            counters = bus.finished()
            balanced(counters)
            assert (counters["frames_acknowledged"], counters["frames_lost"]) == (300, {})
            end = worker.until(lambda: next((m for m in worker.received if isinstance(m, End)), None))
            assert (end.last_frame_id, end.acquired, end.acknowledged, end.lost) == (299, 300, 300, 0)


def test_a_worker_of_another_protocol_version_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path) as bus:
        bus.detector()
        bus.worker("w")
        opened = bus.open(session(output))
        with RawWorker(
            bus.registered["detector"].data_endpoint, credit=5, version=PROTOCOL_VERSION + 1
        ) as stranger:
            refusal = stranger.until(
                lambda: next((m for m in stranger.received if isinstance(m, Refusal)), None)
            )
            assert f"protocol version {PROTOCOL_VERSION + 1}" in refusal.reason
            assert not stranger.blocks
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 100)
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())


# ---- leaving in good order


def test_a_worker_told_to_end_drains_acknowledges_and_leaves(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000, silent_after_seconds=50) as bus:
        bus.detector()
        bus.worker("leaver")
        opened = bus.open(session(output))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 100)
        assert bus.terminate("leaver") == 0
        bus.wait(lambda: "worker_left" in bus.kinds())
        recovered = bus.telemetry["leaver"]["frames_recovered"]
        bus.wait(lambda: bus.of_detector("frames_acknowledged") == recovered)  # not one undelivered
        assert bus.of_detector("blocks_redelivered") * 20 <= 4 * 20  # what it was sent and had not begun
        bus.worker("other")
        bus.command("detector", "stop")
        rows = every_frame_once(output, opened, bus.finished())
        assert (rows["worker"].str.startswith("leaver")).sum() == recovered


def test_a_detector_told_to_end_announces_the_end_and_waits_for_the_last_answer(tmp_path: Path) -> None:
    with Bus(tmp_path, block_bytes=10_000, silent_after_seconds=60) as bus:
        bus.detector()
        bus.open(session(tmp_path / "out"))
        with RawWorker(bus.registered["detector"].data_endpoint, credit=1000) as worker:
            worker.until(lambda: len(worker.blocks) > 3)
            bus.processes["detector"].terminate()
            bus.wait(lambda: bus.of_detector("state") == "draining")
            acquired = bus.of_detector("frames_acquired")
            worker.until(lambda: sum(len(block.frame_ids) for block in worker.blocks) == acquired)
            worker.link.send(Heartbeat())
            *most, last = worker.blocks
            for block in most:
                worker.link.send(Ack(series=block.series, block=block.block, frame_ids=block.frame_ids))
            bus.wait(lambda: bus.of_detector("frames_in_flight") == len(last.frame_ids))
            assert bus.processes["detector"].poll() is None
            assert not any(isinstance(message, End) for message in worker.received)
            worker.link.send(Ack(series=last.series, block=last.block, frame_ids=last.frame_ids))
            end = worker.until(lambda: next((m for m in worker.received if isinstance(m, End)), None))
            assert (end.acquired, end.acknowledged, end.lost) == (acquired, acquired, 0)
            worker.link.send(Goodbye())
            bus.wait(lambda: bus.processes["detector"].poll() is not None, dead=["detector"])
        assert bus.processes["detector"].returncode == 0
        assert bus.finished()["frames_acknowledged"] == acquired


def test_a_detector_told_to_end_that_nobody_serves_leaves_the_rest_to_the_next(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        opened = bus.open(session(output))
        bus.wait(lambda: bus.of_detector("frames_acquired") > 100)
        assert bus.terminate("detector") == 1  # after its patience
        acquired = bus.of_detector("frames_acquired")
        assert bus.of_detector("frames_in_flight") == acquired
        assert "left" in bus.kinds()
        bus.detector()
        bus.worker("w")
        counters = bus.finished()
        assert counters["frames_acquired"] == acquired
        every_frame_once(output, opened, counters)
