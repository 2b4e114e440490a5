"""What a state store keeps for the control plane, whatever is behind it.

Sessions outlive the control plane's process: it reads them back when it starts. Everything is written so
that writing it again changes nothing, because a write that failed is tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

EVENTS_KEPT = 10_000
TELEMETRY_KEPT = 3_600


class StoreError(RuntimeError):
    """The store cannot be read or written. The message is one line: what failed, and where."""


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as it is known at one moment.

    Attributes
    ----------
    id : str
        Of the session.
    created_at : float
        Unix time, seconds.
    state : str
        State of the session's state machine.
    document : dict[str, Any]
        All else about it, as JSON.
    """

    id: str
    created_at: float
    state: str
    document: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class EventRecord:
    """A line in a session's history; ``number`` counts from 1 within the session."""

    number: int
    at: float  # Unix time, seconds
    component: str
    name: str
    kind: str
    message: str
    details: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class TelemetryRecord:
    """The counters of a session at one moment; ``number`` counts from 1 within the session."""

    number: int
    at: float  # Unix time, seconds
    values: dict[str, Any]


class Store(Protocol):
    """Sessions with their configurations, events and telemetry. May be used from several threads.

    Every method raises ``StoreError`` if the store cannot be reached. Values are JSON: numbers, strings,
    lists, and dicts with string keys.
    """

    def save_session(self, record: SessionRecord) -> None:
        """Keep a session; a record with the same id takes the place of the one before."""
        ...

    def session(self, session: str) -> SessionRecord | None:
        """The session with this id, or None."""
        ...

    def sessions(self) -> list[SessionRecord]:
        """All sessions, oldest first."""
        ...

    def save_configuration(self, session: str, number: int, document: dict[str, Any]) -> None:
        """Keep the ``number``-th acquisition setting of a session."""
        ...

    def configurations(self, session: str) -> list[dict[str, Any]]:
        """The acquisition settings of a session, in order; none for an unknown session."""
        ...

    def add_event(self, session: str, event: EventRecord) -> None:
        """Keep an event; of one session the last ``EVENTS_KEPT`` are kept."""
        ...

    def events(self, session: str, after: int = 0, limit: int = EVENTS_KEPT) -> list[EventRecord]:
        """Up to ``limit`` events with a number above ``after``, in order."""
        ...

    def add_telemetry(self, session: str, record: TelemetryRecord) -> None:
        """Keep counters; of one session the last ``TELEMETRY_KEPT`` are kept."""
        ...

    def telemetry(self, session: str, limit: int = TELEMETRY_KEPT) -> list[TelemetryRecord]:
        """The last ``limit`` counters of a session, oldest first."""
        ...

    def rewrite(
        self,
        record: SessionRecord,
        configurations: Sequence[dict[str, Any]],
        events: Sequence[EventRecord],
        telemetry: Sequence[TelemetryRecord],
    ) -> None:
        """Put all that is known of a session in the place of all that was kept of it.

        For a store that was away: it may have forgotten some of it, or everything.
        """
        ...

    @property
    def epoch(self) -> int:
        """Another number than before: what was written may be forgotten, so it has to be written again."""
        ...

    def close(self) -> None:
        """Let go of the store; what was written stays."""
        ...
