"""How fast frames are read out, against copying them."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.figure import Figure
from benchmarks.timing import fastest
from common.configuration import CodecSpec
from common.operators import CodedAperture
from detector_sim.readout import Readout

SIDE = 4096
TARGET = 0.3  # of the speed of a copy


def run() -> list[Figure]:
    """Readout of micrographs on one thread, as fractions of the speed of ``np.copyto`` of the same frames."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [figure for dtype in ("uint16", "uint8") for figure in _figures(dtype)]
    finally:
        torch.set_num_threads(threads)


def _figures(dtype: str) -> list[Figure]:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, np.iinfo(dtype).max, (1, SIDE, SIDE), dtype=dtype, endpoint=True)
    operator = CodedAperture((SIDE, SIDE), kernel_size=4, mask_count=8)
    readout = Readout(operator, CodecSpec(values="integer", coding="packed"))
    copy = np.empty_like(frames)

    def multiply() -> None:
        operator.A(torch.from_numpy(frames.astype(np.float32)))

    copying, reading, multiplying = fastest(
        lambda: np.copyto(copy, frames),
        lambda: readout.readout(frames),
        multiply,
        rounds=15,
    )
    size = f"{SIDE}x{SIDE} {dtype}, K=4 b=8, one thread"
    return [
        Figure(
            f"readout, {dtype}",
            copying / reading,
            target=TARGET if dtype == "uint16" else None,
            note=f"against np.copyto; {size}; {frames.nbytes / reading / 1e9:.1f} GB/s",
        ),
        Figure(
            f"readout by torch, {dtype}",
            copying / multiplying,
            note=f"permuted blocks times matrices; {size}",
        ),
    ]


if __name__ == "__main__":
    for figure in run():
        print(figure)
