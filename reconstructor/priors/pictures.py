"""Pictures of a training: how the loss fell, and images the prior makes up."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

_WIDTH, _HEIGHT = 900, 450
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 20, 50
_INK, _GRID, _LINE, _POINTS = (40, 40, 40), (225, 225, 225), (31, 90, 160), (190, 208, 228)
_GAP = 4
_ZOOM = 2
_SMOOTHED = 100  # points along the line of running means


def draw_samples(images: Tensor, path: Path) -> None:
    """A square of images (B, H, W), grey: -1 black, 1 white."""
    count, height, width = images.shape
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    grey = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    sheet = Image.new(
        "L", (across * (width * _ZOOM + _GAP) - _GAP, down * (height * _ZOOM + _GAP) - _GAP), 255
    )
    for index, image in enumerate(grey):
        row, column = divmod(index, across)
        larger = Image.fromarray(image).resize((width * _ZOOM, height * _ZOOM), Image.Resampling.NEAREST)
        sheet.paste(larger, (column * (width * _ZOOM + _GAP), row * (height * _ZOOM + _GAP)))
    sheet.save(path)


def draw_losses(steps: np.ndarray, losses: np.ndarray, path: Path) -> None:
    """The loss of every step as a point and its running mean as a line; both axes logarithmic."""
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    low = math.floor(math.log10(max(losses.min(), 1e-12)))
    high = max(low + 1, math.ceil(math.log10(max(losses.max(), 1e-12))))
    longest = max(1.0, math.log10(max(2, steps[-1])))

    def place(step: float, loss: float) -> tuple[float, float]:
        across = math.log10(max(step, 1)) / longest
        up = (math.log10(max(loss, 1e-12)) - low) / (high - low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    for decade in range(low, high + 1):
        _, y = place(1, 10.0**decade)
        draw.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], fill=_GRID)
        draw.text((_LEFT - 8, y), f"{10.0**decade:g}", fill=_INK, anchor="rm")
    for decade in range(int(longest) + 1):
        x, _ = place(10.0**decade, 1)
        draw.line([(x, _TOP), (x, _HEIGHT - _BOTTOM)], fill=_GRID)
        draw.text((x, _HEIGHT - _BOTTOM + 8), f"{10**decade}", fill=_INK, anchor="mt")
    draw.text(((_LEFT + _WIDTH) / 2, _HEIGHT - 12), "step", fill=_INK, anchor="ms")
    draw.text((_LEFT, _TOP - 6), "mean squared error", fill=_INK, anchor="ls")
    draw.point([place(step, loss) for step, loss in zip(steps, losses, strict=True)], fill=_POINTS)
    # means over pieces of equal width on the axis, so that the end is as smooth as the beginning
    edges = np.unique(np.geomspace(1, len(losses) + 1, _SMOOTHED).astype(int)) - 1
    line = [
        place(float(steps[begin:end].mean()), float(losses[begin:end].mean()))
        for begin, end in itertools.pairwise(edges)
    ]
    if len(line) > 1:
        draw.line(line, fill=_LINE, width=2)
    picture.save(path)
