"""Pictures of the documentation, made by the product itself: ``python -m benchmarks.pictures``.

One simulated particle at a dose that shows it, measured through each mask at the same honest compression
factor and recovered; beside each row what a person would ask for: the clean truth and the raw frame.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from common.calibration import Calibration
from common.operators import CodedAperture, LinearOperator, PhasePlate
from common.session import SpecimenSpec
from detector_sim.specimen import Specimen
from reconstructor.quality import psnr
from reconstructor.recovery import recover

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
RECOVERIES: list[tuple[str, str, dict[str, float]]] = [
    ("minimum norm", "minimum_norm", {}),
    ("Wiener", "wiener", {}),
    ("DCT", "dct", {}),
    ("DCT, data weight 0", "dct", {"data_weight": 0.0}),
]
REFERENCES, SHOWN = 4, 6


def frame(axis: plt.Axes, image: Tensor, title: str, limits: tuple[float, float] | None = None) -> None:
    """One grey picture."""
    low, high = limits or torch.quantile(image.flatten(), torch.tensor([0.005, 0.995])).tolist()
    axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


def main() -> None:
    """Write docs/pictures/recovery.png."""
    specimen = Specimen(SpecimenSpec(dose_per_square_angstrom=40, defocus_min_um=1.4, defocus_max_um=1.8))
    batch = specimen.batch(0, SHOWN + 1)
    frames, clean = torch.from_numpy(batch.frames).float(), torch.from_numpy(batch.clean)
    calibration = Calibration.from_frames(frames[:REFERENCES])
    raw, truth = frames[SHOWN:], clean[SHOWN:]
    masks: list[tuple[str, LinearOperator]] = [
        ("coded aperture K=4 b=8", CodedAperture((128, 128), kernel_size=4, mask_count=8)),
        ("phase plate, uniform", PhasePlate((128, 128), pattern="uniform", compression_factor=2)),
    ]
    figure, axes = plt.subplots(2, 3 + len(RECOVERIES), figsize=(2.1 * (3 + len(RECOVERIES)), 5))
    for row, (name, op) in zip(axes, masks, strict=True):
        y = op.A(raw)
        frame(row[0], truth[0], "clean truth")
        frame(row[1], raw[0], f"counted, 40 e/Å²\n{psnr(raw, truth).item():.1f} dB")
        frame(row[2], op.measurement_picture(y)[0], f"{name}\nmeasured at C={op.compression_factor:.1f}")
        for axis, (title, method, parameters) in zip(row[3:], RECOVERIES, strict=True):
            image = recover(y, op, method=method, calibration=calibration, **parameters)
            frame(axis, image[0], f"{title}\n{psnr(image, truth).item():.1f} dB")
    figure.tight_layout()
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / "recovery.png", dpi=110)


if __name__ == "__main__":
    main()
