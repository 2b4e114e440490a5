"""The state store in one SQLite file: needs no server, survives the process, one control plane at a time."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.state.store import (
    EVENTS_KEPT,
    TELEMETRY_KEPT,
    EventRecord,
    SessionRecord,
    StoreError,
    TelemetryRecord,
)

SCHEMA_VERSION = 2

SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, created_at REAL NOT NULL, state TEXT NOT NULL, document TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS configurations (
    session TEXT NOT NULL, number INTEGER NOT NULL, document TEXT NOT NULL, PRIMARY KEY (session, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    session TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, component TEXT NOT NULL,
    name TEXT NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL, details TEXT NOT NULL,
    PRIMARY KEY (session, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS telemetry (
    session TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, document TEXT NOT NULL,
    PRIMARY KEY (session, number)
) STRICT, WITHOUT ROWID;
"""

CACHE_KB = 128  # what is written is hardly read; SQLite's own 2 MB fill so slowly that they look like a leak

PER_SESSION = ("configurations", "events", "telemetry")

Statement = tuple[str, tuple[Any, ...]]


class EmbeddedStore:
    """A ``Store`` in a SQLite file, which is made if it is not there.

    The file is in write-ahead mode without a sync per commit: a crash of the process loses nothing, a crash
    of the machine at most the last moments of bookkeeping. Frames are never kept here.

    Parameters
    ----------
    path : str or Path
        Of the file.

    Raises
    ------
    StoreError
        If the file cannot be opened or made, is no SQLite file, or was written by a later release.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        with self._reported():
            self._connection = sqlite3.connect(self.path, timeout=2.0, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version <= SCHEMA_VERSION:
                if version == 1:  # its telemetry has no numbers, so that it cannot be followed
                    self._connection.execute("DROP TABLE IF EXISTS telemetry")
                self._connection.executescript(SCHEMA)
                self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if version > SCHEMA_VERSION:
            self._connection.close()
            raise StoreError(f"state store {self.path} was written by a later release; name another file")

    @contextmanager
    def _reported(self) -> Generator[None, None, None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"state store {self.path}: {error}") from error

    def _write(self, *statements: Statement) -> None:
        with self._lock, self._reported(), self._connection:
            for statement, values in statements:
                self._connection.execute(statement, values)

    def _read(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._reported():
            return self._connection.execute(statement, values).fetchall()

    def save_session(self, record: SessionRecord) -> None:
        """Keep a session; a record with the same id takes the place of the one before."""
        self._write(_session_row(record))

    def session(self, session: str) -> SessionRecord | None:
        """The session with this id, or None."""
        rows = self._read("SELECT id, created_at, state, document FROM sessions WHERE id = ?", (session,))
        return _session(rows[0]) if rows else None

    def sessions(self) -> list[SessionRecord]:
        """All sessions, oldest first."""
        rows = self._read("SELECT id, created_at, state, document FROM sessions ORDER BY created_at, id")
        return [_session(row) for row in rows]

    def save_configuration(self, session: str, number: int, document: dict[str, Any]) -> None:
        """Keep the ``number``-th acquisition setting of a session."""
        self._write(_configuration_row(session, number, document))

    def configurations(self, session: str) -> list[dict[str, Any]]:
        """The acquisition settings of a session, in order; none for an unknown session."""
        rows = self._read("SELECT document FROM configurations WHERE session = ? ORDER BY number", (session,))
        return [json.loads(document) for (document,) in rows]

    def add_event(self, session: str, event: EventRecord) -> None:
        """Keep an event; of one session the last ``EVENTS_KEPT`` are kept."""
        self._write(
            _event_row(session, event),
            ("DELETE FROM events WHERE session = ? AND number <= ?", (session, event.number - EVENTS_KEPT)),
        )

    def events(self, session: str, after: int = 0, limit: int = EVENTS_KEPT) -> list[EventRecord]:
        """Up to ``limit`` events with a number above ``after``, in order."""
        rows = self._read(
            "SELECT number, at, component, name, kind, message, details FROM events "
            "WHERE session = ? AND number > ? ORDER BY number LIMIT ?",
            (session, after, limit),
        )
        return [EventRecord(*row[:-1], details=json.loads(row[-1])) for row in rows]

    def add_telemetry(self, session: str, record: TelemetryRecord) -> None:
        """Keep counters; of one session the last ``TELEMETRY_KEPT`` are kept."""
        self._write(
            _telemetry_row(session, record),
            (
                "DELETE FROM telemetry WHERE session = ? AND number <= ?",
                (session, record.number - TELEMETRY_KEPT),
            ),
        )

    def telemetry(self, session: str, limit: int = TELEMETRY_KEPT) -> list[TelemetryRecord]:
        """The last ``limit`` counters of a session, oldest first."""
        rows = self._read(
            "SELECT number, at, document FROM telemetry WHERE session = ? ORDER BY number DESC LIMIT ?",
            (session, limit),
        )
        return [TelemetryRecord(number, at, json.loads(document)) for number, at, document in reversed(rows)]

    def rewrite(
        self,
        record: SessionRecord,
        configurations: Sequence[dict[str, Any]],
        events: Sequence[EventRecord],
        telemetry: Sequence[TelemetryRecord],
    ) -> None:
        """Put all that is known of a session in the place of all that was kept of it, at once."""
        self._write(
            *((f"DELETE FROM {table} WHERE session = ?", (record.id,)) for table in PER_SESSION),
            _session_row(record),
            *(_configuration_row(record.id, *numbered) for numbered in enumerate(configurations, 1)),
            *(_event_row(record.id, event) for event in events[-EVENTS_KEPT:]),
            *(_telemetry_row(record.id, point) for point in telemetry[-TELEMETRY_KEPT:]),
        )

    @property
    def epoch(self) -> int:
        """Always the same: a file does not forget."""
        return 0

    def close(self) -> None:
        """Let go of the file; what was written stays."""
        with self._lock, self._reported():
            self._connection.close()


def _session_row(record: SessionRecord) -> Statement:
    values = (record.id, record.created_at, record.state, json.dumps(record.document))
    return "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?)", values


def _configuration_row(session: str, number: int, document: dict[str, Any]) -> Statement:
    return "INSERT OR REPLACE INTO configurations VALUES (?, ?, ?)", (session, number, json.dumps(document))


def _event_row(session: str, event: EventRecord) -> Statement:
    values = (
        session, event.number, event.at, event.component, event.name, event.kind, event.message,
        json.dumps(event.details),
    )  # fmt: skip
    return "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values


def _telemetry_row(session: str, record: TelemetryRecord) -> Statement:
    values = (session, record.number, record.at, json.dumps(record.values))
    return "INSERT OR REPLACE INTO telemetry VALUES (?, ?, ?, ?)", values


def _session(row: tuple[Any, ...]) -> SessionRecord:
    return SessionRecord(*row[:-1], document=json.loads(row[-1]))
