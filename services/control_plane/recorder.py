"""Writes to the state store behind the session's back: a store that fails costs readiness, never frames."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from common.state.store import Store, StoreError

log = logging.getLogger(__name__)

BACKLOG = 10_000
RETRY_SECONDS = 1.0

T = TypeVar("T")


class Recorder:
    """Keeps what it is given in the store, in order, on a thread of its own.

    While the store fails, writes wait (the last ``BACKLOG`` of them) and are tried again every second.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[Callable[[Store], None]] = deque(maxlen=BACKLOG)
        self._wake = threading.Condition()
        self._closing = False
        self._error = ""
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def error(self) -> str:
        """Why the store cannot be written now, in one line; empty: it can."""
        return self._error

    def write(self, operation: Callable[[Store], None]) -> None:
        """Have ``operation`` done soon; it may be done again, so it must write the same each time."""
        with self._wake:
            self._waiting.append(operation)
            self._wake.notify()

    def read(self, query: Callable[[Store], T]) -> T:
        """What the store knows; blocks, so not for the event loop.

        Raises
        ------
        StoreError
            If it cannot be read.
        """
        return query(self._store)

    def close(self) -> None:
        """Write what waits, once more, and let go of the store."""
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
                self._wake.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                operation = self._waiting.popleft()
            try:
                operation(self._store)
                self._error = ""
            except StoreError as error:
                self._failed(operation, error)
                if self._closing:
                    return

    def _failed(self, operation: Callable[[Store], None], error: StoreError) -> None:
        if not self._error:
            log.error("%s; the session goes on, writes are tried again", error)
        self._error = str(error)
        with self._wake:
            if len(self._waiting) < BACKLOG:
                self._waiting.appendleft(operation)
            retry_at = time.monotonic() + RETRY_SECONDS
            self._wake.wait_for(lambda: self._closing or time.monotonic() >= retry_at, timeout=RETRY_SECONDS)
