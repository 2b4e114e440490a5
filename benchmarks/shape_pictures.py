"""A picture of the built-in shapes for the documentation: ``python -m benchmarks.shape_pictures``."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from benchmarks.pictures import FOLDER, frame
from common.poses import relion_matrix
from common.session import STRUCTURES, SpecimenSpec
from detector_sim.specimen import Specimen
from detector_sim.specimen.projection import Projector

VIEWS = {"along z": (0.0, 0.0, 0.0), "along y": (90.0, 90.0, 90.0), "between": (25.0, 50.0, 70.0)}
SHOWN = 3
"""Which frame of each shape."""


def main() -> None:
    """Write docs/pictures/shapes.png."""
    columns = len(VIEWS) + 2
    figure, axes = plt.subplots(len(STRUCTURES), columns, figsize=(1.7 * columns, 1.95 * len(STRUCTURES)))
    for row, name in zip(axes, STRUCTURES, strict=True):
        specimen = Specimen(
            SpecimenSpec(
                structure=name, dose_per_square_angstrom=40, defocus_min_um=1.4, defocus_max_um=1.8, seed=1
            )
        )
        projector, side = Projector(specimen.potential), specimen.shape[0]
        rotations = torch.from_numpy(relion_matrix(np.array([*VIEWS.values()])))
        images = projector.project(rotations, torch.zeros(len(VIEWS), 2))
        before = side // 2 - projector.side // 2
        after = side - projector.side - before
        images = torch.nn.functional.pad(images, (before, after) * 2)
        brightest = float(images.max())
        for axis, image, view in zip(row, images, VIEWS, strict=False):
            frame(axis, image, f"{name}, {view}", (0.0, 0.9 * brightest))
        batch = specimen.batch(SHOWN, 1)
        frame(row[-2], torch.from_numpy(batch.clean[0]), "clean frame")
        frame(row[-1], torch.from_numpy(batch.frames[0]).float(), "counted, 40 e/Å²")
    figure.tight_layout(pad=0.4, h_pad=1.2)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=95)
    FOLDER.mkdir(parents=True, exist_ok=True)
    Image.open(drawn).convert("L").quantize(32).save(FOLDER / "shapes.png", optimize=True)


if __name__ == "__main__":
    main()
