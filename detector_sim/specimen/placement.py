"""Where the particles of a micrograph lie: at random, not on top of each other."""

from __future__ import annotations

import math

import numpy as np

_DENSEST = 0.4
"""Share of the area covered by discs that random placing still finds quickly (it jams at 0.547)."""
_TRIES = 1000


def most_discs(side: float, diameter: float) -> int:
    """How many discs may be asked for in a square, in any one unit of length."""
    if diameter > side:
        return 0
    return max(1, int(_DENSEST * side**2 / (math.pi / 4 * diameter**2)))


def place_discs(count: int, side: float, diameter: float, generator: np.random.Generator) -> np.ndarray:
    """Centres (count, 2) of discs that lie inside a square from 0 to ``side`` and do not overlap.

    One after the other at uniformly random places, those that would overlap drawn anew.

    Raises
    ------
    ValueError
        If there are more than ``most_discs``.
    """
    if count > most_discs(side, diameter):
        raise ValueError(f"{count} discs of {diameter:g} do not fit a square of {side:g}")
    placed = np.empty((count, 2))
    for index in range(count):
        for _ in range(_TRIES):
            candidate = generator.uniform(diameter / 2, side - diameter / 2, 2)
            if index == 0 or ((placed[:index] - candidate) ** 2).sum(axis=1).min() >= diameter**2:
                break
        else:
            raise ValueError(f"{count} discs of {diameter:g} do not fit a square of {side:g}")
        placed[index] = candidate
    return placed
