"""All that there is to tell of one session, in order and in memory, so that following it reads no store."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from common.state.store import EVENTS_KEPT, TELEMETRY_KEPT, EventRecord, SessionRecord, TelemetryRecord
from services.control_plane.metrics import Metrics
from services.control_plane.models import EventView, HistoryPoint, SessionView
from services.control_plane.session import Session


class Line(NamedTuple):
    """One event or point as JSON, with its number in the session and its time (Unix seconds).

    An hour of them is kept, and each is much like the first one: packed with that one known, a point takes
    170 bytes instead of 760.
    """

    number: int
    at: float
    packed: bytes
    like: bytes

    @property
    def text(self) -> str:
        """The JSON."""
        unpacking = zlib.decompressobj(zdict=self.like)
        return (unpacking.decompress(self.packed) + unpacking.flush()).decode()


def _number_of(line: Line) -> int:
    return line.number


class Lines:
    """Events or points of a session by their numbers; the last ``kept`` of them.

    A line is shown to followers only when it is in the store, or cannot be stored for now: otherwise a
    control plane that is killed and started again might give its number to another one.
    """

    def __init__(self, kept: int) -> None:
        self._lines: deque[Line] = deque(maxlen=kept)
        self._shown = 0
        self._first = b""

    def add(self, number: int, at: float, text: str) -> None:
        """The next line; its number is one more than that before."""
        data = text.encode()
        self._first = self._first or data
        packing = zlib.compressobj(zdict=self._first)
        packed = packing.compress(data) + packing.flush()
        self._lines.append(Line(number, at, packed, self._first))

    def show(self, number: int) -> None:
        """Lines up to this number may be shown."""
        self._shown = max(self._shown, number)

    @property
    def last(self) -> int:
        """Number of the last line, shown or not; 0: there is none."""
        return self._lines[-1].number if self._lines else 0

    def after(self, number: int, limit: int, *, shown: bool = True) -> list[Line]:
        """Up to ``limit`` lines with a higher number, in order."""
        begin = bisect_right(self._lines, number, key=_number_of)
        end = bisect_right(self._lines, self._shown, key=_number_of) if shown else len(self._lines)
        return list(islice(self._lines, begin, max(begin, min(end, begin + limit))))

    def all(self) -> tuple[Line, ...]:
        """Every line kept; one step of the interpreter, so it may be asked for on any thread."""
        return tuple(self._lines)


class Chronicle:
    """A session's events and points, its latest figures, and the session itself as the interface shows it.

    Lives on the event loop; only ``kept`` may be called elsewhere.

    Attributes
    ----------
    record : SessionRecord
        The session as it was stored last.
    metrics : str
        The latest figures as JSON; ``takes`` counts how often they were taken.
    closed : bool
        Nothing will be added any more.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.record: SessionRecord | None = None
        self.events, self.points = Lines(EVENTS_KEPT), Lines(TELEMETRY_KEPT)
        self.metrics, self.takes = "", 0
        self.closed = False
        self._view = ""
        self._viewed: tuple[object, ...] = ()

    @classmethod
    def of_store(
        cls, session: Session, events: Iterable[EventRecord], telemetry: Iterable[TelemetryRecord]
    ) -> Chronicle:
        """What a store kept of a session."""
        chronicle = cls(session)
        chronicle.record = session.record()
        for event in events:
            chronicle.add_event(event)
        for point in telemetry:
            chronicle.add_point(HistoryPoint.of(point))
        chronicle.events.show(chronicle.events.last)
        chronicle.points.show(chronicle.points.last)
        return chronicle

    def add_event(self, event: EventRecord) -> None:
        """The next line in the session's history."""
        self.events.add(event.number, event.at, EventView.of(event).model_dump_json())

    def add_point(self, point: HistoryPoint) -> None:
        """The next point of the session's figures."""
        self.points.add(point.number, point.at.timestamp(), point.model_dump_json())

    def take(self, figures: Metrics) -> None:
        """The figures of now."""
        self.metrics, self.takes = figures.model_dump_json(), self.takes + 1

    @property
    def view(self) -> str:
        """The session as JSON; another text whenever its state or its settings have changed."""
        s = self.session
        key = (s.state, s.error, s.opened_at, s.finished_at, len(s.acquisition), len(s.recovery))
        if key != self._viewed:
            self._view, self._viewed = SessionView.of(s).model_dump_json(), key
        return self._view

    def events_after(self, number: int, limit: int) -> list[EventView]:
        """Up to ``limit`` events with a higher number."""
        lines = self.events.after(number, limit, shown=False)
        return [EventView.model_validate_json(line.text) for line in lines]

    def last_points(self, limit: int) -> list[HistoryPoint]:
        """The last ``limit`` points, oldest first."""
        lines = self.points.all()[-limit:]
        return [HistoryPoint.model_validate_json(line.text) for line in lines]

    def kept(self) -> tuple[list[EventRecord], list[TelemetryRecord]]:
        """Events and points as they are to be stored; for any thread."""
        events = [EventView.model_validate_json(line.text).record() for line in self.events.all()]
        points = [HistoryPoint.model_validate_json(line.text).record() for line in self.points.all()]
        return events, points
