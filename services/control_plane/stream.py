"""Following a session: what happened first, then what happens, each thing once, also over a reconnection.

Everything that is followed stands in a ``Chronicle`` in memory. A follower only remembers how far it has
read, so one that is slow or does not read at all costs nothing but its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import re
import time
from collections.abc import AsyncIterator, Callable, Generator
from typing import NamedTuple, Self

from fastapi.sse import format_sse_event

from services.control_plane.chronicle import Chronicle, Line

QUIET_SECONDS = 5.0
MOST_FOLLOWERS = 200  # each a connection, and work once a second
AT_A_TIME = 256
LARGEST_NUMBER = 2**53


class Cursor(NamedTuple):
    """How far a follower has read: the numbers of the last event and the last point of a session."""

    session: str = ""
    event: int = 0
    point: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``<session>/<event>/<point>``.

        Raises
        ------
        ValueError
            In one line, if it is not that.
        """
        found = re.fullmatch(r"([^/\s]{1,100})/(\d{1,16})/(\d{1,16})", text, re.ASCII)
        if found is None:
            raise ValueError("must be <session>/<event number>/<point number>, as the stream's ids are")
        return cls(found[1], min(int(found[2]), LARGEST_NUMBER), min(int(found[3]), LARGEST_NUMBER))

    def __str__(self) -> str:
        return f"{self.session}/{self.event}/{self.point}"


class Followers:
    """Everyone who follows; rung whenever there may be something new to read."""

    def __init__(self) -> None:
        self._bells: set[asyncio.Event] = set()
        self.closed = False

    def ring(self) -> None:
        """There may be something new."""
        for bell in self._bells:
            bell.set()

    def close(self) -> None:
        """Have every stream end; who follows may resume with its cursor elsewhere, or later."""
        self.closed = True
        self.ring()

    @contextlib.contextmanager
    def bell(self) -> Generator[asyncio.Event, None, None]:
        """An event that is set at every ring."""
        bell = asyncio.Event()
        self._bells.add(bell)
        try:
            yield bell
        finally:
            self._bells.discard(bell)

    @property
    def full(self) -> bool:
        """Whether there are as many as there may be."""
        return len(self._bells) >= MOST_FOLLOWERS

    def __len__(self) -> int:
        return len(self._bells)


async def follow(
    followers: Followers,
    newest: Callable[[], Chronicle | None],
    health: Callable[[], str],
    named: Chronicle | None,
    cursor: Cursor,
) -> AsyncIterator[bytes]:
    """What a follower is told, as Server-Sent Events, until it leaves.

    Parameters
    ----------
    newest : callable
        The chronicle of the session that runs or ran last; none before any.
    health : callable
        How the installation is, as JSON.
    named : Chronicle, optional
        Of the one session to follow, to its end; none: that of now and those to come.
    cursor : Cursor
        From where to go on; of another session: from its beginning.
    """
    told_health, told_view, told_takes = "", "", 0
    reading: Chronicle | None = None
    quiet_until = 0.0
    with followers.bell() as bell:
        while not followers.closed:
            bell.clear()
            wanted = named or newest()
            is_free = reading is None or _is_read(reading, cursor)
            if wanted is not None and wanted is not reading and is_free:
                reading, told_view, told_takes = wanted, "", 0
                cursor = _resumed(cursor, reading)
            text: list[bytes] = []
            if reading is not None and reading.view != told_view:
                told_view = reading.view
                text.append(_event("session", told_view))
            if (now := health()) != told_health:
                told_health = now
                text.append(_event("health", now))
            lines = _lines(reading, cursor) if reading is not None else []
            for kind, line in lines:
                cursor = cursor._replace(**{kind: line.number})
                text.append(_event(kind, line.text, str(cursor)))
            ended = False
            if reading is not None and not lines:  # figures follow the point that they belong to
                if reading.takes != told_takes:
                    told_takes = reading.takes
                    text.append(_event("metrics", reading.metrics))
                if named is not None and _is_read(reading, cursor):
                    ended = True
                    text.append(_event("end", reading.view, str(cursor)))
            if text:
                quiet_until = time.monotonic() + QUIET_SECONDS
                yield b"".join(text)
            elif time.monotonic() >= quiet_until:
                quiet_until = time.monotonic() + QUIET_SECONDS
                yield format_sse_event(comment="quiet")
            if ended:
                return
            if not lines:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(bell.wait(), quiet_until - time.monotonic())


def _event(name: str, data: str, identity: str | None = None) -> bytes:
    return format_sse_event(data_str=data, event=name, id=identity)


def _lines(chronicle: Chronicle, cursor: Cursor) -> list[tuple[str, Line]]:
    """The next events and points after a cursor, in the order of time; not all at once."""
    events = [("event", line) for line in chronicle.events.after(cursor.event, AT_A_TIME)]
    points = [("point", line) for line in chronicle.points.after(cursor.point, AT_A_TIME)]
    # of each kind so many: what is left of the other comes later than what is taken of this one
    merged = list(heapq.merge(events, points, key=lambda item: item[1].at))
    return merged[:AT_A_TIME]


def _resumed(cursor: Cursor, chronicle: Chronicle) -> Cursor:
    """From where to go on in a session.

    A number higher than the last one was given by a control plane that could not store it: it is given again.
    """
    if cursor.session != chronicle.session.id:
        return Cursor(chronicle.session.id)
    event, point = min(cursor.event, chronicle.events.last), min(cursor.point, chronicle.points.last)
    return Cursor(cursor.session, event, point)


def _is_read(chronicle: Chronicle, cursor: Cursor) -> bool:
    """Whether nothing more will come of it."""
    return (
        chronicle.closed and cursor.event >= chronicle.events.last and cursor.point >= chronicle.points.last
    )
