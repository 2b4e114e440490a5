"""The spool as a running series uses it: what to do without one, when it is full, when the disk fails."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from common.wire.control import error_line
from common.wire.link import Buffer, as_bytes
from common.wire.messages import Frames
from detector_sim.spool import (
    ACCOUNT,
    Answers,
    Change,
    Exposed,
    Found,
    Head,
    Spool,
    SpoolDamaged,
    SpoolTaken,
    Turn,
    claimed,
    unfinished,
)

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
UNREADABLE = ".unreadable"

Policy = Literal["pause", "drop"]


class Kept(Enum):
    """Where a block is now."""

    ON_DISK = "on disk"
    IN_MEMORY = "in memory"  # only: it is lost if the process dies
    NOWHERE = "nowhere"  # dropped


class Safekeeping:
    """Keeps what a series owes, on disk as long as that can be written.

    Every block is written before it is sent, and forgotten when it is settled, so that whatever becomes of
    this process another one can deliver the rest. A disk that is full or fails is told once and tried again
    every ``RETRY_SECONDS``; meanwhile blocks are kept in memory only. Where a spool cannot even be begun, the
    series goes without. One thread keeps blocks; any may note.

    Parameters
    ----------
    root : Path or None
        Folder of the spools of all series; None: nothing is kept on disk.
    event : callable
        ``event(kind, message)``: told when the spool fails, is written again, or was damaged.
    """

    def __init__(
        self, root: Path | None, limit_bytes: int, policy: Policy, event: Callable[[str, str], None]
    ) -> None:
        self._root, self._limit, self._policy, self._event = root, limit_bytes, policy, event
        self._spool: Spool | None = None
        self._has_clock = False
        self._error = ""
        self._retry_at = 0.0
        self._lock = threading.Lock()  # of the error and the time to try again
        self._claim: int | None = None

    def claim(self) -> None:
        """Have the folder for this process alone, until ``release`` or the process's end.

        A folder that cannot be had at all is no reason to refuse: it is told when a series begins.

        Raises
        ------
        OSError
            In one line, if another detector has it: both would go on with what a third one left.
        """
        if self._root is None:
            return
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._claim = claimed(self._root)
        except BlockingIOError as error:
            told = f"the spool {self._root} belongs to another detector, which runs; name another (--spool)"
            raise OSError(error.errno, told) from error
        except OSError as error:
            log.warning("the spool %s cannot be had: %s", self._root, error_line(error))

    def release(self) -> None:
        """Leave the folder to others."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    # ---- a series

    def find(self) -> tuple[Spool, Found] | None:
        """The series that a detector left and nobody goes on with, the oldest of several."""
        if self._root is None:
            return None
        try:
            folders = unfinished(self._root)
        except OSError as error:
            self._event("spool_failed", f"the spool {self._root} cannot be read ({error_line(error)})")
            return None
        for folder in folders:
            try:
                spool, found = Spool.resume(folder, self._limit)
            except SpoolTaken:
                continue
            except FileNotFoundError:  # just now finished by another detector
                continue
            except (SpoolDamaged, OSError) as error:
                self._put_aside(folder, error)
                continue
            if not found.changes:  # the process ended before anything had begun
                spool.remove()
                continue
            return spool, found
        return None

    def put_aside(self, spool: Spool, error: Exception) -> None:
        """A series that cannot be gone on with is kept for whoever wants to look, and not tried again."""
        spool.close()
        self._put_aside(spool.folder, error)

    def _put_aside(self, folder: Path, error: Exception) -> None:
        told = f"the spool {folder} cannot be taken up ({error_line(error)})"
        try:
            (folder / ACCOUNT).rename(folder / f"{ACCOUNT}{UNREADABLE}")
            told += "; what it holds is not delivered"
        except OSError as failure:
            told += f" and not be put aside either ({error_line(failure)})"
        self._event("spool_damaged", told)

    def begin(self, head: Head, *, has_clock: bool) -> None:
        """A series begins. ``has_clock``: its camera has a rate, so that waiting means losing exposures."""
        self.end()
        self._has_clock = has_clock
        if self._root is None:
            return
        try:
            self._spool = Spool.create(self._root, head, self._limit)
        except OSError as error:
            self._failed(error)

    def take_up(self, spool: Spool, found: Found, *, has_clock: bool) -> None:
        """Go on with a series that another process left."""
        self._spool, self._has_clock, self._error = spool, has_clock, ""
        for damage in found.damages:
            self._event("spool_damaged", damage)

    def end(self) -> None:
        """The series is over, and whoever had to know was told: nothing is kept of it."""
        spool, self._spool, self._error = self._spool, None, ""
        if spool is not None:
            spool.remove()

    def close(self) -> None:
        """The process ends; what the series still owes is left to another one."""
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()

    # ---- blocks

    @property
    def writes(self) -> bool:
        """Whether the next block will be written to disk, or it is time to try that again."""
        return self._writable() is not None

    @property
    def has_clock(self) -> bool:
        """Whether the camera has a rate. One without takes its pace from the chain, so it never overflows."""
        return self._has_clock

    @property
    def drops(self) -> bool:
        """Whether what does not fit is given up rather than waited for."""
        return self._policy == "drop" and self._has_clock

    def takes(self, size: int) -> bool:
        """Whether ``size`` bytes more fit on disk."""
        return self._spool is not None and self._spool.fits(size)

    def keep(self, header: Frames, buffers: Sequence[Buffer]) -> Kept:
        """Write a block, before it is sent to anyone."""
        spool = self._writable()
        if spool is None:
            return Kept.IN_MEMORY
        if self.drops and not spool.fits(sum(len(as_bytes(buffer)) for buffer in buffers)):
            return Kept.NOWHERE
        try:
            spool.append(header, buffers)
        except OSError as error:
            self._failed(error)
            return Kept.IN_MEMORY
        self._well()
        return Kept.ON_DISK

    def note(self, record: Answers | Change | Exposed | Turn) -> None:
        """Write down what happened to the series."""
        spool = self._spool
        if spool is None:
            return
        try:
            spool.note(record)
        except OSError as error:
            self._failed(error)

    def read(self, block: int) -> tuple[Frames, Sequence[Buffer]]:
        """A block that was written.

        Raises
        ------
        SpoolDamaged, OSError
            If it cannot be had any more.
        """
        if self._spool is None:
            raise SpoolDamaged("the spool is closed")
        return self._spool.read(block)

    def counters(self) -> dict[str, Any]:
        """For telemetry."""
        spool = self._spool
        return {
            "spool_bytes": spool.bytes if spool is not None else 0,
            "spool_limit_bytes": self._limit if self._root is not None else 0,
            "spool_error": self._error,
        }

    # ---- a disk that fails

    def _writable(self) -> Spool | None:
        """The spool, if it may be written; one that failed is tried again now and then."""
        return self._spool if not self._error or time.monotonic() >= self._retry_at else None

    def _failed(self, error: OSError) -> None:
        with self._lock:
            is_news, self._error = not self._error, error_line(error)
            self._retry_at = time.monotonic() + RETRY_SECONDS
        if is_news:
            log.error("the spool cannot be written: %s", error)
            self._event(
                "spool_failed",
                f"the spool {self._root} cannot be written ({self._error}): frames are kept in memory only, "
                "and the camera waits when the window is full",
            )

    def _well(self) -> None:
        if self._error:
            with self._lock:
                self._error = ""
            self._event("spool_back", f"the spool {self._root} is written again")
