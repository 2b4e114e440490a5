"""What it costs that every block is written to the spool before it is sent: the same run with and without."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import chain, link
from benchmarks.figure import Figure
from common.session import CameraSpec, PatternSource, RecoverySpec, SessionSpec

REPEATS = 5
BLOCK_BYTES, BLOCKS = 1_000_000, 1500
CHAIN_FRAMES = 4000


def run() -> list[Figure]:
    """Speed with the spool over speed without, of the bare link and of the chain."""
    with tempfile.TemporaryDirectory() as folder:
        return [_link(Path(folder)), _chain(Path(folder))]


def _link(folder: Path) -> Figure:
    payloads = [np.random.default_rng(k).bytes(BLOCK_BYTES) for k in range(8)]
    without, spooled = [], []
    for _ in range(REPEATS):  # in turn, and the best of each: other work on the machine only slows
        without.append(link.timed(link.acknowledge, link.publish, payloads, BLOCKS))
        publish = partial(link.publish, spool=folder / "link")
        spooled.append(link.timed(link.acknowledge, publish, payloads, BLOCKS))
    rates = [BLOCKS * BLOCK_BYTES / min(times) / 1e9 for times in (spooled, without)]
    return Figure(
        "link of 1 MB blocks, with the spool over without",
        rates[0] / rates[1],
        note=f"{rates[0]:.2f} GB/s against {rates[1]:.2f} GB/s; nothing else is done",
    )


def _chain(folder: Path) -> Figure:
    recovery = RecoverySpec(method="minimum_norm")

    def seconds(frames: int, spool_bytes: int) -> float:
        spec = SessionSpec(
            source=PatternSource(shape=(chain.SIDE, chain.SIDE)),
            mask=chain.CODED,
            camera=CameraSpec(frames=frames, reference_every=0),
            recovery=recovery,
            output=tempfile.mkdtemp(dir=folder),
        )
        return chain.seconds_of_series(spec, worker, spool_bytes)

    without, spooled = [], []
    with chain.started_worker(recovery) as worker:
        seconds(50, 0)  # warms it up
        for _ in range(REPEATS):
            without.append(seconds(CHAIN_FRAMES, 0))
            spooled.append(seconds(CHAIN_FRAMES, link.SPOOL_BYTES))
    rates = [CHAIN_FRAMES / min(times) for times in (spooled, without)]
    return Figure(
        "chain, minimum_norm, with the spool over without",
        rates[0] / rates[1],
        target=0.85,
        note=f"{rates[0]:.0f} against {rates[1]:.0f} frames/s of {chain.SIDE}x{chain.SIDE}",
    )
