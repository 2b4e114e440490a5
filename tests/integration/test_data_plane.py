"""Detector and workers as real processes over real sockets, steered by a control bus of the test's own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
import torch
import zmq

from common.calibration import Calibration
from common.configuration import Configuration
from common.flat_level import FlatLevel
from common.operators.spec import MaskSpec
from common.session import CameraSpec, PatternSource, RecoverySpec, SessionSpec
from common.wire.codec import decode_array, encode_array
from common.wire.link import Link
from common.wire.messages import PROTOCOL_VERSION, Hello, Refusal
from detector_sim.readout import Readout
from detector_sim.sources import frame_number, open_source
from reconstructor.archive import read_configurations, read_frame, read_start
from reconstructor.finalise import finalise
from reconstructor.recovery import Recovery
from tests.integration.bus import DEADLINE_SECONDS, Bus

SHAPE = (32, 32)
OPEN = MaskSpec(kind="none")  # pyright: ignore[reportCallIssue]
EXACT = RecoverySpec(method="minimum_norm", free_share=0.0)


def _spec(
    output: Path,
    *,
    mask: MaskSpec = OPEN,
    recovery: RecoverySpec = EXACT,
    frames: int | None = None,
    rate: float | None = None,
    shape: tuple[int, int] = SHAPE,
    link_mbit_per_s: float | None = None,
) -> SessionSpec:
    return SessionSpec(
        source=PatternSource(shape=shape),
        mask=mask,
        camera=CameraSpec(rate=rate, frames=frames),
        recovery=recovery,
        link_mbit_per_s=link_mbit_per_s,
        output=str(output),
    )


def _check_accounts(counters: dict[str, Any]) -> None:
    lost = sum(counters["frames_lost"].values())
    in_flight = counters["frames_in_flight"]
    assert counters["frames_acquired"] == counters["frames_acknowledged"] + in_flight + lost


def _check_every_frame_is_itself(
    output: Path, opened: dict[str, Any], counters: dict[str, Any]
) -> pd.DataFrame:
    """All frames recovered, exactly once, each in its own slot (open aperture: pixel for pixel)."""
    _check_accounts(counters)
    assert counters["frames_lost"] == {}
    acquired = counters["frames_acquired"]
    assert counters["frames_acknowledged"] == acquired
    summary = finalise(output, opened, counters)
    assert (summary.frames_recovered, summary.frames_missing) == (acquired, 0)
    table = pd.read_csv(output / "frames.csv")
    assert table["frame_id"].tolist() == list(range(acquired))
    assert mrcfile.validate(output / "recovered.mrcs")
    with mrcfile.mmap(output / "recovered.mrcs") as stack:
        assert [frame_number(frame.round()) for frame in stack.data] == list(range(acquired))
    return table


def test_a_worker_killed_in_mid_batch_loses_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        bus.worker("victim")
        bus.worker("survivor")
        opened = bus.open(_spec(output, rate=2000))
        bus.wait(lambda: bus.telemetry.get("victim", {}).get("frames_recovered", 0) > 0)
        bus.kill("victim")
        bus.wait(lambda: bus.of_detector("blocks_redelivered") > 0)
        _check_accounts(bus.telemetry["detector"])
        before = bus.of_detector("frames_acknowledged")
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > before)
        bus.command("detector", "stop")
        counters = bus.finished()
        table = _check_every_frame_is_itself(output, opened, counters)
        assert table["worker"].nunique() == 2
        assert (table["attempt"] > 1).any()
        assert bus.terminate("survivor") == 0
        assert bus.terminate("detector") == 0


def test_all_workers_killed_and_replaced_lose_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        bus.worker("first")
        opened = bus.open(_spec(output, rate=1000))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 0)
        bus.kill("first")
        bus.wait(lambda: bus.of_detector("frames_in_flight") > 500)
        bus.worker("second")
        bus.command("detector", "stop")
        _check_every_frame_is_itself(output, opened, bus.finished())


def test_a_worker_told_to_end_finishes_acknowledges_and_says_goodbye(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000, silent_after_seconds=50) as bus:
        bus.detector()
        bus.worker("leaver")
        opened = bus.open(_spec(output, rate=1000))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 0)
        assert bus.terminate("leaver") == 0
        bus.wait(lambda: "worker_left" in bus.kinds())
        bus.worker("other")
        bus.command("detector", "stop")
        _check_every_frame_is_itself(
            output, opened, bus.finished()
        )  # long before the leaver counts as silent


def test_a_detector_told_to_end_delivers_what_it_acquired(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        bus.worker("w")
        opened = bus.open(_spec(output, rate=1000))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 0)
        assert bus.terminate("detector") == 0
        _check_every_frame_is_itself(output, opened, bus.finished())


def test_a_detector_told_twice_ends_at_once_and_counts_what_is_lost(tmp_path: Path) -> None:
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        bus.open(_spec(tmp_path / "out", rate=1000))
        bus.wait(lambda: bus.of_detector("frames_in_flight") > 0)
        bus.processes["detector"].terminate()
        bus.wait(lambda: bus.of_detector("state") == "draining")
        assert bus.terminate("detector") == 1
        counters = bus.finished()
        _check_accounts(counters)
        assert counters["frames_lost"] == {"the detector was stopped": counters["frames_acquired"]}


def test_changes_in_full_flow_leave_every_frame_with_its_own_configuration(tmp_path: Path) -> None:
    output = tmp_path / "out"
    shape = (40, 36)
    masks = [
        {"kind": "coded-aperture", "kernel_size": 4, "mask_count": 8},
        {"kind": "phase-plate", "pattern": "uniform", "compression_factor": 2.5},
        {"kind": "coded-aperture", "kernel_size": 8, "mask_count": 42},
        {"kind": "phase-plate", "pattern": "annular", "compression_factor": 4},
        {"kind": "none"},
        {"kind": "phase-plate", "pattern": "radial", "compression_factor": 2, "symmetry": "paper"},
    ]
    chosen = random.Random(2)
    recovery = RecoverySpec(method="dct", free_share=0.05)
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        for name in ("a", "b"):
            bus.worker(name)
        spec = _spec(output, mask=MaskSpec.model_validate(masks[0]), recovery=recovery, rate=500, shape=shape)
        opened = bus.open(spec)
        changes = [(0, opened["configuration"]["config_id"])]
        for k in range(10):
            after = changes[-1][0] + chosen.randrange(1, 60)
            bus.wait(lambda after=after: bus.of_detector("frames_acquired") > after)
            if k % 3 == 2:
                result = bus.command("detector", "acquisition", compression_factor=1 + 2 * chosen.random())
            else:
                result = bus.command("detector", "acquisition", mask=masks[(k + 1) % len(masks)])
            changes.append((result["effective_from_frame"], result["config_id"]))
        last = changes[-1][0]
        bus.wait(lambda: bus.of_detector("frames_acquired") > last)
        bus.command("detector", "stop")
        counters = bus.finished()
        _check_accounts(counters)
        summary = finalise(output, opened, counters)
        assert (summary.frames_recovered, summary.frames_missing) == (counters["frames_acquired"], 0)

    table = pd.read_csv(output / "frames.csv")
    assert table["frame_id"].tolist() == list(range(counters["frames_acquired"]))
    expected = ["" for _ in table["frame_id"]]
    for first, config_id in changes:
        expected[first:] = [config_id] * (len(expected) - first)
    assert table["config_id"].tolist() == expected
    counted = {entry["config_id"]: entry["frames"] for entry in counters["configurations"]}
    assert counted == table["config_id"].value_counts().to_dict()
    with mrcfile.mmap(output / "recovered.mrcs") as stack:
        _check_against_offline(output, table, stack.data, spec)


def _check_against_offline(
    output: Path, table: pd.DataFrame, recovered: np.ndarray, spec: SessionSpec
) -> None:
    """Every image equals what its configuration gives without a session, to 1e-5 relative."""
    frames = open_source(spec.source).read(len(table))
    assert frames is not None
    start = read_start(output)
    assert start is not None
    calibration = Calibration.model_validate(start.calibration)
    for config_id, configuration in read_configurations(output).items():
        ids = table.loc[table["config_id"] == config_id, "frame_id"].to_numpy()
        if not len(ids):
            continue
        images = _offline(frames.frames[ids], configuration, spec.recovery, calibration)
        error = np.linalg.norm((recovered[ids] - images).reshape(len(ids), -1), axis=1)
        assert (error <= 1e-5 * np.linalg.norm(images.reshape(len(ids), -1), axis=1)).all(), config_id
        _, measurement = read_frame(output, int(ids[0]))
        again = _offline_measurement(frames.frames[ids[:1]], configuration)[0]
        np.testing.assert_array_equal(measurement, again)


def _offline_measurement(frames: np.ndarray, configuration: Configuration) -> np.ndarray:
    operator = configuration.mask.build(configuration.shape)
    assert operator.mask_hash == configuration.mask_hash
    measurements = Readout(operator, configuration.codec).readout(frames)
    sent = decode_array(*encode_array(measurements, configuration.codec))
    return FlatLevel(operator, configuration.codec.level).put_back(sent)


def _offline(
    frames: np.ndarray, configuration: Configuration, recovery: RecoverySpec, calibration: Calibration
) -> np.ndarray:
    operator = configuration.mask.build(configuration.shape)
    y = torch.from_numpy(_offline_measurement(frames, configuration).astype(np.float32))
    return Recovery(operator, recovery, calibration)(y).images.numpy()


def test_a_late_joiner_takes_its_share(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        bus.worker("early")
        opened = bus.open(_spec(output, rate=1000))
        bus.command("detector", "acquisition", mask={"kind": "coded-aperture"})
        bus.command("detector", "acquisition", mask={"kind": "none"})
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 100)
        bus.worker("late")
        bus.wait(lambda: bus.telemetry.get("late", {}).get("frames_recovered", 0) > 0)
        bus.command("detector", "stop")
        counters = bus.finished()
        finalise(output, opened, counters)
        table = pd.read_csv(output / "frames.csv")
        assert table["frame_id"].tolist() == list(range(counters["frames_acquired"]))
        assert {worker.rsplit("-", 1)[0] for worker in table["worker"]} == {"early", "late"}


def test_another_protocol_version_is_refused_and_the_session_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path) as bus:
        bus.detector()
        bus.worker("w")
        opened = bus.open(_spec(output, rate=500))
        context: zmq.Context[Any] = zmq.Context()
        stranger = Link.dealer(context, bus.registered["detector"].data_endpoint, b"stranger")
        poller = zmq.Poller()
        stranger.register(poller)
        while not stranger.connection_change():
            assert poller.poll(1000 * DEADLINE_SECONDS)
        stranger.send(Hello(worker="stranger", host="h", pid=1, version=PROTOCOL_VERSION + 1))
        while (answer := stranger.receive()) is None:
            assert poller.poll(1000 * DEADLINE_SECONDS)
        assert isinstance(answer.message, Refusal)
        assert f"protocol version {PROTOCOL_VERSION + 1}" in answer.message.reason
        stranger.close(0)
        context.term()
        bus.wait(lambda: "worker_refused" in bus.kinds() and bus.of_detector("frames_acquired") > 1)
        bus.command("detector", "stop")
        _check_every_frame_is_itself(output, opened, bus.finished())


def test_a_worker_that_is_refused_says_why_and_ends(tmp_path: Path) -> None:
    with Bus(tmp_path) as bus:
        context: zmq.Context[Any] = zmq.Context()
        detector = Link.router(context, "tcp://127.0.0.1:*")
        bus.recovery["data_endpoint"] = detector.endpoint
        bus.worker("w")
        hello = bus.wait(detector.receive)
        assert isinstance(hello.message, Hello)
        detector.send(Refusal(reason="not today"), to=hello.identity)
        bus.wait(lambda: bus.processes["w"].poll() is not None, dead=["w"])
        assert bus.processes["w"].returncode == 1
        assert bus.log("w").strip().splitlines()[-1].endswith("refuses this worker: not today")
        detector.close(0)
        context.term()


def test_frames_flow_while_the_control_plane_is_away_and_it_is_found_again(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path) as bus:
        bus.detector()
        bus.worker("w")
        opened = bus.open(_spec(output, rate=500))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > 0)
        before = bus.of_detector("frames_acknowledged")
        bus.link.close(0)
        table = output / "journal"
        held = sum(path.stat().st_size for path in table.iterdir())
        poller = zmq.Poller()
        for _ in range(int(20 * DEADLINE_SECONDS)):  # the journals grow without anybody steering
            if sum(path.stat().st_size for path in table.iterdir()) > 2 * held:
                break
            poller.poll(50)
        bus.registrations.clear()
        bus.link = Link.router(bus._context, bus.endpoint)  # pyright: ignore[reportPrivateUsage]
        bus.wait(lambda: {"detector", "w"} <= set(bus.registrations))
        bus.wait(lambda: bus.of_detector("frames_acknowledged") > before)
        bus.command("detector", "stop")
        _check_every_frame_is_itself(output, opened, bus.finished())


def test_one_detector_serves_one_session_after_another(tmp_path: Path) -> None:
    with Bus(tmp_path) as bus:
        bus.detector()
        bus.worker("w")
        for number in (1, 2):
            output = tmp_path / f"out{number}"
            bus.events.clear()
            opened = bus.open(_spec(output, frames=150), f"session-{number}")
            counters = bus.finished()
            assert counters["session"] == f"session-{number}"
            assert counters["frames_acquired"] == 150
            _check_every_frame_is_itself(output, opened, counters)
        refused = bus.ask(
            "detector", "open", session="again", spec=_spec(tmp_path / "out1").model_dump(mode="json")
        )
        assert refused.error_kind == "invalid"
        assert "already holds recovered.mrcs" in refused.error


def test_a_full_window_makes_the_camera_wait_and_counts_it(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000, window_bytes=100_000) as bus:
        bus.detector()
        opened = bus.open(_spec(output, frames=400))  # nobody there to take them
        bus.wait(lambda: bus.of_detector("idle_seconds") > 0.2)
        assert 0 < bus.of_detector("bytes_in_flight") <= 100_000
        assert bus.of_detector("frames_acquired") < 400
        _check_accounts(bus.telemetry["detector"])
        bus.worker("w")
        _check_every_frame_is_itself(output, opened, bus.finished())


def test_every_byte_of_a_limited_link_is_counted_and_paced(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Bus(tmp_path, block_bytes=20_000) as bus:
        bus.detector()
        bus.worker("w")
        opened = bus.open(_spec(output, frames=300, link_mbit_per_s=2))
        counters = bus.finished()
        table = _check_every_frame_is_itself(output, opened, counters)
        payload = int(table.groupby(["worker", "archive_offset"])["archive_length"].first().sum())
        assert payload < counters["bytes_wire"] < 1.2 * payload
        assert counters["bytes_raw"] == 300 * SHAPE[0] * SHAPE[1]
        sending = table["recovered_at"].max() - table["acquired_at"].min()
        assert sending >= 8 * 0.9 * payload / 2e6 - 0.2  # never faster than the link


def test_what_cannot_be_opened_is_told_in_one_line_and_something_else_can_be(tmp_path: Path) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"source": {"kind": "file", "path": "/nowhere/frames.mrcs"}}, "/nowhere/frames.mrcs"),
        ({"mask": {"kind": "coded-aperture", "kernel_size": 64}}, "kernel_size"),
        ({"mask": {"kind": "coded-aperture", "kernel_size": 2, "mask_count": 5}}, "mask_count"),
        ({"camera": {"rate": -1}}, "rate"),
        ({"readout": {"values": "float32", "coding": "packed"}}, "packed"),
    ]
    with Bus(tmp_path) as bus:
        bus.detector()
        spec = _spec(tmp_path / "out").model_dump(mode="json")
        for change, named in changes:
            reply = bus.ask("detector", "open", session="s", spec={**spec, **change})
            assert (reply.ok, reply.error_kind) == (False, "invalid")
            assert named in reply.error
            assert "\n" not in reply.error
        assert bus.ask("detector", "pause").error_kind == "conflict"
        assert bus.ask("detector", "dance").error_kind == "invalid"
        bus.command("detector", "open", session="s", spec=spec)


def test_a_taken_port_ends_the_detector_with_one_line(tmp_path: Path) -> None:
    with Bus(tmp_path) as bus:
        bus.settings["data_bind"] = bus.endpoint
        bus.detector()
        bus.wait(lambda: bus.processes["detector"].poll() is not None, dead=["detector"])
        assert bus.processes["detector"].returncode == 1
        assert bus.log("detector").strip().splitlines() == [
            f"cryoflux detector: cannot listen on {bus.endpoint}: Address already in use"
        ]
