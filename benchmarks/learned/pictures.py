"""The same particles under each recovery, for docs/learned-prior.md."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch

from benchmarks.learned.quality import PIXEL_SIZE, REFERENCES, SEED, SIDE, Choice, operator
from benchmarks.pictures import FOLDER, frame
from common.calibration import Calibration
from common.session import LEARNED, SpecimenSpec
from detector_sim.specimen import Specimen
from reconstructor.recovery import Recovery

SHOWN = ("cage", "barrel", "bundle")
"""Two that the prior in the box was trained on, and one that it was not."""
BEHIND = {"K=16 b=102": "coded aperture K=16 b=102", "C=10": "phase plate C=10"}
RECOVERIES = {
    "minimum norm": Choice("minimum_norm"),
    "Wiener": Choice("wiener", {"data_weight": 0.0}),
    "DCT": Choice("dct", {"data_weight": 0.0}),
    "wavelets": Choice("wavelet", {"data_weight": 0.0}),
    "TV": Choice("tv", {"data_weight": 0.0}),
    "nesterov, 1000": Choice(LEARNED, {"sampler": "nesterov"}),
    "posterior, 20": Choice(LEARNED),
    "mean of 8 draws": Choice(LEARNED, {"samples": 8}),
}


def main(prior: str) -> None:
    """Write docs/pictures/learned-prior.png."""
    columns = 2 + len(RECOVERIES) + 1
    rows = len(SHOWN) * len(BEHIND)
    figure, axes = plt.subplots(rows, columns, figsize=(1.45 * columns, 1.75 * rows))
    lines = iter(axes)
    for mask, told in BEHIND.items():
        op = operator(mask)
        for structure in SHOWN:
            row = iter(next(lines))
            spec = SpecimenSpec(
                structure=structure, side_pixels=SIDE, pixel_size_angstrom=PIXEL_SIZE, snr=0.2, seed=SEED
            )
            batch = Specimen(spec).batch(0, REFERENCES + 1)
            frames = torch.from_numpy(batch.frames).float()
            clean = torch.from_numpy(batch.clean)[REFERENCES:]
            calibration = Calibration.from_frames(frames[:REFERENCES])
            noisy, numbers = frames[REFERENCES:], [REFERENCES]
            top = float(clean.abs().quantile(0.995))
            frame(next(row), clean[0], f"{structure}, truth", (-top, top))
            frame(next(row), noisy[0], told, (-3, 3))
            y = op.A(noisy)
            for title, choice in RECOVERIES.items():
                made = Recovery(op, choice.spec(prior), calibration)(y, numbers)
                error = float((made.images - clean).norm() / clean.norm())
                shift = "" if not choice.is_learned else f", shift {float(made.prior_shift):.2f}"
                frame(next(row), made.images[0], f"{title}\nerror {error:.2f}{shift}", (-top, top))
                if made.spread is not None:
                    frame(next(row), made.spread[0], "spread of the draws", (0, top))
    for axis in axes.flat:
        axis.title.set_fontsize(6.5)
    figure.tight_layout(pad=0.3)
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / "learned-prior.png", dpi=100)
