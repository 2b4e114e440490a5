"""Recoveries of held-out simulated particles, with a learned prior and without, against truth and frame.

Every combination of mask and recovery is a file of its own, written after each 16 frames: a run that is
interrupted goes on where it was, and several runs may share the work with ``--recovery`` and ``--mask``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.calibration import Calibration
from common.operators import LinearOperator, MaskSpec
from common.session import LEARNED, RecoverySpec, SpecimenSpec
from common.whole import replacing
from detector_sim.specimen import Specimen
from reconstructor.priors import load_prior
from reconstructor.quality import frc, psnr, ssim
from reconstructor.recovery import Recovery

STRUCTURES = ("cage", "barrel", "ring")
SIDE, PIXEL_SIZE = 64, 3.0
SEED = 20_000_001
"""Of the specimens. Training draws its own from 2^42 on (``services.training.FIRST_SEED``)."""
REFERENCES = 4  # first frames of each specimen, for the calibration
FRAMES, CHUNK = 256, 16
AGAINST = ("truth", "frame")
FIGURES = ("psnr", "ssim", "frc")


def _aperture(kernel_size: int, mask_count: int) -> MaskSpec:
    return MaskSpec.model_validate(
        {"kind": "coded-aperture", "kernel_size": kernel_size, "mask_count": mask_count}
    )


def _plate(compression_factor: float) -> MaskSpec:
    return MaskSpec.model_validate({"kind": "phase-plate", "compression_factor": compression_factor})


MASKS = {
    "K=4 b=8": _aperture(4, 8),
    "K=8 b=42": _aperture(8, 42),
    "K=16 b=102": _aperture(16, 102),
    "K=32 b=410": _aperture(32, 410),
    "C=1.4": _plate(1.4),
    "C=2.5": _plate(2.5),
    "C=10": _plate(10),
}
"""Coded apertures, as in docs/fidelity.md, and uniform phase plates of honest C."""
HARD = ("K=16 b=102", "K=32 b=410", "C=2.5", "C=10")
"""Where a learned prior has to beat every sparse one: K of 16 or more, C of a plate of 2.5 or more."""


@dataclass(frozen=True)
class Choice:
    """A recovery and its parameters."""

    method: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def is_learned(self) -> bool:
        """Whether it depends on the prior's weights."""
        return self.method == LEARNED

    def spec(self, prior: str) -> RecoverySpec:
        """With every measurement used."""
        learned = {"prior": prior} if self.is_learned else {}
        return RecoverySpec.model_validate(
            {"method": self.method, "parameters": {**self.parameters, **learned}, "free_share": 0}
        )


CLASSICAL = ("wiener", "dct", "wavelet", "tv")
RECOVERIES = {
    "minimum norm": Choice("minimum_norm"),
    **{name: Choice(name) for name in CLASSICAL},
    **{f"{name}, data weight 0": Choice(name, {"data_weight": 0.0}) for name in CLASSICAL},
    **{f"posterior, {n}": Choice(LEARNED, {"evaluations": n}) for n in (10, 20, 50)},
    "nesterov, 1000": Choice(LEARNED, {"sampler": "nesterov", "evaluations": 1000}),
}
"""Cheap ones first."""
SPARSE = tuple(name for name, choice in RECOVERIES.items() if choice.method in ("dct", "wavelet", "tv"))


class Frames(NamedTuple):
    """16 frames of one specimen."""

    structure: str
    numbers: range
    noisy: Tensor  # (16, H, W) float32
    clean: Tensor


@cache
def _specimen(structure: str) -> Specimen:
    return Specimen(
        SpecimenSpec(structure=structure, side_pixels=SIDE, pixel_size_angstrom=PIXEL_SIZE, seed=SEED)
    )


