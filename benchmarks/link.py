"""What credits, acknowledgements and accounts cost: the link against bare PUSH/PULL of the same payloads."""

from __future__ import annotations

import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from benchmarks.figure import Figure
from common.wire.keys import Security
from common.wire.link import Received, keep_freed_memory
from common.wire.messages import Ack, ArrayHeader, ConfigurationNotice, Frames, Start
from detector_sim.publisher import Publisher
from detector_sim.safekeeping import Safekeeping
from detector_sim.spool import Head
from reconstructor.subscriber import Subscriber

REPEATS = 5
WINDOW_BYTES = 256_000_000
SPOOL_BYTES = 4_000_000_000
CREDITS = 4
CASES = ((1_000_000, 1500, 0.8), (64_000, 10_000, None))  # payload bytes, messages, target


def run() -> list[Figure]:
    """The ratio of speeds, payloads of one block and of small ones."""
    figures: list[Figure] = []
    for size, count, target in CASES:
        payloads = [np.random.default_rng(k).bytes(size) for k in range(8)]
        bare, ours = [], []
        for _ in range(REPEATS):  # in turn, and the best of each: other work on the machine only slows
            bare.append(timed(_pull, _push, payloads, count))
            ours.append(timed(acknowledge, publish, payloads, count))
        rates = [count * size / min(times) / 1e9 for times in (bare, ours)]
        figures.append(
            Figure(
                f"link, {size / 1000:g} kB blocks, against PUSH/PULL",
                rates[1] / rates[0],
                target=target,
                note=f"{rates[1]:.2f} GB/s against {rates[0]:.2f} GB/s over tcp loopback, two processes",
            )
        )
    return figures


def timed(receiver: Any, sender: Any, payloads: list[bytes], count: int) -> float:
    """Seconds from the first message sent to the last one answered for."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=receiver, args=(there, count))
    process.start()
    try:
        return sender(here, payloads, count)
    finally:
        process.join()


def _push(receiver: Connection, payloads: list[bytes], count: int) -> float:
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.PUSH)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    receiver.send(port)
    socket.send(b"")  # returns when the connection is there to take it
    receiver.recv()
    began = time.perf_counter()
    for k in range(count):
        socket.send(payloads[k % len(payloads)], copy=False)
    receiver.recv()
    elapsed = time.perf_counter() - began
    context.destroy()
    return elapsed


def _pull(sender: Connection, count: int) -> None:
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.PULL)
    socket.connect(f"tcp://127.0.0.1:{sender.recv()}")
    socket.recv()
    sender.send("ready")
    for _ in range(count):
        socket.recv(copy=False)
    sender.send("done")
    context.destroy()


def publish(
    receiver: Connection,
    payloads: list[bytes],
    count: int,
    spool: Path | None = None,
    security: Security | None = None,
) -> float:
    """Send ``count`` payloads, each written to ``spool`` before; seconds until the last acknowledgement."""
    keep_freed_memory()  # as the detector does
    context: zmq.Context[Any] = zmq.Context()
    over, joined = threading.Event(), threading.Event()

    def event(kind: str, message: str) -> None:
        joined.set()

    safekeeping = Safekeeping(spool, SPOOL_BYTES, "pause", event)
    publisher = Publisher(
        context,
        "tcp://127.0.0.1:0",
        heartbeat_seconds=1.0,
        silent_after_seconds=3.0,
        window_bytes=WINDOW_BYTES,
        safekeeping=safekeeping,
        event=event,
        drained=over.set,
        failed=lambda error: over.set(),
        security=security,
    )
    publisher.start()
    receiver.send(publisher.endpoint)
    joined.wait()
    start = Start(
        series="s",
        session="s",
        frames_expected=count,
        shape=(1, 1),
        dtype="uint8",
        pixel_size_angstrom=1.0,
        output="",
        optics={},
        calibration={},
    )
    publisher.open(Head(start=start, spec={}, began_at=0.0), None, has_clock=False)
    publisher.configure(ConfigurationNotice(configuration={"config_id": "c"}))
    size = len(payloads[0])
    payload = ArrayHeader(shape=[1, size], dtype="uint8", coding="plain", bits=8)
    began = time.perf_counter()
    for k in range(count):
        with publisher.changed:
            publisher.changed.wait_for(lambda: publisher.ledger.has_room(size))
            publisher.ledger.acquire(1)
        header = Frames(series="s", block=0, config_id="c", frame_ids=[k], acquired_at=[0.0], payload=payload)
        publisher.add(header, [payloads[k % len(payloads)]])
    publisher.complete()
    over.wait()
    elapsed = time.perf_counter() - began
    assert publisher.ledger.accounts() == (count, count, 0, 0, {})
    receiver.send("enough")
    publisher.close()
    safekeeping.end()
    context.term()
    return elapsed


def acknowledge(sender: Connection, count: int, security: Security | None = None) -> None:
    """Acknowledge whatever comes."""
    keep_freed_memory()  # as the worker does
    context: zmq.Context[Any] = zmq.Context()

    def deliver(received: Received) -> None:
        if isinstance(received.message, Frames):
            header = received.message
            worker.finish([Ack(series="s", block=header.block, frame_ids=header.frame_ids)])

    worker = Subscriber(
        context,
        "w",
        credits=CREDITS,
        heartbeat_seconds=1.0,
        deliver=deliver,
        failed=lambda error: None,
        security=security,
    )
    worker.attach(sender.recv())
    worker.start()
    sender.recv()
    worker.close()
    context.term()
