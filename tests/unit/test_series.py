"""A detector in this process, with a source that does as it is told and a worker that only acknowledges."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

import detector_sim.series
from common.session import CameraSpec, PatternSource, SessionSpec
from common.settings import Settings
from common.wire.codec import decode_array
from common.wire.control import Conflict
from common.wire.link import Received
from common.wire.messages import Ack, ConfigurationNotice, End, Frames, Message, Start
from detector_sim.detector import Detector
from detector_sim.sources import BadFile, FrameBatch
from detector_sim.spool import Spool
from reconstructor.subscriber import Subscriber

SHAPE = (16, 16)
DEADLINE_SECONDS = 30.0
OPEN_MASK = {"kind": "none"}


class ScriptedSource:
    """Gives frames of constant value n; ``script`` may put something else in the place of a read."""

    def __init__(self, dtype: str = "uint8", count: int | None = 40) -> None:
        self.shape = SHAPE
        self.dtype = np.dtype(dtype)
        self.pixel_size_angstrom = 1.5
        self.frame_count = count
        self.optics: dict[str, Any] = {"rlnVoltage": 300.0}
        self.bad_files: list[BadFile] = []
        self.given = 0
        self.closed = False
        self.script: Callable[[ScriptedSource], FrameBatch | None] | None = None
        self.spoil: dict[int, float] = {}  # frame -> value of one of its pixels

    def read(self, count: int) -> FrameBatch | None:
        if self.script is not None and (batch := self.script(self)) is not None:
            return batch
        if self.frame_count is not None:
            count = min(count, self.frame_count - self.given)
        if count <= 0:
            return None
        numbers = np.arange(self.given, self.given + count)
        frames = np.broadcast_to(numbers[:, None, None] % 200, (count, *SHAPE)).astype(self.dtype)
        for frame in self.spoil.keys() & set(numbers.tolist()):
            frames[frame - self.given, 3, 4] = self.spoil[frame]
        self.given += count
        return FrameBatch(frames, {"rlnDefocusU": [1000.0 + number for number in numbers.tolist()]})

    def close(self) -> None:
        self.closed = True


class Setup:
    """A detector, and a worker that keeps what comes and acknowledges it unless told to hold."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.source = ScriptedSource()
        monkeypatch.setattr(detector_sim.series, "open_source", lambda spec, inputs: self.source)
        self.settings = Settings.load(
            control_endpoint="inproc://nobody",
            data_bind="tcp://127.0.0.1:0",
            heartbeat_seconds=0.05,
            spool=str(folder / "spool"),
        )
        self.context: zmq.Context[Any] = zmq.Context()
        self.events: list[tuple[str, str]] = []
        self._changed = threading.Condition()
        self.detector = Detector(self.settings, self.context, self._take_event)
        self.messages: list[Message] = []
        self.values: dict[int, float] = {}
        self.worker = Subscriber(
            self.context,
            "w",
            credits=4,
            heartbeat_seconds=0.05,
            deliver=self._deliver,
            failed=self._worker_failed,
        )
        self.detector.start()
        self.worker.start()

    def _worker_failed(self, error: Exception) -> None:
        raise error

    def _take_event(self, kind: str, message: str) -> None:
        with self._changed:
            self.events.append((kind, message))
            self._changed.notify_all()

    def _deliver(self, received: Received) -> None:
        with self._changed:
            self.messages.append(received.message)
            self._changed.notify_all()
        if isinstance(received.message, Frames):
            header = received.message
            values = decode_array(header.payload, received.buffers[0])
            self.values.update(zip(header.frame_ids, values[:, 0, 0].tolist(), strict=True))
            self.worker.finish([Ack(series=header.series, block=header.block, frame_ids=header.frame_ids)])

    def wait(self, ready: Callable[[], Any]) -> None:
        with self._changed:
            assert self._changed.wait_for(ready, DEADLINE_SECONDS), self.events

    def attach(self) -> None:
        self.worker.attach(self.detector.endpoint)

    def open(self, **camera: Any) -> dict[str, Any]:
        spec = SessionSpec(
            source=PatternSource(),
            mask=OPEN_MASK,  # pyright: ignore[reportArgumentType]
            camera=CameraSpec(**camera),
            output=str(self.folder / "out"),
        )
        return self.detector.obey("open", {"session": "s", "spec": spec.model_dump(mode="json")})

    def over(self) -> dict[str, Any]:
        """The final counters."""
        self.wait(lambda: any(kind in ("finished", "failed") for kind, _ in self.events))
        return self.detector.telemetry()

    def frames(self) -> list[Frames]:
        return [message for message in self.messages if isinstance(message, Frames)]

    def close(self) -> None:
        self.worker.close()
        self.detector.close()
        self.context.term()


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    setup = Setup(tmp_path, monkeypatch)
    yield setup
    setup.close()


