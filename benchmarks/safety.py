"""What it costs that nothing is lost and no one is let in: each safety against the same run without it.

"Without" is made here, by other ends of the link and by patches of these processes. The product has no switch
for it, because nobody should set one.

- **Acknowledgements.** *Without*: a block is forgotten as soon as it is handed to ZeroMQ, and the worker
  answers with nothing but the credit for the next one. On the bare link there is no ledger and no credit
  either: the same messages go from one ``Link`` to another as fast as the queue of the socket takes them.
- **Durability before the acknowledgement.** *Without*: ``fsync`` of the worker does nothing.
- **Checksums** are those of the spool, so both runs write one. *Without*: ``crc32`` is a constant.
- **CURVE.** *Without*: no keys.

Acknowledgements and CURVE are compared without a spool, which has a benchmark of its own (``spool``).
Repetitions of all variants take turns, the order reversed each time; a ratio is the median over the
repetitions of the two times of one round, so that other work on the machine cancels.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import zmq

from benchmarks import chain, link
from benchmarks.figure import Figure
from common.session import CameraSpec, PatternSource, RecoverySpec, SessionSpec
from common.settings import Settings
from common.wire.keys import DATA_PLANE, Keyring, Security, make_keys
from common.wire.link import Link, keep_freed_memory
from common.wire.messages import Ack, ArrayHeader, End, Frames, Hello, Message
from detector_sim import spool
from detector_sim.detector import Detector
from detector_sim.ledger import Delivery, Ledger
from reconstructor.subscriber import Subscriber
from reconstructor.worker import Worker

REPEATS = 7
LINK_CASES = ((64_000, 10_000), (1_000_000, 1500))  # payload bytes, messages
CHAIN_FRAMES, WARM_FRAMES = 4000, 100
QUEUED_MESSAGES = 64  # without credit, the socket's queue is what bounds the memory
SPOOL_BYTES = 4_000_000_000
RECOVERY = RecoverySpec(method="minimum_norm")


class Cost(NamedTuple):
    """What a run took, both processes together."""

    seconds: float
    processor_seconds: float


Run = Callable[[], Cost]


def run() -> list[Figure]:
    """Speed with each safety over speed without, and the processor time it takes."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        make_keys(keys)
        figures = [figure for case in LINK_CASES for figure in _link(Path(folder), keys, *case)]
        return figures + _chain(Path(folder), keys)


# ---- comparing -------------------------------------------------------------------------------------------


def _compared(
    where: str, gigabytes: float, runs: Mapping[str, Run], pairs: Mapping[str, tuple[str, str]]
) -> list[Figure]:
    """Take turns, and set each variant beside the one without.

    ``pairs``: names of two runs, with and without, by what is compared.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for repeat in range(REPEATS):
        for name in reversed(list(runs)) if repeat % 2 else runs:
            costs[name].append(runs[name]())
    figures: list[Figure] = []
    for what, (protected, bare) in pairs.items():
        both = list(zip(costs[protected], costs[bare], strict=True))
        ratios = sorted(without.seconds / with_.seconds for with_, without in both)
        middle = [Cost(*map(statistics.median, zip(*costs[name], strict=True))) for name in (protected, bare)]
        rates = [gigabytes / cost.seconds for cost in middle]
        processor = [cost.processor_seconds for cost in middle]
        figures.append(
            Figure(
                f"{where}, {what}, with over without",
                statistics.median(ratios),
                note=f"{ratios[1]:.2f} to {ratios[-2]:.2f} but for one each side; "
                f"{rates[0]:.3g} against {rates[1]:.3g} GB/s; processor "
                f"{processor[0] / gigabytes:.3g} against {processor[1] / gigabytes:.3g} s/GB",
            )
        )
    return figures


# ---- the link alone --------------------------------------------------------------------------------------


def _link(folder: Path, keys: Path, size: int, count: int) -> list[Figure]:
    payloads = [np.random.default_rng(k).bytes(size) for k in range(8)]
    security = {name: Security(Keyring(keys, name), DATA_PLANE) for name in ("detector", "worker")}

    def timed(receiver: Any, sender: Any) -> Cost:
        return _timed(receiver, sender, payloads, count)

    def without_checksums() -> Cost:
        with mock.patch.object(spool, "crc32", _constant):
            return timed(link.acknowledge, spooled)

    spooled = partial(link.publish, spool=folder / "spool")
    acknowledged = partial(timed, link.acknowledge, link.publish)
    encrypted = (
        partial(link.acknowledge, security=security["worker"]),
        partial(link.publish, security=security["detector"]),
    )
    runs: dict[str, Run] = {
        "acknowledged": acknowledged,
        "unacknowledged": partial(timed, _take, _give),
        "checked": partial(timed, link.acknowledge, spooled),
        "unchecked": without_checksums,
        "encrypted": partial(timed, *encrypted),
    }
    pairs = {
        "acknowledgements": ("acknowledged", "unacknowledged"),
        "checksums": ("checked", "unchecked"),
        "CURVE": ("encrypted", "acknowledged"),
    }
    return _compared(f"link, {size / 1000:g} kB blocks", count * size / 1e9, runs, pairs)


def _constant(data: Any, before: int = 0) -> int:
    return 0


def _timed(receiver: Any, sender: Any, payloads: list[bytes], count: int) -> Cost:
    """Seconds from the first message sent to the last one answered for."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_accounted, args=(receiver, there, count))
    process.start()
    try:
        began = time.process_time()
        seconds = sender(here, payloads, count)
        return Cost(seconds, time.process_time() - began + here.recv())
    finally:
        process.join()


