"""Whether a curve grows: a robust slope of what is left of it after warm-up, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import theilslopes

WINDOW_SECONDS = 15.0
FEWEST_WINDOWS = 12
SHORTEST_WINDOW_SECONDS = 2.0
CONFIDENCE = 0.95
LIMIT_PERCENT_PER_HOUR = 1.0


class Growth(NamedTuple):
    """Per cent per hour of the median level; ``low`` and ``high`` bound it with 95 % confidence."""

    percent_per_hour: float
    low: float
    high: float
    level: float
    seconds: float

    @property
    def verdict(self) -> str:
        """flat, grows, or what so short a time leaves open."""
        if self.percent_per_hour >= LIMIT_PERCENT_PER_HOUR:
            return "grows" if self.low >= LIMIT_PERCENT_PER_HOUR else "grows, perhaps"
        return "flat" if self.high < LIMIT_PERCENT_PER_HOUR else "flat, perhaps"

    @property
    def is_flat(self) -> bool:
        """Whether the best estimate is below the limit."""
        return self.percent_per_hour < LIMIT_PERCENT_PER_HOUR


def growth(at: Sequence[float], values: Sequence[float], warm_up_until: float) -> Growth | None:
    """The growth of a curve after its warm-up; None if too little of it is left.

    The medians of windows of 15 s (a twelfth of it all, where that is less) take out what comes and goes with
    single batches and garbage collections. Theil and Sen's slope through them, the median of the slopes
    between all pairs, does not mind a quarter of them being off; its interval is Sen's, from Kendall's tau. A
    curve that goes in few large steps makes that interval too narrow, because its windows do not vary
    independently. Then only a longer run decides.
    """
    times, levels = np.asarray(at, float), np.asarray(values, float)
    kept = times >= warm_up_until
    times, levels = times[kept], levels[kept]
    if not len(times):
        return None
    width = min(WINDOW_SECONDS, (times[-1] - times[0]) / FEWEST_WINDOWS)
    if width < SHORTEST_WINDOW_SECONDS:
        return None
    window = ((times - times[0]) // width).astype(int)
    numbers = np.unique(window)
    if len(numbers) < FEWEST_WINDOWS:
        return None
    middles = np.array([np.median(times[window == k]) for k in numbers])
    medians = np.array([np.median(levels[window == k]) for k in numbers])
    slope, _, low, high = theilslopes(medians, middles, CONFIDENCE)
    level = float(np.median(medians))
    scale = 100 * 3600 / level
    return Growth(
        float(slope) * scale, float(low) * scale, float(high) * scale, level, float(times[-1] - times[0])
    )
