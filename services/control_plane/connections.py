"""HTTP connections of clients that take their time: a request has to come within a bound, and room is made.

Uvicorn waits for a request for as long as its client likes, and takes as many connections as there are. A few
hundred clients that send a letter a minute would keep everybody else out. Here a connection that has begun
and not finished a request in ``REQUEST_SECONDS`` is closed, and where there are too many, the one that has
kept the server waiting for longest is closed for each that comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 30.0  # for the whole of a request, from the connection or the answer before it on
LARGEST_HEADER_BYTES = 32_768  # request line and headers together
PIECE_BYTES = 16_384
MOST_CONNECTIONS = 1000
REMARK_SECONDS = 10.0  # at least, between two lines about requests that are none


def most_connections() -> int:
    """How many there may be: half of the files that the process may have open, and not too many."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, files // 2)


def allow_many_files() -> None:
    """Have the process open as many files as it may, up to what its connections and the rest need."""
    files, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MOST_CONNECTIONS
    if files != resource.RLIM_INFINITY and files < wanted:
        most = wanted if limit == resource.RLIM_INFINITY else min(wanted, limit)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, limit))


class _NowAndThen(logging.Filter):
    """One line about broken requests once in a while: who sends them must not fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._said = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to tell."""
        if record.levelno > logging.WARNING:
            return True
        now = time.monotonic()
        if now - self._said < REMARK_SECONDS:
            return False
        self._said = now
        return True


log = logging.getLogger("uvicorn.error.requests")
log.addFilter(_NowAndThen())


class Connection(H11Protocol):
    """A connection whose requests come within a bound of time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = log
        self.waits_since = self.loop.time()
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; if there are too many, another one ends."""
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            self._make_room()
        if not transport.is_closing():
            self._patience = self.loop.call_later(REQUEST_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request, for so long as for the first."""
        self.waits_since = self.loop.time()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        """Take what came piece by piece, so that headers cannot come to their end beyond their bound."""
        for at in range(0, len(data), PIECE_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[at : at + PIECE_BYTES])

    @property
    def waits(self) -> bool:
        """Whether a request has not come, or not the whole of it."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _look(self) -> None:
        """Close the connection if its client has had its time."""
        left = self.waits_since + REQUEST_SECONDS - self.loop.time()
        if self.waits and left <= 0:
            self.transport.abort()
        else:
            self._patience = self.loop.call_later(max(left, REQUEST_SECONDS / 4), self._look)

    def _make_room(self) -> None:
        """Close whichever connection has kept us waiting for longest; this one if none does."""
        waiting = (one for one in self.connections if isinstance(one, Connection) and one.waits)
        victim = min(waiting, key=lambda one: one.waits_since, default=self)
        victim.transport.abort()
        self.connections.discard(victim)
