"""How long things take beside each other on a machine that is never quite the same."""

from __future__ import annotations

import time
from collections.abc import Callable


def fastest(
    *calls: Callable[[], object], rounds: int, unmeasured: int = 0, wait: Callable[[], object] = lambda: None
) -> list[float]:
    """Seconds of each call's fastest run; they take turns, so that all meet the same machine.

    Parameters
    ----------
    rounds : int
        Runs of each call that count, after ``unmeasured`` that do not.
    wait : callable
        Called before and after each run: until then it is not over.
    """
    best = [float("inf")] * len(calls)
    for number in range(unmeasured + rounds):
        for i, call in enumerate(calls):
            wait()
            start = time.perf_counter()
            call()
            wait()
            if number >= unmeasured:
                best[i] = min(best[i], time.perf_counter() - start)
    return best