def test_a_series_ends_with_its_source_and_every_frame_is_itself(setup: Setup) -> None:
    opened = setup.open()
    setup.attach()
    counters = setup.over()
    assert opened["frames_expected"] == 40
    assert counters["state"] == "finished"
    assert (counters["frames_acquired"], counters["frames_acknowledged"]) == (40, 40)
    assert setup.values == {frame: frame for frame in range(40)}
    metadata = [value for header in setup.frames() for value in header.metadata["rlnDefocusU"]]
    assert sorted(metadata) == [1000.0 + frame for frame in range(40)]
    assert counters["bytes_raw"] == 40 * 256
    assert counters["bytes_wire"] > 0
    assert setup.source.closed
    setup.wait(lambda: isinstance(setup.messages[-1], End))
    end = setup.messages[-1]
    assert (end.last_frame_id, end.acquired, end.acknowledged, end.lost) == (39, 40, 40, 0)
    kinds = [type(message) for message in setup.messages]
    assert kinds.index(Start) < kinds.index(ConfigurationNotice) < kinds.index(Frames)


def test_references_are_the_first_frames_and_every_nth(setup: Setup) -> None:
    setup.open(reference_first=3, reference_every=10)
    setup.attach()
    setup.over()
    references = [frame for header in setup.frames() for frame in header.reference_ids]
    assert references == [0, 1, 2, 10, 20, 30]
    start = next(message for message in setup.messages if isinstance(message, Start))
    assert start.calibration["frames"] == 3
    assert start.calibration["mean"] == 1.0


def test_a_frame_limit_ends_an_endless_source(setup: Setup) -> None:
    setup.source.frame_count = None
    setup.open(frames=17)
    setup.attach()
    assert setup.over()["frames_acquired"] == 17


def test_frames_that_are_not_finite_are_lost_alone(setup: Setup) -> None:
    setup.source = ScriptedSource("float32")
    setup.source.spoil = {1: np.nan, 7: np.inf, 39: -np.inf}
    setup.open()
    setup.attach()
    counters = setup.over()
    assert counters["frames_lost"] == {"not finite": 3}
    assert sorted(setup.values) == [frame for frame in range(40) if frame not in (1, 7, 39)]
    assert setup.values[6] == pytest.approx(6, abs=0.5)
    assert counters["state"] == "finished"


def test_a_frame_that_cannot_be_coded_is_lost_alone(setup: Setup) -> None:
    setup.source = ScriptedSource("float32")
    setup.source.spoil = {10: 1e37}
    setup.open()
    setup.attach()
    counters = setup.over()
    assert sum(counters["frames_lost"].values()) == 1
    assert sorted(setup.values) == [frame for frame in range(40) if frame != 10]


def test_a_source_that_fails_ends_the_series_after_delivering_what_there_was(setup: Setup) -> None:
    def fail(source: ScriptedSource) -> None:
        if source.given >= 20:
            raise OSError("the disk is on fire")

    setup.source.script = fail
    setup.open()
    setup.attach()
    counters = setup.over()
    assert counters["state"] == "failed"
    assert counters["error"] == "the disk is on fire"
    assert counters["frames_acknowledged"] == counters["frames_acquired"] == setup.source.given
    kinds = [kind for kind, _ in setup.events]
    assert "error" in kinds
    assert kinds[-1] == "failed"
    setup.events.clear()
    setup.source = ScriptedSource()
    setup.open()  # the detector itself is well
    assert setup.over()["state"] == "finished"


