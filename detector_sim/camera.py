"""The exposure clock: when frames are there to be read, when the camera had to wait, and for how long."""

from __future__ import annotations


class Camera:
    """Exposures at a fixed rate, or as fast as they are taken.

    Time is passed in (seconds of any monotonic clock), so nothing here waits. A camera that is held, because
    nothing downstream can take a frame, loses the exposures it could have made: its clock shifts, and the
    time is counted as idle. Paused time is nobody's loss and is not counted. Where the reader is late for
    another reason (a slow source), up to ``buffer_seconds`` of exposures are kept for it; beyond that the
    clock shifts.
    """

    def __init__(self, rate: float | None, now: float, *, buffer_seconds: float = 0.25) -> None:
        self._period = 1.0 / rate if rate else 0.0
        self._buffer = buffer_seconds
        self._next_end = now + self._period  # when the next exposure ends
        self._held_at: float | None = None
        self._held_by_spool = False
        self._paused = False
        self._idle = self._idle_by_spool = 0.0

    @property
    def paused(self) -> bool:
        """Whether exposures are paused."""
        return self._paused

    def pause(self, now: float) -> None:
        """Expose nothing until ``resume``."""
        self.release(now)
        self._paused = True

    def resume(self, now: float) -> None:
        """Expose again; the first exposure starts now."""
        if self._paused:
            self._paused = False
            self._next_end = now + self._period

    def hold(self, now: float, *, by_spool: bool = False) -> None:
        """Nothing downstream can take a frame; ``by_spool``: because the spool is full."""
        if self._held_at is not None and self._held_by_spool != by_spool:
            self.release(now)
        if self._held_at is None and not self._paused:
            self._held_at, self._held_by_spool = now, by_spool

    def release(self, now: float) -> None:
        """Frames can be taken again."""
        if self._held_at is None:
            return
        idle = self._idle_of_hold(now)
        self._held_at = None
        if idle > 0:
            self._idle += idle
            self._idle_by_spool += idle * self._held_by_spool
            self._next_end = now

    def idle_seconds(self, now: float) -> float:
        """Idle time up to now, a hold that still lasts included."""
        return self._idle + (0.0 if self._held_at is None else self._idle_of_hold(now))

    def spool_full_seconds(self, now: float) -> float:
        """How much of the idle time the camera waited because the spool was full."""
        is_held = self._held_at is not None and self._held_by_spool
        return self._idle_by_spool + (self._idle_of_hold(now) if is_held else 0.0)

    def _idle_of_hold(self, now: float) -> float:
        assert self._held_at is not None
        # before the running exposure ends there is nothing to hand on, so nothing is lost
        return max(0.0, now - max(self._held_at, self._next_end if self._period else self._held_at))

    def wait(self, now: float) -> float | None:
        """Seconds until the next exposure ends, 0 if there is one; None while paused or held."""
        if self._paused or self._held_at is not None:
            return None
        return max(0.0, self._next_end - now) if self._period else 0.0

    def due(self, now: float, limit: int) -> int:
        """How many exposures, up to ``limit``, are there to be read."""
        if self.wait(now) != 0.0:
            return 0
        if not self._period:
            return limit
        self._next_end = max(self._next_end, now - self._buffer)
        return min(limit, int((now - self._next_end) / self._period) + 1)

    def take(self, count: int, now: float) -> list[float]:
        """The end times of the next ``count`` exposures, which are being read."""
        if not self._period:
            return [now] * count
        ends = [self._next_end + k * self._period for k in range(count)]
        self._next_end += count * self._period
        return ends
