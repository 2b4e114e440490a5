"""The whole chain against its slowest stage, and what a mask gains where the link is the limit."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
import zmq

from benchmarks.figure import Figure
from common.calibration import Calibration
from common.operators.spec import MaskSpec
from common.session import (
    CameraSpec,
    FileSource,
    PatternSource,
    ReadoutSpec,
    RecoverySpec,
    SessionSpec,
    SourceSpec,
)
from common.settings import Settings
from common.wire.codec import encode_array
from common.wire.link import Received, as_bytes
from common.wire.messages import Ack, ConfigurationNotice, Frames, Start
from detector_sim.detector import Detector
from detector_sim.readout import Readout, make_configuration
from detector_sim.sources import open_source
from reconstructor.batches import Block, Recoverer, RecoveryChoice
from reconstructor.subscriber import Subscriber
from reconstructor.worker import Worker
from reconstructor.writer import Results, ResultsWriter

SIDE = 128
CASES = (("minimum_norm", 4000), ("dct", 600))  # frames enough for a second or more
LINK_MBIT_PER_S = 200.0
COUNTING_FRAMES, WIDE_FRAMES = 3000, 1000
ELECTRONS_PER_PIXEL = 5
NOBODY = "inproc://no-control-plane"
CODED = MaskSpec(kind="coded-aperture", kernel_size=4, mask_count=8)  # pyright: ignore[reportCallIssue]
RAW = MaskSpec(kind="none")  # pyright: ignore[reportCallIssue]


def run() -> list[Figure]:
    """Ratios of frames per second."""
    with tempfile.TemporaryDirectory() as folder:
        return [*_chain(Path(folder)), *_limited_link(Path(folder))]


def _spec(folder: Path, source: SourceSpec, mask: MaskSpec, camera: CameraSpec, **more: Any) -> SessionSpec:
    output = tempfile.mkdtemp(dir=folder)
    return SessionSpec(source=source, mask=mask, camera=camera, output=output, **more)


# ---- the chain and its stages ----------------------------------------------------------------------------


def _chain(folder: Path) -> Iterator[Figure]:
    source = PatternSource(shape=(SIDE, SIDE))
    for method, frames in CASES:
        recovery = RecoverySpec(method=method)  # pyright: ignore[reportArgumentType]
        # without reference frames, so that chain and stages do the same
        few, all_frames = (CameraSpec(frames=n, reference_every=0) for n in (50, frames))
        spec = _spec(folder, source, CODED, all_frames, recovery=recovery)
        stages = _stages(spec, frames, Path(tempfile.mkdtemp(dir=folder)))
        slowest = min(stages, key=lambda name: stages[name])
        with started_worker(recovery) as worker:
            seconds_of_series(_spec(folder, source, CODED, few, recovery=recovery), worker)  # warms it up
            chain = frames / seconds_of_series(spec, worker)
        yield Figure(
            f"chain, {method}, against its slowest stage",
            chain / stages[slowest],
            target=0.5,
            note=f"{chain:.0f} frames/s of {SIDE}x{SIDE}; alone: "
            + ", ".join(f"{name} {rate:.0f}" for name, rate in stages.items()),
        )


def _stages(spec: SessionSpec, frames: int, folder: Path) -> dict[str, float]:
    """Frames per second of each stage by itself, on blocks as the chain has them."""
    torch.set_num_threads(threads())
    source = open_source(spec.source)
    first = source.read(4)
    assert first is not None
    shape, dtype = source.shape, source.dtype.name
    configuration, operator = make_configuration(spec.mask, shape, dtype, spec.readout, first.frames)
    readout = Readout(operator, configuration.codec)
    start = Start(
        series="s",
        session="s",
        frames_expected=frames,
        shape=shape,
        dtype=dtype,
        pixel_size_angstrom=1.0,
        output=str(folder),
        optics={},
        calibration=_calibration(first.frames),
    )
    notice = ConfigurationNotice(configuration=configuration.model_dump(mode="json"))
    recoverer = Recoverer(torch.device("cpu"), Settings.load().batch_pixels)
    recoverer.start(start)
    recoverer.configure(notice)
    choice = RecoveryChoice(spec.recovery, "r")
    blocks: list[Block] = []
    per_block = 128

    def acquire() -> None:
        for begin in range(0, frames, per_block):
            ids = list(range(begin, min(begin + per_block, frames)))
            batch = source.read(len(ids))
            assert batch is not None
            payload, buffer = encode_array(readout.readout(batch.frames), configuration.codec)
            header = Frames(
                series="s",
                block=begin,
                config_id=configuration.config_id,
                frame_ids=ids,
                acquired_at=[0.0] * len(ids),
                payload=payload,
            )
            blocks.append(Block(header, [memoryview(as_bytes(buffer))]))

    results: list[Results] = []

    def recover() -> None:
        for block in blocks:
            (outcome,) = recoverer.recover([block], choice)
            assert outcome.results is not None
            results.append(outcome.results)

    def write() -> None:
        with ResultsWriter(start, "w") as writer:
            writer.configure(notice)
            for result in results:
                writer.write([result])

    readout.readout(first.frames)  # compiled before it is timed
    stages = {"acquire": acquire, "recover": recover, "write": write}
    return {name: frames / _timed(stage) for name, stage in stages.items()}


def _calibration(frames: np.ndarray) -> dict[str, Any]:
    return Calibration.from_frames(torch.from_numpy(frames.astype(np.float32))).model_dump()


def _timed(stage: Callable[[], None]) -> float:
    began = time.perf_counter()
    stage()
    return time.perf_counter() - began


def threads() -> int:
    """Of the workers here."""
    return max(1, (os.cpu_count() or 1) - 1)  # one core is the detector's


@contextmanager
def started_worker(recovery: RecoverySpec) -> Iterator[Connection]:
    """A worker process; what is sent to it are the endpoints of detectors to serve."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(there, recovery.model_dump()))
    process.start()
    here.recv()
    try:
        yield here
    finally:
        here.send("")
        process.join()


