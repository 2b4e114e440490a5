"""What the recoveries give, and how their defaults were found: writes the tables of docs/fidelity.md.

    CRYOFLUX_DATA=/data python -m benchmarks.fidelity [table ...]

Without arguments every table is made anew. Real images come from the folder that CRYOFLUX_DATA names; the
simulated ones from the product's own specimen simulator. LPIPS is measured with the weights in the folder
that CRYOFLUX_LPIPS names, else not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
from torch import Tensor

from benchmarks.document import put
from common.calibration import Calibration
from common.operators import CodedAperture, LinearOperator, PhasePlate
from common.session import SpecimenSpec
from common.settings import Settings
from detector_sim.specimen import Specimen
from reconstructor.lpips import load_lpips
from reconstructor.quality import lpips, psnr, ssim
from reconstructor.recovery import recover
from reconstructor.recovery.spectrum import SpectrumEstimator

DOCUMENT = Path(__file__).parents[1] / "docs" / "fidelity.md"
PRIORS = ("wiener", "dct", "wavelet", "tv")
SPARSE = ("dct", "wavelet", "tv")
SEEDS = (0, 1, 2)
SIMULATED = 256
REFERENCES = 4
CHUNK = 64

Masks = dict[str, Callable[[tuple[int, int], int], LinearOperator]]

# the settings of the papers' main comparison
PAPER_MASKS: Masks = {
    "coded aperture K=4 b=8": lambda shape, seed: CodedAperture(shape, 4, 8, seed),
    "phase plate, uniform, printed C=2.5": lambda shape, seed: PhasePlate(
        shape, "uniform", 2.5, seed, symmetry="paper"
    ),
}
SIMULATED_MASKS: Masks = {
    **PAPER_MASKS,
    "phase plate, uniform, C=2.5": lambda shape, seed: PhasePlate(shape, "uniform", 2.5, seed),
}
OTHER_MASKS: Masks = {
    "K=2 b=1": lambda shape, seed: CodedAperture(shape, 2, 1, seed),
    "K=4 b=4": lambda shape, seed: CodedAperture(shape, 4, 4, seed),
    "K=8 b=42": lambda shape, seed: CodedAperture(shape, 8, 42, seed),
    "K=16 b=102": lambda shape, seed: CodedAperture(shape, 16, 102, seed),
    "K=32 b=410": lambda shape, seed: CodedAperture(shape, 32, 410, seed),
    "annular C=2.5": lambda shape, seed: PhasePlate(shape, "annular", 2.5, seed),
    "radial C=2.5": lambda shape, seed: PhasePlate(shape, "radial", 2.5, seed),
    "uniform C=10": lambda shape, seed: PhasePlate(shape, "uniform", 10, seed),
}


@cache
def real_images() -> dict[str, Tensor]:
    """The sample image of the papers' code and seven particles of EMPIAR-10076, each scaled to 0 ... 1.

    Raises
    ------
    SystemExit
        If CRYOFLUX_DATA is not set.
    """
    folder = os.environ.get("CRYOFLUX_DATA")
    if not folder:
        raise SystemExit("CRYOFLUX_DATA is not set: the tables on real images need the folder of shared data")
    images: dict[str, Tensor] = {}
    for name, file in (("sample", "empiar10076_paper_sample"), ("seven", "empiar10076_7")):
        stack = mrcfile.read(Path(folder) / "particles" / f"{file}.mrcs").astype(np.float32)
        x = torch.from_numpy(np.atleast_3d(stack).reshape(-1, *stack.shape[-2:]))
        low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
        images[name] = (x - low) / (high - low)
    return images


@cache
def simulated(snr: float, count: int = SIMULATED) -> tuple[Tensor, Tensor]:
    """Particles of the specimen simulator with Gaussian noise, and the same without: (B, 128, 128) each."""
    batch = Specimen(SpecimenSpec(snr=snr)).batch(0, count)
    return torch.from_numpy(batch.frames).float(), torch.from_numpy(batch.clean).float()


def recovered(y: Tensor, op: LinearOperator, method: str, **keywords: Any) -> Tensor:
    """``recover``, in chunks that fit any machine."""
    return torch.cat([recover(part, op, method, **keywords) for part in y.split(CHUNK)])


def real() -> Iterator[str]:
    """Every recovery at its default on real images, against the noisy images themselves."""
    for mask, build in PAPER_MASKS.items():
        yield f"\n**{mask}**\n"
        yield "| recovery | sample PSNR | SSIM | seven PSNR | SSIM | least gain, dB | least gain, SSIM |"
        yield "|---|---|---|---|---|---|---|"
        figures: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        for name, x in real_images().items():
            for method in ("minimum_norm", *PRIORS):
                per_seed = []
                for seed in SEEDS:
                    op = build((x.shape[1], x.shape[2]), seed)
                    z = recovered(op.A(x), op, method)
                    per_seed.append((psnr(z, x, 1.0), ssim(z, x, 1.0)))
                figures.setdefault(method, {})[name] = (
                    torch.stack([p for p, _ in per_seed]),
                    torch.stack([s for _, s in per_seed]),
                )
        base = figures["minimum_norm"]
        for method, sets in figures.items():
            cells = [f"{sets[n][0][0].mean():.2f} | {sets[n][1][0].mean():.3f}" for n in sets]
            least = [min((sets[n][k] - base[n][k]).min().item() for n in sets) for k in (0, 1)]
            gains = (
                "| |" if method == "minimum_norm" else f"| {_signed(least[0], 3)} | {_signed(least[1], 5)} |"
            )
            yield f"| {method} | {' | '.join(cells)} {gains}"


def truth() -> Iterator[str]:
    """Gain over minimum norm against the clean truth, simulated particles."""
    for snr in (0.1, 0.05):
        noisy, clean = simulated(snr)
        calibration = Calibration.from_frames(noisy[:REFERENCES])
        for mask, build in SIMULATED_MASKS.items():
            op = build((128, 128), 0)
            y = op.A(noisy)
            base = psnr(recovered(y, op, "minimum_norm"), clean)
            yield f"\n**SNR {snr}, {mask}**: minimum norm {base.mean():.2f} dB\n"
            yield "| recovery | default | calibrated | calibrated, `data_weight=0` | `data_weight=1` |"
            yield "|---|---|---|---|---|"
            choices: list[dict[str, Any]] = [
                {},
                {"calibration": calibration},
                {"calibration": calibration, "data_weight": 0.0},
                {"data_weight": 1.0},
            ]
            columns = [
                {m: (psnr(recovered(y, op, m, **keywords), clean) - base).mean().item() for m in PRIORS}
                for keywords in choices
            ]
            for method in PRIORS:
                cells = [
                    _signed(c[method], 2) + (" ▾" if round(c[method], 2) < round(c["wiener"], 2) else "")
                    for c in columns
                ]
                yield f"| {method} | {' | '.join(cells)} |"


def references() -> Iterator[str]:
    """What each reference rewards: DCT on simulated particles, over the data weight."""
    noisy, clean = (t[:64] for t in simulated(0.1))
    yield "| image | PSNR to the noisy frame | SSIM | PSNR to the truth | SSIM |"
    yield "|---|---|---|---|---|"
    op = PAPER_MASKS["coded aperture K=4 b=8"]((128, 128), 0)
    y = op.A(noisy)
    rows = {"minimum norm": recovered(y, op, "minimum_norm")}
    for weight in (1.0, 0.75, 0.5, 0.25, 0.0):
        rows[f"dct, `data_weight={weight:g}`"] = recovered(y, op, "dct", data_weight=weight)
    for name, z in rows.items():
        cells = [f"{psnr(z, r).mean():.2f} | {ssim(z, r).mean():.3f}" for r in (noisy, clean)]
        yield f"| {name} | {' | '.join(cells)} |"


def perceptual() -> Iterator[str]:
    """LPIPS of every recovery at its default; where no weights are given, that it was not measured.

    Raises
    ------
    SystemExit
        If the weights are not there or are not the published ones.
    """
    folder = Settings.load().lpips
    if not folder:
        yield "Not measured: no folder of weights was named (`CRYOFLUX_LPIPS`) when these tables were made."
        return
    try:
        network = load_lpips(folder)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    noisy, clean = (t[:64] for t in simulated(0.1))
    sets = [*((x, [x]) for x in real_images().values()), (noisy, [noisy, clean])]
    for mask, build in PAPER_MASKS.items():
        yield f"\n**{mask}**\n"
        yield "| recovery | sample | seven | SNR 0.1, to the noisy frame | SNR 0.1, to the truth |"
        yield "|---|---|---|---|---|"
        for method in ("minimum_norm", *PRIORS):
            cells: list[str] = []
            for x, compared in sets:
                op = build((x.shape[1], x.shape[2]), 0)
                z = recovered(op.A(x), op, method)
                cells += [f"{lpips(z, reference, network).mean():.3f}" for reference in compared]
            yield f"| {method} | {' | '.join(cells)} |"


def energy() -> Iterator[str]:
    """Signal energy over noise variance, from measurements alone."""
    sets = {
        **{f"EMPIAR-10076, {name}": x for name, x in real_images().items()},
        **{f"simulated, SNR {snr}": simulated(snr)[0][:64] for snr in (0.1, 0.05)},
    }
    yield "| frames | mask | least | mean | greatest |"
    yield "|---|---|---|---|---|"
    for name, x in sets.items():
        for mask, build in PAPER_MASKS.items():
            values = []
            for seed in SEEDS:
                op = build((x.shape[1], x.shape[2]), seed)
                y = op.A(x)
                level = op.mean_level(y)[:, None, None]
                values.append(
                    SpectrumEstimator(op, None)(recover(y, op, "minimum_norm") - level).signal_energy
                )
            e = torch.cat(values)
            yield f"| {name} | {mask} | {e.min():.0f} | {e.mean():.0f} | {e.max():.0f} |"


def masks() -> Iterator[str]:
    """Other settings: the sample image against itself, and simulated particles against the truth."""
    sample = real_images()["sample"]
    noisy, clean = (t[:64] for t in simulated(0.1))
    header = " | ".join(PRIORS)
    yield f"| mask | C | sample, minimum norm | {header} | SNR 0.1, minimum norm | {header} |"
    yield "|---" * (4 + 2 * len(PRIORS)) + "|"
    for mask, build in (*PAPER_MASKS.items(), *OTHER_MASKS.items()):
        cells: list[str] = []
        for x, reference, peak in ((sample, sample, 1.0), (noisy, clean, None)):
            op = build((128, 128), 0)
            y = op.A(x)
            base = psnr(recovered(y, op, "minimum_norm"), reference, peak)
            cells.append(f"{base.mean():.2f}")
            for method in PRIORS:
                gain = psnr(recovered(y, op, method), reference, peak) - base
                cells.append(_signed(gain.mean().item(), 2))
        yield f"| {mask} | {op.compression_factor:.2f} | {' | '.join(cells)} |"


def sweep() -> Iterator[str]:
    """The parameters around their defaults: real images with the data kept, simulated ones without."""
    noisy, clean = (t[:64] for t in simulated(0.1))
    grid: list[tuple[str, dict[str, Any]]] = []
    grid += [("dct", {"strength": s}) for s in (0.7, 1.0, 1.4, 2.0, 3.0)]
    grid += [("dct", {"strength": s, "weighting": "flat"}) for s in (0.5, 1.0, 2.0)]
    grid += [("dct", {"null_weight": w}) for w in (0.0, 0.1, 0.3, 1.0)]
    grid += [("wavelet", {"strength": s}) for s in (0.7, 1.0, 1.4, 2.0)]
    grid += [("wavelet", {"wavelet": w}) for w in ("db1", "db4", "sym4", "sym8", "coif3")]
    grid += [("wavelet", {"levels": n}) for n in (3, 4, 5, 6)]
    grid += [("wavelet", {"null_weight": w}) for w in (0.0, 0.1, 0.3, 1.0)]
    grid += [("tv", {"strength": s}) for s in (0.4, 0.6, 0.8, 1.0, 1.3)]
    grid += [("tv", {"null_weight": w}) for w in (0.0, 0.1, 0.3, 1.0)]
    grid += [("tv", {"iterations": n}) for n in (20, 40, 80, 160)]
    short = ("aperture", "plate")
    yield (
        "| recovery | "
        + " | ".join(f"{s}: least real gain, dB | SSIM | truth gain, dB" for s in short)
        + " |"
    )
    yield "|---" * 7 + "|"
    rows: dict[str, list[str]] = {}
    for build in PAPER_MASKS.values():
        op = build((128, 128), 0)
        y = op.A(noisy)
        base = psnr(recovered(y, op, "minimum_norm"), clean)
        reals = []
        for x in real_images().values():
            real_op = build((x.shape[1], x.shape[2]), 0)
            real_y = real_op.A(x)
            z = recovered(real_y, real_op, "minimum_norm")
            reals.append((x, real_op, real_y, psnr(z, x, 1.0), ssim(z, x, 1.0)))
        for method, parameters in grid:
            least = [np.inf, np.inf]
            for x, real_op, real_y, p, s in reals:
                z = recovered(real_y, real_op, method, data_weight=1.0, **parameters)
                least[0] = min(least[0], (psnr(z, x, 1.0) - p).min().item())
                least[1] = min(least[1], (ssim(z, x, 1.0) - s).min().item())
            z = recovered(y, op, method, data_weight=0.0, **parameters)
            gain = (psnr(z, clean) - base).mean().item()
            name = f"{method} " + ", ".join(f"{k}={v}" for k, v in parameters.items())
            rows.setdefault(name, []).append(
                f"{_signed(least[0], 3)} | {_signed(least[1], 4)} | {_signed(gain, 2)}"
            )
    for name, cells in rows.items():
        yield f"| {name} | {' | '.join(cells)} |"


def noise() -> Iterator[str]:
    """Noise added to the measurement of clean particles, as in cryoSENSE's figure S-17."""
    _, clean = simulated(0.1)
    clean = clean[:64]
    yield "| mask | measurement SNR, dB | minimum_norm | " + " | ".join(PRIORS) + " |"
    yield "|---" * (3 + len(PRIORS)) + "|"
    for mask, build in PAPER_MASKS.items():
        op = build((128, 128), 0)
        y = op.A(clean)
        about_mean = y - op.mean_level(y).view(-1, *[1] * (y.ndim - 1)) * op.A(torch.ones(1, 128, 128))
        power = about_mean.square().mean()
        white = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        for decibel in (20, 10, 0, -10):
            noisy = y + white * (power * 10 ** (-decibel / 10)).sqrt()
            cells = [f"{psnr(recovered(noisy, op, 'minimum_norm'), clean).mean():.2f}"]
            for method in PRIORS:
                images = [recovered(noisy, op, method), recovered(noisy, op, method, data_weight=0.0)]
                cells.append(" / ".join(f"{psnr(z, clean).mean():.2f}" for z in images))
            yield f"| {mask} | {decibel} | {' | '.join(cells)} |"


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text.replace("-", "+") if float(text) == 0 else text


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "real": real,
    "truth": truth,
    "references": references,
    "lpips": perceptual,
    "energy": energy,
    "masks": masks,
    "sweep": sweep,
    "noise": noise,
}


def main() -> None:
    """Make the tables named on the command line, or all."""
    wanted = sys.argv[1:] or list(TABLES)
    unknown = [name for name in wanted if name not in TABLES]
    if unknown:
        raise SystemExit(f"no table {unknown[0]!r}; there are: {', '.join(TABLES)}")
    for name in wanted:
        lines = []
        for line in TABLES[name]():
            print(line, flush=True)
            lines.append(line)
        put(DOCUMENT, name, lines)


if __name__ == "__main__":
    main()
