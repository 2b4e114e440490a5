"""How many evaluations of its network a learned prior is given, so that a worker keeps up with its stream.

More evaluations give better images and take longer, so a worker measures what one costs, and how many frames
come to it, and takes as many as fit. Where even the fewest are too many, it says so, and by how much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

LEVELS = (10, 14, 20, 28, 40, 50)  # numbers of evaluations chosen from: each has a recovery of its own
FIRST_LEVEL = 20  # until it is known what they cost
BUSY = 0.8  # share of its time that a worker may spend with them; the rest is for all else, and to catch up
MORE_FROM = 1.1  # times the frames that come must be possible with more evaluations before more are taken
CALLS = 16  # of the recovery, the last ones, from which costs are taken
WINDOW_SECONDS = 30.0  # of the stream, from which its rate is taken,
LEAST_SECONDS = 2.0  # and at least
TOO_SLOW = 1.1  # times the frames that are possible come, before that is told
PART_SECONDS = 2.0  # that recovering frames together should take at most


class Standing(NamedTuple):
    """What a worker does now.

    Attributes
    ----------
    evaluations : int
        For each sample of each frame.
    possible : float or None
        Frames per second that it can recover so; None until measured.
    asked : float or None
        Frames per second that come to it; None until measured.
    """

    evaluations: int
    possible: float | None = None
    asked: float | None = None


class Pace:
    """The number of evaluations of one recovery of one series.

    Follows from nothing but what it is told, so the same stream gives the same choice.

    Parameters
    ----------
    fixed : int, optional
        The number that the user wants; then only costs and rate are measured.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._levels = LEVELS if fixed is None else (fixed,)
        self._costs: deque[tuple[int, float]] = deque(maxlen=CALLS)  # frames times evaluations, seconds
        self._blocks: deque[tuple[float, float, int]] = deque()  # came at, exposed at, frames
        self._told = False
        self.standing = Standing(FIRST_LEVEL if fixed is None else fixed)

    def came(self, now: float, exposed_at: Sequence[float]) -> None:
        """Frames came to be recovered, those of one block.

        Parameters
        ----------
        now : float
            Monotonic time, seconds.
        exposed_at : sequence of float
            The frames' own times, seconds of any clock; blocks delivered once more do not count.
        """
        if self._blocks and exposed_at[-1] <= self._blocks[-1][1]:
            return
        self._blocks.append((now, exposed_at[-1], len(exposed_at)))
        while now - self._blocks[0][0] > WINDOW_SECONDS:
            self._blocks.popleft()

    def took(self, frames: int, evaluations: int, seconds: float) -> None:
        """So many frames were recovered in one call, with so many evaluations each, in so long."""
        self._costs.append((frames * evaluations, seconds))
        self._choose()

    @property
    def cost(self) -> float | None:
        """Seconds for one evaluation of one frame, in the batches of late; None until measured."""
        work, seconds = (
            (sum(column) for column in zip(*self._costs, strict=True)) if self._costs else (0, 0.0)
        )
        return seconds / work if work else None

    @property
    def asked(self) -> float | None:
        """Frames per second that come; None until it is known.

        The faster of two rates. By their exposures: what the camera makes and leaves to this worker, also
        where they wait for it. By their coming: what there is to do while a backlog is caught up with.
        """
        if len(self._blocks) < 2:
            return None
        (came, exposed, count), (last_came, last_exposed, _) = self._blocks[0], self._blocks[-1]
        spans = [span for span in (last_came - came, last_exposed - exposed) if span >= LEAST_SECONDS]
        frames = sum(block[2] for block in self._blocks) - count
        return frames / min(spans) if spans else None

    def frames_together(self, most: int) -> int:
        """How many frames to recover before their results are handed on: a power of two, at most ``most``."""
        if self.cost is None:
            return 1
        wanted = PART_SECONDS / (self.cost * self.standing.evaluations)
        return min(most, 1 << max(0, int(wanted).bit_length() - 1))

    def complaint(self) -> str:
        """That the worker cannot keep up, and by how much, in one line; said once, else empty."""
        now = self.standing
        if self._told or now.possible is None or now.asked is None or now.asked <= TOO_SLOW * now.possible:
            return ""
        if now.evaluations != self._levels[0]:
            return ""  # fewer are tried next
        self._told = True
        fewest = "the fewest" if len(self._levels) > 1 else "the"
        return (
            f"the learned prior cannot keep up: {now.asked:.3g} frames/s come to this worker, with {fewest} "
            f"{now.evaluations} evaluations it recovers {now.possible:.3g} ({now.asked / now.possible:.1f} "
            "times too many come): frames wait; more workers, a GPU, or another method would do"
        )

    def _choose(self) -> None:
        cost, asked, level = self.cost, self.asked, self.standing.evaluations
        assert cost is not None
        if asked is not None and asked > 0:
            affordable = BUSY / (asked * cost)
            above = [known for known in self._levels if known > level and known * MORE_FROM <= affordable]
            below = [known for known in self._levels if known <= max(affordable, self._levels[0])]
            level = max(above) if above else min(level, max(below))
        self.standing = Standing(level, 1 / (cost * level), asked)