def test_the_publisher_failing_ends_the_series_and_says_so(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.source.frame_count = None
    setup.open(rate=200)
    setup.attach()
    setup.wait(lambda: setup.frames())

    def broken(now: float) -> list[str]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(setup.detector._publisher.ledger, "tick", broken)
    counters = setup.over()
    assert counters["state"] == "failed"
    assert setup.events[-1] == ("failed", "a bug")
    with pytest.raises(Conflict, match="must be restarted"):
        setup.open()


def test_a_source_without_a_good_frame_is_refused(setup: Setup) -> None:
    setup.source = ScriptedSource("float32", count=3)
    setup.source.spoil = dict.fromkeys(range(3), np.nan)
    with pytest.raises(ValueError, match="finite"):
        setup.open()
    assert setup.source.closed
    setup.source = ScriptedSource(count=0)
    with pytest.raises(ValueError, match="not a single frame"):
        setup.open()
    assert setup.detector.state == "idle"


def test_a_watched_folder_is_waited_for_and_its_bad_files_are_told(setup: Setup) -> None:
    reads = []

    def slow(source: ScriptedSource) -> FrameBatch | None:
        reads.append(source.given)
        if len(reads) == 5:
            source.bad_files.append(BadFile("torn.mrc", "truncated"))
        return FrameBatch(np.zeros((0, *SHAPE), np.uint8)) if len(reads) % 3 else None

    setup.source.script = slow
    setup.open()
    setup.attach()
    counters = setup.over()
    assert counters["frames_acknowledged"] == 40
    assert counters["bad_files"] == 1
    assert ("bad_file", "torn.mrc: truncated") in setup.events


def test_a_change_takes_effect_at_the_frame_it_names(setup: Setup) -> None:
    setup.source.frame_count = None
    opened = setup.open(rate=500)
    setup.attach()
    effective = [(0, opened["configuration"]["config_id"])]
    for mask in ({"kind": "coded-aperture", "kernel_size": 1, "mask_count": 1}, OPEN_MASK):
        setup.wait(lambda: setup.frames() and setup.frames()[-1].frame_ids[-1] > effective[-1][0])
        result = setup.detector.obey("acquisition", {"mask": mask})
        effective.append((result["effective_from_frame"], result["config_id"]))
    setup.wait(lambda: setup.frames()[-1].frame_ids[0] >= effective[-1][0])
    setup.detector.obey("stop", {})
    setup.over()
    for header in setup.frames():
        for frame in header.frame_ids:
            assert header.config_id == [config_id for first, config_id in effective if first <= frame][-1]
    assert len({config_id for _, config_id in effective}) == 2


def test_a_paused_camera_exposes_nothing_but_takes_changes(setup: Setup) -> None:
    setup.source.frame_count = None
    setup.open(rate=500)
    setup.attach()
    setup.wait(lambda: setup.frames())
    setup.detector.obey("pause", {})
    result = setup.detector.obey("acquisition", {"mask": {"kind": "coded-aperture"}})
    acquired = setup.detector.telemetry()["frames_acquired"]
    assert acquired == result["effective_from_frame"]
    with pytest.raises(Conflict, match="paused"):
        setup.detector.obey("pause", {})
    setup.detector.obey("resume", {})
    setup.wait(lambda: setup.frames()[-1].frame_ids[0] >= acquired)
    setup.detector.obey("pause", {})
    setup.detector.obey("stop", {})
    assert setup.over()["state"] == "finished"
    for verb in ("pause", "resume", "stop"):
        with pytest.raises(Conflict, match="finished"):
            setup.detector.obey(verb, {})
    with pytest.raises(Conflict, match="finished"):
        setup.detector.obey("acquisition", {"mask": OPEN_MASK})


def test_a_bare_compression_factor_keeps_the_kind_of_mask(setup: Setup) -> None:
    setup.source.frame_count = None
    setup.open(rate=100)
    setup.detector.obey(
        "acquisition", {"mask": {"kind": "coded-aperture", "kernel_size": 4, "mask_count": 8}}
    )
    result = setup.detector.obey("acquisition", {"compression_factor": 4.0})
    assert result["mask"]["kind"] == "coded-aperture"
    assert result["compression_factor"] == pytest.approx(4.0)
    with pytest.raises(ValueError, match="compression_factor"):
        setup.detector.obey("acquisition", {"compression_factor": 0.5})
    with pytest.raises(ValueError, match="kernel_size"):
        setup.detector.obey("acquisition", {"mask": {"kind": "coded-aperture", "kernel_size": 17}})


def test_closing_in_mid_series_counts_what_is_given_up(setup: Setup) -> None:
    setup.source.frame_count = None
    setup.open(rate=500)
    changed = setup.detector._publisher.changed
    with changed:
        assert (
            changed.wait_for(lambda: setup.detector._publisher.ledger.accounts().acquired > 10, 0.0) or True
        )
    setup.detector.close()
    counters = setup.detector.telemetry()
    assert counters["frames_in_flight"] == 0
    assert counters["frames_acquired"] == sum(counters["frames_lost"].values())
    setup.monkeypatch.setattr(setup.detector, "close", lambda: None)


def test_latency_bins_hold_every_frame(setup: Setup) -> None:
    setup.open()
    setup.attach()
    counters = setup.over()
    assert sum(counters["latency_counts"]) == 40
    assert len(counters["latency_bounds_seconds"]) == len(counters["latency_counts"]) + 1
    assert 0 <= counters["latency_p50_seconds"] <= counters["latency_p99_seconds"]


# ---- accounts and the spool


def test_frames_unaccounted_for_fail_the_series(setup: Setup) -> None:
    setup.source.frame_count = None
    setup.open(rate=500)
    setup.attach()
    setup.wait(lambda: setup.frames())
    with setup.detector._publisher.changed:
        setup.detector._publisher.ledger._acquired += 1  # as a bug would
    setup.wait(lambda: setup.events[-1][0] == "failed")
    counters = setup.detector.telemetry()
    assert counters["state"] == "failed"
    assert counters["frames_unaccounted"] == 1
    assert "1 frames are unaccounted for" in counters["error"]
    assert counters["frames_in_flight"] == counters["frames_spooled"] == 0, "what was there is delivered"


def test_frames_unaccounted_for_are_not_laid_at_the_next_series_door(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Telemetry may ask the new series before its accounts are opened."""
    setup.source.frame_count = None
    setup.open(rate=500)
    setup.attach()
    setup.wait(lambda: setup.frames())
    publisher = setup.detector._publisher
    with publisher.changed:
        publisher.ledger._acquired += 1
    setup.wait(lambda: setup.events[-1][0] == "failed")
    opens = publisher.open

    def asked_first(*arguments: Any, **named: Any) -> None:
        asked.append(setup.detector.telemetry())
        opens(*arguments, **named)

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(publisher, "open", asked_first)
    setup.open(rate=500)
    assert [(told["error"], told["frames_unaccounted"], told["frames_acquired"]) for told in asked] == [
        ("", 0, 0)
    ]
    setup.wait(lambda: setup.detector.telemetry()["frames_acknowledged"] > 0)
    assert setup.detector.telemetry()["error"] == ""


def test_a_series_left_by_another_detector_is_gone_on_with_where_it_was(setup: Setup) -> None:
    setup.source.frame_count = None
    setup.open(rate=500)
    with setup.detector._publisher.changed:
        setup.detector._publisher.changed.wait_for(
            lambda: setup.detector._publisher.ledger.accounts().acquired > 30, 5.0
        )
    folder = next(Path(setup.settings.spool).iterdir())
    left = folder.with_name("left")
    shutil.copytree(folder, left)  # as another process finds it that was not told
    acquired = setup.detector.telemetry()["frames_acquired"]
    spool, found = Spool.resume(left, 10**9)
    spool.close()
    waiting = [frame for block in found.blocks for frame in block.frame_ids]
    assert waiting == list(range(found.gathering_from))
    assert 0 < found.exposed <= acquired
    assert found.head.start == setup.detector._running().start_message
    assert [change.first_frame for change in found.changes] == [0]


def test_a_finished_series_leaves_nothing_on_disk(setup: Setup) -> None:
    setup.open()
    setup.attach()
    setup.over()
    assert len(list(Path(setup.settings.spool).iterdir())) == 1  # until nobody has to be told any more
    setup.detector.close()
    assert list(Path(setup.settings.spool).iterdir()) == []
    setup.monkeypatch.setattr(setup.detector, "close", lambda: None)
