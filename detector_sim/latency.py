"""How long frames took, as counts per logarithmic bin: small, mergeable, and good for any percentile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS_PER_DECADE = 20
SORTED_TOGETHER = 4096  # so that a few at a time cost little
SHORTEST_SECONDS, LONGEST_SECONDS = 1e-4, 1e4


def _bounds() -> np.ndarray:
    decades = round(np.log10(LONGEST_SECONDS / SHORTEST_SECONDS))
    bounds = np.geomspace(SHORTEST_SECONDS, LONGEST_SECONDS, decades * BINS_PER_DECADE + 1)
    return np.array([float(f"{bound:.4g}") for bound in bounds])  # so that they can be shown exactly


BOUNDS = _bounds()


class LatencyHistogram:
    """Counts of latencies in bins 12 % wide, from 0.1 ms to 10,000 s; beyond that in the outermost bins."""

    def __init__(self) -> None:
        self.bounds = BOUNDS
        self._counts = np.zeros(len(self.bounds) - 1, dtype=np.int64)
        self._recent: list[float] = []
        self.sum_seconds = 0.0

    def add(self, seconds: Sequence[float]) -> None:
        """Count these latencies; a negative one, after a jump of the clock, as 0."""
        seconds = [max(0.0, value) for value in seconds]
        self._recent.extend(seconds)
        self.sum_seconds += sum(seconds)
        if len(self._recent) >= SORTED_TOGETHER:
            self._sort_in()

    @property
    def counts(self) -> np.ndarray:
        """How many latencies each bin holds, (bins,) int64."""
        self._sort_in()
        return self._counts

    def _sort_in(self) -> None:
        bins = np.searchsorted(self.bounds, self._recent, side="left") - 1  # upper bounds are inclusive
        np.add.at(self._counts, bins.clip(0, len(self._counts) - 1), 1)
        self._recent.clear()

    def restore(self, counts: Sequence[int], sum_seconds: float) -> None:
        """Take over what another process has counted; of other bins nothing can be taken over."""
        if len(counts) == len(self._counts):
            self._counts = np.array(counts, dtype=np.int64)
            self.sum_seconds = sum_seconds

    def with_those_of(self, other: LatencyHistogram) -> LatencyHistogram:
        """The latencies of both."""
        both = LatencyHistogram()
        both._counts = self.counts + other.counts
        both.sum_seconds = self.sum_seconds + other.sum_seconds
        return both

    def percentile(self, percent: float) -> float | None:
        """The latency that so many percent did not exceed, to a bin's width; None without counts."""
        cumulative = np.cumsum(self.counts)
        if not cumulative[-1]:
            return None
        k = int(np.searchsorted(cumulative, percent / 100 * cumulative[-1]))
        return float(np.sqrt(self.bounds[k] * self.bounds[k + 1]))
