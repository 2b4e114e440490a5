"""Sums of counters over processes that come and go."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

Counters = dict[str, Any]
"""Numbers, and dicts of such, by name."""


def _combine(a: Counters, b: Counters, sign: int) -> Counters:
    result: Counters = dict(a)
    for name, value in b.items():
        if isinstance(value, dict):
            result[name] = _combine(result.get(name, {}), value, sign)
        else:
            result[name] = result.get(name, 0) + sign * value
    return result


class Tally(BaseModel):
    """What many processes have counted since the session began.

    A process counts from its own start; one that was started anew is another one, so what its predecessor
    had counted stays in the sum.
    """

    baseline: dict[str, Counters] = {}
    latest: dict[str, Counters] = {}

    def begin(self, process: str, counters: Counters) -> None:
        """What a process had counted before the session is none of the session's."""
        self.baseline[process] = counters

    def update(self, process: str, counters: Counters) -> None:
        """The process's counters of now."""
        self.latest[process] = counters

    def total(self) -> Counters:
        """The sum over all processes."""
        result: Counters = {}
        for process, counters in self.latest.items():
            result = _combine(result, counters, 1)
            result = _combine(result, self.baseline.get(process, {}), -1)
        return result