def _work(orders: Connection, recovery: dict[str, Any]) -> None:
    context: zmq.Context[Any] = zmq.Context()
    worker = Worker(Settings.load(control_endpoint=NOBODY, device="cpu", threads=threads()), "w", context)
    worker.obey("recovery", {"recovery": recovery, "recovery_id": "r"})
    worker.start()
    orders.send("ready")
    while endpoint := orders.recv():
        worker.obey("attach", {"data_endpoint": endpoint})
    worker.close()
    context.term()


# ---- a limited link --------------------------------------------------------------------------------------


def _limited_link(folder: Path) -> Iterator[Figure]:
    generator = np.random.default_rng(0)
    counting = generator.poisson(ELECTRONS_PER_PIXEL, (COUNTING_FRAMES, SIDE, SIDE)).astype(np.int8)
    wide = generator.integers(0, 2**16, (WIDE_FRAMES, SIDE, SIDE), dtype=np.uint16)
    compression = CODED.build((SIDE, SIDE)).compression_factor
    lossless = ReadoutSpec(coding="bitshuffle-zstd")
    with acknowledger() as worker:

        def rate(path: Path, frames: int, mask: MaskSpec, **more: Any) -> float:
            source = FileSource(path=str(path), pixel_size_angstrom=1.0)
            spec = _spec(folder, source, mask, CameraSpec(), link_mbit_per_s=LINK_MBIT_PER_S, **more)
            return frames / seconds_of_series(spec, worker)

        for name, stack, target in (
            ("8-bit counting", counting, 0.95 * compression),
            ("full-range 16-bit", wide, None),
        ):
            path = folder / f"{name}.mrcs"
            with mrcfile.new(path, stack) as file:
                file.set_image_stack()
            raw, masked = (rate(path, len(stack), mask) for mask in (RAW, CODED))
            coded_raw = rate(path, len(stack), RAW, readout=lossless)
            bits = 8 * stack.itemsize * compression * raw / masked
            yield Figure(
                f"frames over a limited link, {name}, masked against raw",
                masked / raw,
                target=target,
                note=f"C = {compression:g}, references included; {masked:.0f} against {raw:.0f} frames/s at "
                f"{LINK_MBIT_PER_S:g} Mbit/s; {bits:.1f} bits a number; losslessly coded {coded_raw:.0f}",
            )


@contextmanager
def acknowledger() -> Iterator[Connection]:
    """A worker that acknowledges without recovering, so that only the link is the limit."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_acknowledge, args=(there,))
    process.start()
    try:
        yield here
    finally:
        here.send("")
        process.join()


def _acknowledge(orders: Connection) -> None:
    context: zmq.Context[Any] = zmq.Context()

    def deliver(received: Received) -> None:
        if isinstance(header := received.message, Frames):
            ack = Ack(series=header.series, block=header.block, frame_ids=header.frame_ids)
            worker.finish([ack])

    worker = Subscriber(
        context, "w", credits=4, heartbeat_seconds=1.0, deliver=deliver, failed=lambda error: None
    )
    worker.start()
    while endpoint := orders.recv():
        worker.attach(endpoint)
    worker.close()
    context.term()


# ---- a series with a worker elsewhere --------------------------------------------------------------------


def seconds_of_series(spec: SessionSpec, worker: Connection, spool_bytes: int | None = None) -> float:
    """From the first exposure to the last acknowledgement, without opening the source."""
    assert spec.output is not None
    spool = Path(spec.output) / "spool"
    context: zmq.Context[Any] = zmq.Context()
    joined, over = threading.Event(), threading.Event()
    listening = {"worker_joined": joined, "finished": over, "failed": over}
    detector = Detector(
        Settings.load(
            control_endpoint=NOBODY,
            data_bind="tcp://127.0.0.1:0",
            spool=str(spool),
            spool_bytes=spool_bytes,
        ),
        context,
        lambda kind, message: listening[kind].set() if kind in listening else None,
    )
    detector.start()
    worker.send(detector.endpoint)
    joined.wait()
    detector.obey("open", {"session": "s", "spec": spec.model_dump(mode="json")})
    opened = time.perf_counter()
    over.wait()
    elapsed = time.perf_counter() - opened
    counters = detector.telemetry()
    assert counters["frames_acknowledged"] == counters["frames_acquired"], counters
    detector.close()
    context.term()
    return elapsed
