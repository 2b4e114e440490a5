"""Which frames workers die of: told apart from those that merely were there.

A worker's death says nothing about the blocks it held: somebody may have killed it. A block that was with
``SUSPECTED_AFTER`` workers when they died is suspected. From then on it is handed out alone: to a worker that
holds nothing else, which recovers and acknowledges its frames one at a time, in order. If that worker dies
too, the first frame without a verdict is what it was at. A frame that was so for ``FATAL_AFTER`` workers is
lost; those before and behind it are recovered. More than one, because the last acknowledgement may have died
with the worker.

A process that is heard again has not died, only its connection: its name is taken off.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SUSPECTED_AFTER = 2
FATAL_AFTER = 2
FATAL = "every worker that tried it died"


@dataclass(eq=False, slots=True)
class Deaths:
    """Of one block: the worker processes that died with it, by name."""

    with_block: set[str] = field(default_factory=set)
    with_frame: dict[int, set[str]] = field(default_factory=dict)  # handed out alone: the frame they were at

    @property
    def is_suspected(self) -> bool:
        """Whether the block is to be handed out alone."""
        return len(self.with_block) >= SUSPECTED_AFTER

    def add(self, worker: str, frame: int) -> bool:
        """A worker died with the block; ``frame`` is the first without a verdict. True if it is fatal."""
        if not self.is_suspected:
            self.with_block.add(worker)
            return False
        workers = self.with_frame.setdefault(frame, set())
        workers.add(worker)
        return len(workers) >= FATAL_AFTER

    def take_back(self, worker: str) -> None:
        """The worker lives."""
        self.with_block.discard(worker)
        for workers in self.with_frame.values():
            workers.discard(worker)