@cache
def held_out(chunk: int) -> Frames:
    """Chunk by chunk the specimens take turns."""
    structure = STRUCTURES[chunk % len(STRUCTURES)]
    first = REFERENCES + CHUNK * (chunk // len(STRUCTURES))
    batch = _specimen(structure).batch(first, CHUNK)
    return Frames(
        structure,
        range(first, first + CHUNK),
        torch.from_numpy(batch.frames.astype("float32")),
        torch.from_numpy(batch.clean),
    )


@cache
def _calibration(structure: str) -> Calibration:
    frames = _specimen(structure).batch(0, REFERENCES).frames
    return Calibration.from_frames(torch.from_numpy(frames.astype("float32")))


@cache
def operator(mask: str) -> LinearOperator:
    """Of the test's frames."""
    return MASKS[mask].build((SIDE, SIDE))


@cache
def _recovery(mask: str, recovery: str, structure: str, prior: str) -> Recovery:
    return Recovery(operator(mask), RECOVERIES[recovery].spec(prior), _calibration(structure))


@cache
def fingerprint(prior: str) -> str:
    """Of a prior's weights and scale."""
    loaded = load_prior(prior)
    known = hashlib.sha256(str(loaded.card.signal_std).encode())
    for name, weight in sorted(loaded.network.state_dict().items()):
        known.update(name.encode() + weight.cpu().contiguous().numpy().tobytes())
    return known.hexdigest()[:16]


# ---- cells ----------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """What was measured of one recovery behind one mask.

    Attributes
    ----------
    asked : dict
        What the figures depend on; those of another prior or other particles do not count.
    chunks : dict of str to dict
        By number: ``seconds`` a frame, and for every figure 16 values, ``truth psnr`` ... ``frame frc``.
    """

    asked: dict[str, Any]
    chunks: dict[str, dict[str, Any]]

    @property
    def frames(self) -> int:
        """How many there are figures of."""
        return CHUNK * len(self.chunks)

    def values(self, figure: str, chunks: Sequence[str] | None = None) -> Tensor:
        """(frames,), of all chunks or of some."""
        chosen = sorted(self.chunks, key=int) if chunks is None else chunks
        return torch.tensor([value for chunk in chosen for value in self.chunks[chunk][figure]]).double()

    @property
    def seconds(self) -> float:
        """A frame; the median of the chunks."""
        return float(torch.tensor([chunk["seconds"] for chunk in self.chunks.values()]).median())


def asked(mask: str, recovery: str, prior: str) -> dict[str, Any]:
    """What the figures of a cell depend on."""
    choice = RECOVERIES[recovery]
    return {
        "mask": MASKS[mask].model_dump(),
        "method": choice.method,
        "parameters": choice.parameters,
        "prior": fingerprint(prior) if choice.is_learned else None,
        "particles": {"structures": STRUCTURES, "side": SIDE, "pixel size": PIXEL_SIZE, "seed": SEED},
    }


def _file(results: Path, mask: str, recovery: str) -> Path:
    name = f"{mask} {recovery}".replace(",", "").replace("=", "").replace(" ", "-")
    return results / f"quality-{name}.json"


def read(results: Path, mask: str, recovery: str) -> Cell | None:
    """What there is, whatever prior it is of."""
    try:
        return Cell(**json.loads(_file(results, mask, recovery).read_text()))
    except FileNotFoundError:
        return None


def _write(results: Path, mask: str, recovery: str, cell: Cell) -> None:
    path = _file(results, mask, recovery)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(cell._asdict()))


def measure(
    results: Path, prior: str, frames: int, recoveries: Sequence[str], masks: Sequence[str], device: str
) -> None:
    """Fill in what is missing, cheap recoveries first, all masks in step; says how it goes.

    Parameters
    ----------
    results : Path
        Folder of the cells.
    prior : str
        Name or folder.
    frames : int
        Of each cell at least; rounded up to whole chunks.
    recoveries, masks : sequence of str
        Of ``RECOVERIES`` and ``MASKS``.
    device : str
        Where recoveries run.
    """
    results.mkdir(parents=True, exist_ok=True)
    for recovery in RECOVERIES:
        if recovery not in recoveries:
            continue
        for chunk in range(-(-frames // CHUNK)):
            for mask in masks:
                wanted = json.loads(json.dumps(asked(mask, recovery, prior)))
                cell = read(results, mask, recovery)
                if cell is None or cell.asked != wanted:
                    cell = Cell(wanted, {})
                if str(chunk) in cell.chunks:
                    continue
                made = judged(held_out(chunk), mask, recovery, prior, device)
                cell.chunks[str(chunk)] = made
                _write(results, mask, recovery, cell)
                print(
                    f"{recovery:26s} {mask:12s} frames {cell.frames:4d}  "
                    f"{sum(made['truth psnr']) / CHUNK:6.2f} dB  {made['seconds']:8.4f} s a frame",
                    flush=True,
                )


def judged(frames: Frames, mask: str, recovery: str, prior: str, device: str) -> dict[str, Any]:
    """A chunk's figures."""
    recoverer = _recovery(mask, recovery, frames.structure, prior)
    y = operator(mask).A(frames.noisy.to(device))
    if not RECOVERIES[recovery].is_learned:
        recoverer(y[:1])  # what is made once is not counted
    else:
        load_prior(prior, y.device)
    start = time.perf_counter()
    images = recoverer(y, frames.numbers).images.cpu()
    seconds = (time.perf_counter() - start) / len(y)
    made: dict[str, Any] = {"seconds": seconds}
    for name, reference in zip(AGAINST, (frames.clean, frames.noisy), strict=True):
        made[f"{name} psnr"] = _rounded(psnr(images, reference))
        made[f"{name} ssim"] = _rounded(ssim(images, reference))
        made[f"{name} frc"] = _rounded(frc(images, reference)[:, 1:].mean(1))
    return made


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def cells(results: Path) -> dict[tuple[str, str], Cell]:
    """All there are, by mask and recovery."""
    found = {(mask, recovery): read(results, mask, recovery) for mask in MASKS for recovery in RECOVERIES}
    return {key: cell for key, cell in found.items() if cell is not None}


# ---- claims ---------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """How often one recovery is at least as good as others.

    ``failed`` says where not: mask, figure, the better one, and by how much with twice its standard error.
    """

    held: int
    asked: int
    failed: list[str]
    missing: int


def at_least_as_good(
    known: Mapping[tuple[str, str], Cell],
    recovery: str,
    others: Sequence[str],
    masks: Sequence[str],
    against: Sequence[str],
) -> Claim:
    """Compare means over the frames that both have; a comparison is a mask, a figure and another recovery."""
    held = missing = count = 0
    failed: list[str] = []
    for mask in masks:
        for other in others:
            ours, theirs = known.get((mask, recovery)), known.get((mask, other))
            for figure in (f"{a} {f}" for a in against for f in FIGURES):
                count += 1
                common = sorted(ours.chunks.keys() & theirs.chunks.keys(), key=int) if ours and theirs else []
                if ours is None or theirs is None or not common:
                    missing += 1
                    continue
                ahead = theirs.values(figure, common) - ours.values(figure, common)
                if float(ahead.mean()) <= 0:
                    held += 1
                else:
                    error = float(ahead.std() / len(ahead) ** 0.5)
                    failed.append(
                        f"{mask}, {figure}: {other} ahead by {float(ahead.mean()):.3g} ± {2 * error:.2g}"
                    )
    return Claim(held, count, failed, missing)
