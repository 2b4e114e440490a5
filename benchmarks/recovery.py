"""Recoveries against the bare transforms that their iterations need, and against one FFT, at 128x128.

Everything in one process and one run, best of several rounds that take turns, so that what else the machine
does falls on both sides of each ratio alike.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from benchmarks.figure import Figure
from benchmarks.timing import fastest
from common.calibration import Calibration
from common.operators import CodedAperture, LinearOperator, PhasePlate
from common.session import LEARNED, RecoverySpec
from reconstructor.recovery import METHODS, Recovery
from reconstructor.recovery.sparse import SparseRecovery
from reconstructor.recovery.total_variation import TotalVariation
from reconstructor.recovery.wiener import Wiener

SIDE, BATCH = 128, 64
ROUNDS = 12
# bare transforms' time over the recovery's: at most 1.5 times their time
LEAST_SHARE = 1 / 1.5
LEAST_RATE = {"dct": 300.0, "wavelet": 150.0, "tv": 25.0}
MOST_FFTS = 200


def run() -> list[Figure]:
    """Rates and ratios of every recovery at its default, calibrated as in a session, for both masks."""
    threads = min(2, os.cpu_count() or 1)
    torch.set_num_threads(threads)
    note = f"{BATCH} x {SIDE}x{SIDE}, {threads} threads"
    figures: list[Figure] = []
    for mask, op in (
        ("coded aperture", CodedAperture((SIDE, SIDE))),
        ("phase plate", PhasePlate((SIDE, SIDE))),
    ):
        images = torch.randn(BATCH, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        y, calibration = op.A(images), Calibration.from_frames(images[:4])
        for method in (name for name in METHODS if name != LEARNED):  # see benchmarks.learned
            spec = RecoverySpec(method=method, free_share=0)  # pyright: ignore[reportArgumentType]
            recovery = Recovery(op, spec, calibration)
            whole, bare, fft = fastest(
                lambda recovery=recovery, y=y: recovery(y),
                lambda recovery=recovery, y=y: _bare_transforms(recovery, y),
                lambda images=images: torch.fft.rfft2(images),
                rounds=ROUNDS,
            )
            name = f"{method}, {mask}"
            figures.append(Figure(f"{name}: rate", BATCH / whole, "img/s", LEAST_RATE.get(method), note))
            figures.append(
                Figure(f"{name}: share of its bare transforms", bare / whole, "x", LEAST_SHARE, note)
            )
            if method == "dct":
                figures.append(
                    Figure(f"{name}: {MOST_FFTS} rfft2 over it", MOST_FFTS * fft / whole, "x", 1.0, note)
                )
    return figures


@torch.no_grad()
def _bare_transforms(recovery: Recovery, y: Tensor) -> None:
    """What the recovery cannot do without: the closed form, then its transforms, in the same chunks."""
    method, op = recovery.method, recovery.working
    images = op.A_dagger(y)
    pixels = images.shape[1] * images.shape[2]
    for chunk in images.split(max(method.chunk_pixels // pixels, 1)):
        if isinstance(method, SparseRecovery):
            _sparse(method, chunk)
        elif isinstance(method, TotalVariation):
            _total_variation(method, op, chunk)
        elif isinstance(method, Wiener):
            _wiener(method, op, chunk)


def _sparse(method: SparseRecovery, x: Tensor) -> None:
    """Transform and back at each iteration; the projection between two, and in the last data step."""
    iterations = method.parameters.iterations
    assert iterations is not None
    for _ in range(iterations):
        method.transform.inverse(method.transform.forward(x))
        method.op.P(x)


def _total_variation(method: TotalVariation, op: LinearOperator, x: Tensor) -> None:
    """Differences of both axes, their transposes, and the projection at each iteration."""
    iterations = method.parameters.iterations
    assert iterations is not None
    rows, columns, out = x[:, 1:].clone(), x[:, :, 1:].clone(), x.clone()
    for _ in range(iterations):
        torch.sub(x[:, 1:], x[:, :-1], out=rows)
        torch.sub(x[:, :, 1:], x[:, :, :-1], out=columns)
        out[:, :-1].sub_(rows)
        out[:, 1:].add_(rows)
        out[:, :, :-1].sub_(columns)
        out[:, :, 1:].add_(columns)
        op.P(x)
    op.P(x)


def _wiener(method: Wiener, op: LinearOperator, x: Tensor) -> None:
    """There and back in Fourier space; with conjugate gradients, and a projection, at each step."""
    spectrum = torch.fft.rfft2(x)
    if isinstance(op, CodedAperture):
        iterations = method.parameters.iterations
        assert iterations is not None
        for _ in range(iterations):
            spectrum = torch.fft.rfft2(op.P(torch.fft.irfft2(spectrum, s=x.shape[1:])))
    op.P(torch.fft.irfft2(spectrum, s=x.shape[1:]))
