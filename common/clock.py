"""The time of day, as it goes on when somebody sets the clock."""

from __future__ import annotations

import time


class SteadyClock:
    """Unix time that does not jump: the system's clock as it was when this was made or set, carried on.

    Differences of its readings are durations, whatever becomes of the system's clock meanwhile. Those of two
    processes agree as well as the system's clocks did when each was set.
    """

    def __init__(self) -> None:
        self.set()

    def set(self) -> None:
        """Go by the system's clock as it is now."""
        self._ahead = time.time() - time.monotonic()

    def now(self) -> float:
        """Unix time, seconds."""
        return time.monotonic() + self._ahead

    def at(self, monotonic: float) -> float:
        """The Unix time, seconds, of a reading of ``time.monotonic``."""
        return monotonic + self._ahead
