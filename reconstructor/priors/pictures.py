"""Pictures of a training: how the loss fell, and images the prior makes up."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

_GAP = 4
_ZOOM = 2
_SMOOTHED = 100  # points along the line of running means


def grey(image: Tensor, zoom: int) -> Image.Image:
    """An image (H, W) as a picture: -1 black, 1 white, what is beyond too; a square of pixels for each."""
    height, width = image.shape
    values = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    return Image.fromarray(values).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)


def draw_samples(images: Tensor, path: Path) -> None:
    """A square of images (B, H, W), grey: -1 black, 1 white."""
    count, height, width = images.shape
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    step_x, step_y = width * _ZOOM + _GAP, height * _ZOOM + _GAP
    sheet = Image.new("L", (across * step_x - _GAP, down * step_y - _GAP), 255)
    for index, image in enumerate(images):
        row, column = divmod(index, across)
        sheet.paste(grey(image, _ZOOM), (column * step_x, row * step_y))
    sheet.save(path)


def draw_losses(steps: np.ndarray, losses: np.ndarray, path: Path) -> None:
    """The loss of every step as a point and its running mean as a line; both axes logarithmic."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="mean squared error", xscale="log", yscale="log")
    axes.plot(steps, losses, ",", color="#bed0e4")
    # means over pieces of equal width on the axis, so that the end is as smooth as the beginning
    edges = np.unique(np.geomspace(1, len(losses) + 1, _SMOOTHED).astype(int)) - 1
    means = [(steps[begin:end].mean(), losses[begin:end].mean()) for begin, end in itertools.pairwise(edges)]
    axes.plot(*zip(*means, strict=True), color="#1f5aa0")
    axes.grid(color="#e1e1e1")
    figure.savefig(path)