def _accounted(receiver: Any, sender: Connection, count: int) -> None:
    began = time.process_time()
    receiver(sender, count)
    sender.send(time.process_time() - began)


def _give(receiver: Connection, payloads: list[bytes], count: int) -> float:
    """Send ``count`` payloads to whoever is there and forget them."""
    keep_freed_memory()
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
    outlet = Link(socket, large=False)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    receiver.send(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}")
    poller = zmq.Poller()
    outlet.register(poller)
    poller.poll()
    hello = outlet.receive()
    assert hello is not None
    size = len(payloads[0])
    payload = ArrayHeader(shape=[1, size], dtype="uint8", coding="plain", bits=8)
    began = time.perf_counter()
    for k in range(count):
        header = Frames(series="s", block=k, config_id="c", frame_ids=[k], acquired_at=[0.0], payload=payload)
        _send(outlet, socket, header, [payloads[k % len(payloads)]], hello.identity)
    end = End(series="s", last_frame_id=count - 1, acquired=count, acknowledged=count, lost=0)
    _send(outlet, socket, end, [], hello.identity)
    receiver.recv()
    elapsed = time.perf_counter() - began
    outlet.close()
    context.term()
    return elapsed


def _send(outlet: Link, socket: Any, message: Message, buffers: list[bytes], to: bytes) -> None:
    while not outlet.send(message, buffers, to=to):  # the queue is full
        socket.poll(1000, zmq.POLLOUT)


def _take(sender: Connection, count: int) -> None:
    """Receive, and answer nothing until the end."""
    keep_freed_memory()
    context: zmq.Context[Any] = zmq.Context()
    inlet = Link.dealer(context, sender.recv(), b"w")
    poller = zmq.Poller()
    inlet.register(poller)
    while not inlet.send(Hello(worker="w", host="", pid=os.getpid())):
        poller.poll(100)
        inlet.connection_change()
    taken = 0
    while taken < count:
        poller.poll(1000)
        inlet.connection_change()
        while (received := inlet.receive()) is not None:
            taken += isinstance(received.message, Frames)
    sender.send("all")
    inlet.close()
    context.term()


# ---- the whole chain -------------------------------------------------------------------------------------


def _chain(folder: Path, keys: Path) -> list[Figure]:
    frame_bytes = CHAIN_FRAMES * chain.SIDE**2
    runs: dict[str, Run] = {}
    with contextlib.ExitStack() as workers:
        for name, variant in {
            "plain": Variant(),
            "unacknowledged": Variant(acknowledges=False),
            "unsynced": Variant(syncs=False),
            "encrypted": Variant(keys=str(keys)),
        }.items():
            worker = workers.enter_context(_worker(variant))
            runs[name] = partial(_series, folder, worker, variant)
            if name == "plain":
                checked, unchecked = Variant(spools=True), Variant(spools=True, checks=False)
                runs["checked"] = partial(_series, folder, worker, checked)
                runs["unchecked"] = partial(_series, folder, worker, unchecked)
            _series(folder, worker, variant, WARM_FRAMES)
        pairs = {
            "acknowledgements": ("plain", "unacknowledged"),
            "durable before the acknowledgement": ("plain", "unsynced"),
            "checksums": ("checked", "unchecked"),
            "CURVE": ("encrypted", "plain"),
        }
        return _compared("chain, minimum_norm", frame_bytes / 1e9, runs, pairs)


