"""Writes to the state store behind the session's back: a store that fails costs readiness, never frames."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from common.state.store import Store, StoreError

log = logging.getLogger(__name__)

BACKLOG = 10_000
RETRY_SECONDS = 1.0
PROBE_SECONDS = 2.0

T = TypeVar("T")


class _Write(NamedTuple):
    operation: Callable[[Store], None]
    tried: Callable[[], None] | None = None


def _nothing(*_: object) -> None:
    pass


class Recorder:
    """Keeps what it is given in the store, in order, on a thread of its own.

    While the store fails, writes wait (the last ``BACKLOG`` of them) and are tried again every second. When
    it works again, and whenever it may have forgotten something, ``catch_up`` comes before anything else.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[_Write] = deque(maxlen=BACKLOG)
        self._wake = threading.Condition()
        self._closing = False
        self._error = ""
        self._epoch: int | None = None  # of the store when it was last caught up with
        self._catch_up: Callable[[Store], None] = _nothing
        self._changed: Callable[[str], None] = _nothing
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def error(self) -> str:
        """Why the store cannot be written now, in one line; empty: it can."""
        return self._error

    @property
    def waiting(self) -> int:
        """Writes that are still to be done."""
        return len(self._waiting)

    def watch(self, catch_up: Callable[[Store], None], changed: Callable[[str], None]) -> None:
        """Name who knows what the store should hold, and who is told how the store is.

        Parameters
        ----------
        catch_up : callable
            ``catch_up(store)`` writes again all that the store may have forgotten.
        changed : callable
            ``changed(error)``: the store began to fail, or (empty) works again.

        Both are called on the recorder's thread.
        """
        with self._wake:
            self._catch_up, self._changed = catch_up, changed

    def write(self, operation: Callable[[Store], None], tried: Callable[[], None] | None = None) -> None:
        """Have ``operation`` done soon; it may be done again, so it must write the same each time.

        ``tried`` is called once, on whatever thread, when it is done or cannot be done for now.
        """
        with self._wake:
            failing = bool(self._error)
            self._waiting.append(_Write(operation, None if failing else tried))
            self._wake.notify()
        if failing and tried is not None:
            tried()

    def read(self, query: Callable[[Store], T]) -> T:
        """What the store knows; blocks, so not for the event loop.

        Raises
        ------
        StoreError
            If it cannot be read.
        """
        return query(self._store)

    def close(self) -> None:
        """Write what waits, once more, and let go of the store; blocks."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        try:
            self._store.close()
        except StoreError as error:
            log.warning("%s", error)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closing, timeout=PROBE_SECONDS)
                write = self._waiting.popleft() if self._waiting else None
                if write is None and self._closing:
                    return
            try:
                self._keep_up()
                if write is not None:
                    write.operation(self._store)
            except StoreError as error:
                self._failed(write, error)
                if self._closing:
                    return
                continue
            except Exception:  # a bug, which must not take all later writes with it
                log.exception("a write to the state store was given up")
            if write is not None and write.tried is not None:
                write.tried()
            if self._error:
                log.warning("the state store can be written again")
                self._error = ""
                self._changed("")

    def _keep_up(self) -> None:
        """Ask the store whether it still has what it was given; a store that is gone says so here."""
        epoch = self._store.epoch
        if self._error or (self._epoch is not None and epoch != self._epoch):
            self._catch_up(self._store)
        self._epoch = epoch

    def _failed(self, write: _Write | None, error: StoreError) -> None:
        with self._wake:
            is_new = not self._error
            self._error = str(error)
            waiting = [*([] if write is None else [write]), *self._waiting][-BACKLOG:]
            self._waiting = deque((_Write(one.operation) for one in waiting), maxlen=BACKLOG)
        for one in waiting:
            if one.tried is not None:
                one.tried()
        if is_new:
            log.error("%s; the session goes on, writes are tried again", error)
            self._changed(str(error))
        with self._wake:
            retry_at = time.monotonic() + RETRY_SECONDS
            self._wake.wait_for(lambda: self._closing or time.monotonic() >= retry_at, timeout=RETRY_SECONDS)
