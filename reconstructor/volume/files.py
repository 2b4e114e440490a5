"""Maps and shell correlations as files that the field's programs read."""

from __future__ import annotations

import csv
from pathlib import Path
from xml.etree import ElementTree

import mrcfile
import numpy as np
import torch
from torch import Tensor

from common.whole import replacing


def write_map(path: Path, volume: Tensor, pixel_size_angstrom: float) -> None:
    """A map (D, H, W) as MRC, mode 2."""
    with replacing(path) as temporary, mrcfile.new(temporary) as file:
        file.set_data(volume.cpu().numpy().astype(np.float32))
        file.set_volume()
        file.voxel_size = pixel_size_angstrom


def read_map(path: Path) -> tuple[Tensor, float]:
    """A map (D, H, W) float32 and its voxel size, angstrom.

    Raises
    ------
    ValueError
        One line: it cannot be read, or is none.
    """
    try:
        with mrcfile.open(path, permissive=False) as file:
            data, size = file.data, float(file.voxel_size.x)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a map ({' '.join(str(error).split())})") from error
    if data is None or data.ndim != 3 or not np.isfinite(data).all():
        raise ValueError(f"{path}: is no map of finite numbers")
    return torch.from_numpy(data.astype(np.float32)), size


def in_box(volume: Tensor, side_pixels: int) -> Tensor:
    """A map in a cube of another side, its centre (side // 2) on the cube's: cut off, or zeros around it."""
    box = torch.zeros(side_pixels, side_pixels, side_pixels)
    here: list[slice] = []
    there: list[slice] = []
    for side in volume.shape:
        before, behind = (
            min(side // 2, side_pixels // 2),
            min(side - side // 2, side_pixels - side_pixels // 2),
        )
        there.append(slice(side // 2 - before, side // 2 + behind))
        here.append(slice(side_pixels // 2 - before, side_pixels // 2 + behind))
    box[tuple(here)] = volume[tuple(there)]
    return box


def write_fsc(folder: Path, curves: dict[str, Tensor], side_pixels: int, pixel_size_angstrom: float) -> None:
    """Curves (N // 2 + 1,) over the shells: all in ``fsc.csv``, the first in ``fsc.xml`` (EMDB's form)."""
    frequencies = [shell / (side_pixels * pixel_size_angstrom) for shell in range(side_pixels // 2 + 1)]
    with replacing(folder / "fsc.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["shell", "frequency_per_angstrom", "resolution_angstrom", *curves])
        for shell, frequency in enumerate(frequencies):
            values = [f"{float(curve[shell]):.6f}" for curve in curves.values()]
            resolution = f"{1 / frequency:.4f}" if frequency else ""
            writer.writerow([shell, f"{frequency:.8f}", resolution, *values])
    name, curve = next(iter(curves.items()))
    root = ElementTree.Element(
        "fsc", title=f"CryoFlux, {name.replace('_', ' ')}", xaxis="Resolution (A-1)",
        yaxis="Correlation Coefficient",
    )  # fmt: skip
    for frequency, value in zip(frequencies, curve.tolist(), strict=True):
        point = ElementTree.SubElement(root, "coordinate")
        ElementTree.SubElement(point, "x").text = f"{frequency:.8f}"
        ElementTree.SubElement(point, "y").text = f"{value:.6f}"
    ElementTree.indent(root)
    with replacing(folder / "fsc.xml") as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