class Variant(NamedTuple):
    """How a chain is protected; the usual way, but without a spool and keys."""

    acknowledges: bool = True
    syncs: bool = True
    checks: bool = True
    spools: bool = False
    keys: str = ""


def _series(folder: Path, worker: Connection, variant: Variant, frames: int = CHAIN_FRAMES) -> Cost:
    """From the first exposure until the last result is written and the detector has done with the series."""
    output = Path(tempfile.mkdtemp(dir=folder))
    spec = SessionSpec(
        source=PatternSource(shape=(chain.SIDE, chain.SIDE)),
        mask=chain.CODED,
        camera=CameraSpec(frames=frames, reference_every=0),
        recovery=RECOVERY,
        output=str(output),
    )
    with _patched(variant):
        context: zmq.Context[Any] = zmq.Context()
        joined, over = threading.Event(), threading.Event()
        listening = {"worker_joined": joined, "finished": over, "failed": over}
        settings = Settings.load(
            control_endpoint=chain.NOBODY,
            data_bind="tcp://127.0.0.1:0",
            spool=str(output / "spool"),
            spool_bytes=SPOOL_BYTES if variant.spools else 0,
            keys=variant.keys,
        )
        detector = Detector(
            settings, context, lambda kind, message: listening[kind].set() if kind in listening else None
        )
        detector.start()
        worker.send((detector.endpoint, frames))
        joined.wait()
        here, there = time.process_time(), _asked(worker)
        began = time.perf_counter()
        detector.obey("open", {"session": "s", "spec": spec.model_dump(mode="json")})
        over.wait()
        assert worker.recv() == "written"
        seconds = time.perf_counter() - began
        processor = time.process_time() - here + _asked(worker) - there
        counters = detector.telemetry()
        assert counters["frames_acknowledged"] == counters["frames_acquired"] == frames, counters
        detector.close()
        context.term()
    shutil.rmtree(output)
    return Cost(seconds, processor)


def _asked(worker: Connection) -> float:
    """Processor time that the worker has used so far."""
    worker.send("processor time")
    return worker.recv()


@contextlib.contextmanager
def _patched(variant: Variant) -> Iterator[None]:
    """The detector's end of what is left out."""
    next_block = Ledger.next_block

    def sent_and_forgotten(ledger: Ledger) -> Delivery | None:
        delivery = next_block(ledger)
        for message, _ in delivery.messages if delivery is not None else ():
            if isinstance(message, Frames):
                frames = list(message.frame_ids)
                ledger.ack(Ack(series=message.series, block=message.block, frame_ids=frames), time.time())
        return delivery

    with contextlib.ExitStack() as patches:
        if not variant.acknowledges:
            patches.enter_context(mock.patch.object(Ledger, "next_block", sent_and_forgotten))
        if not variant.checks:
            patches.enter_context(mock.patch.object(spool, "crc32", _constant))
        yield


@contextlib.contextmanager
def _worker(variant: Variant) -> Iterator[Connection]:
    """A worker process; what is sent to it are detectors to serve with numbers of frames, or questions."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(there, variant))
    process.start()
    here.recv()
    try:
        yield here
    finally:
        here.send(None)
        process.join()


def _work(orders: Connection, variant: Variant) -> None:
    context: zmq.Context[Any] = zmq.Context()
    keep_freed_memory()
    wanted = written = 0
    finish = Subscriber.finish

    def counted(subscriber: Subscriber, answers: list[Message], **more: Any) -> None:
        nonlocal written
        written += sum(len(answer.frame_ids) for answer in answers if isinstance(answer, Ack))
        finish(subscriber, answers if variant.acknowledges else [], **more)
        if written == wanted:
            orders.send("written")

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(Subscriber, "finish", counted))
        if not variant.syncs:
            patches.enter_context(mock.patch.object(os, "fsync"))
        settings = Settings.load(
            control_endpoint=chain.NOBODY, device="cpu", threads=chain.threads(), keys=variant.keys
        )
        worker = Worker(settings, "w", context)
        worker.obey("recovery", {"recovery": RECOVERY.model_dump(), "recovery_id": "r"})
        worker.start()
        orders.send("ready")
        while (order := orders.recv()) is not None:
            if isinstance(order, str):
                orders.send(time.process_time())
            else:
                endpoint, wanted = order
                written = 0
                worker.obey("attach", {"data_endpoint": endpoint})
        worker.close()
    context.term()
