"""What the samplers cost beside the bare evaluations of their network, and beside the FLOPs of the machine.

The network has random weights: nothing here depends on them. As in the other benchmarks all that is compared
takes turns in one process, and the best of several rounds counts.
"""

from __future__ import annotations

import os
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figure import Figure
from benchmarks.timing import fastest
from common.calibration import Calibration
from common.operators import CodedAperture, LinearOperator, PhasePlate
from common.session import RecoverySpec
from reconstructor.priors import NetworkPrior
from reconstructor.priors.base import PriorCard
from reconstructor.priors.presets import PRESETS
from reconstructor.recovery import Recovery
from reconstructor.recovery.diffusion import Diffusion, DiffusionParameters

EVALUATIONS = 20
ROUNDS = 3
# at most 10 % over the bare evaluations
LEAST_SHARE = 1 / 1.1
LEAST_RATE = 2.0  # images/s of ``small`` on two cores
BATCHES = {("small", "cpu"): 16, ("small", "cuda"): 256, ("paper-128", "cuda"): 64}
MATRIX = {"cpu": 1536, "cuda": 8192}


def run() -> list[Figure]:
    """Rates and shares on the CPU, and on the GPU where there is one."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    return [figure for device in devices for figure in on(device)]


def on(device: str) -> list[Figure]:
    """The figures of one device."""
    return [
        figure
        for (preset, where), batch in BATCHES.items()
        if where == device
        for figure in _of_preset(preset, device, batch)
    ]


def _prior(preset: str, device: str) -> NetworkPrior:
    torch.manual_seed(0)
    network = PRESETS[preset].network()
    card = PriorCard(
        name=preset, content="clean", prediction="epsilon", side_pixels=PRESETS[preset].side_pixels,
        pixel_size_angstrom=None, signal_std=0.2, trained_on="nothing: random weights", images=0, steps=0,
        batch=0, parameters=sum(weight.numel() for weight in network.parameters()),
    )  # fmt: skip
    return NetworkPrior(network, card, device=device)


def _of_preset(preset: str, device: str, batch: int) -> list[Figure]:
    prior = _prior(preset, device)
    side = PRESETS[preset].side_pixels
    frames = torch.randn(batch, side, side, generator=torch.Generator().manual_seed(0))
    calibration = Calibration.from_frames(frames[:4])
    frames = frames.to(device)
    levels = torch.logspace(0.5, -1, EVALUATIONS, dtype=torch.float64)
    times = prior.schedule.time(levels).to(device, torch.float32)
    images = frames[:, None].contiguous(memory_format=prior.layout)

    @torch.inference_mode()
    def evaluate(count: int = EVALUATIONS) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            for step in range(count):
                prior.network(images, times[step].expand(batch), return_dict=False)

    with FlopCounterMode(display=False) as counter:
        evaluate(1)
    flops = counter.get_total_flops() / batch
    note = f"{batch} x {side}x{side}, {EVALUATIONS} evaluations, {_threads(device)}"
    masks: list[tuple[str, LinearOperator]] = [
        ("coded aperture", CodedAperture((side, side), 16, 102)),
        ("phase plate", PhasePlate((side, side), "uniform", 2.5)),
    ]
    side_of_matrix = MATRIX[device]
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    matrix = torch.randn(side_of_matrix, side_of_matrix, device=device, dtype=kind)
    peak = 0.0
    times_of: dict[str, tuple[float, float]] = {}
    for mask, op in masks:
        y = op.A(frames)
        for sampler in ("posterior", "nesterov"):
            recovery = Recovery(op, RecoverySpec(method="minimum_norm", free_share=0), calibration)
            parameters = DiffusionParameters.model_validate({"sampler": sampler, "evaluations": EVALUATIONS})
            recovery.method = Diffusion(recovery.working, parameters, calibration, prior)
            whole, bare, product = fastest(
                lambda recovery=recovery, y=y: recovery(y),
                evaluate,
                lambda: matrix @ matrix,
                rounds=ROUNDS,
                unmeasured=1,
                wait=partial(_wait, device),
            )
            times_of[f"{preset}, {device}, {sampler}, {mask}"] = whole, bare
            peak = max(peak, 2 * side_of_matrix**3 / product)  # the most that a network can reach
    bound = peak / flops / EVALUATIONS
    precision = str(kind).removeprefix("torch.")
    figures = [
        Figure(f"{preset}, {device}: matrix products, {precision}", peak / 1e9, "GFLOP/s"),
        Figure(f"{preset}, {device}: one evaluation", flops / 1e9, "GFLOP an image"),
        Figure(f"{preset}, {device}: FLOP bound", bound, "img/s", None, note),
    ]
    for name, (whole, bare) in times_of.items():
        least = LEAST_RATE if (preset, device) == ("small", "cpu") else None
        figures += [
            Figure(f"{name}: rate", batch / whole, "img/s", least, note),
            Figure(f"{name}: share of its bare evaluations", bare / whole, "x", LEAST_SHARE, note),
            Figure(f"{name}: share of the FLOP bound", batch / whole / bound, "x", None, note),
        ]
    return figures


def _threads(device: str) -> str:
    return f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
