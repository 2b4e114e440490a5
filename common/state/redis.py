"""The state store in a Redis server (6 or later), which may be shared, far away, and gone for a while.

Nothing is contacted until something is read or written, and nothing waits longer than ``TIMEOUT_SECONDS``
for the server: whoever wants to go on without it can.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.retry import Retry

from common.masking import masked
from common.state.store import (
    EVENTS_KEPT,
    TELEMETRY_KEPT,
    EventRecord,
    SessionRecord,
    StoreError,
    TelemetryRecord,
)

SCHEMA_VERSION = 1
OLDEST_SERVER = 6
TIMEOUT_SECONDS = 1.0
PREFIX = "cryoflux:"

T = TypeVar("T")


class Keys:
    """Every key in the server."""

    version = f"{PREFIX}version"  # string: of this layout
    sessions = f"{PREFIX}sessions"  # sorted set: ids by the time they were created

    @staticmethod
    def session(session: str) -> str:
        """Hash: created_at, state, document (JSON)."""
        return f"{PREFIX}session:{session}"

    @staticmethod
    def configurations(session: str) -> str:
        """Hash: number -> JSON."""
        return f"{PREFIX}session:{session}:configurations"

    @staticmethod
    def events(session: str) -> str:
        """Stream; the entry of number n has the id ``n-0``."""
        return f"{PREFIX}session:{session}:events"

    @staticmethod
    def telemetry(session: str) -> str:
        """Stream; the entry of number n has the id ``n-0``."""
        return f"{PREFIX}session:{session}:telemetry"


class RedisStore:
    """A ``Store`` in a Redis server.

    What is kept is as durable as the server is set up to be; a control plane that still runs writes again
    what the server has forgotten (see ``epoch``).

    Parameters
    ----------
    url : str
        ``redis://[user:password@]host[:port][/number]``, ``rediss://…`` (TLS) or ``unix://path[?db=number]``.

    Raises
    ------
    StoreError
        If the address is none. Whether somebody answers there is not tried.
    """

    def __init__(self, url: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._name = masked(url)
        self._epoch = 0
        self._run_id: str | None = None
        self._checked: int | None = None  # the epoch in which the layout was looked at
        self._written: set[str] = set()
        self._closed = False
        self._lock = threading.Lock()
        try:
            self._client = redis.Redis.from_url(
                url,
                decode_responses=True,
                protocol=2,
                socket_timeout=timeout_seconds,
                socket_connect_timeout=timeout_seconds,
                retry=Retry(NoBackoff(), 0),
                redis_connect_func=self._greet,
            )
        except (ValueError, TypeError):  # what they say may hold pieces of a password
            raise StoreError(
                f"state store {self._name}: no address of a Redis server; letters of a password other than "
                "A-Z, a-z and 0-9 are written as %XX"
            ) from None

    # ---- talking to the server

    def _greet(self, connection: Any) -> None:
        """Of every new connection: notice a server that was started anew, or is too old."""
        connection.on_connect()
        try:
            connection.send_command("INFO", "server")
            text = connection.read_response()
        except NoPermissionError:  # then every connection may be to another one
            text = ""
        lines = (line.partition(":") for line in str(text).splitlines())
        info = {name: value for name, _, value in lines}
        version = info.get("redis_version", "")
        if version and int(version.partition(".")[0]) < OLDEST_SERVER:
            raise RedisError(f"the server is Redis {version}; {OLDEST_SERVER} or later is needed")
        with self._lock:
            run_id = info.get("run_id", "")
            if self._run_id is not None and (run_id != self._run_id or not run_id):
                self._epoch += 1
            self._run_id = run_id

    def _call(self, work: Callable[[redis.Redis], T]) -> T:
        if self._closed:
            raise StoreError(f"state store {self._name} is closed")
        try:
            if self._checked != self._epoch:
                self._check()
            return work(self._client)
        except (RedisError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StoreError(f"state store {self._name}: {reason}") from error

    def _check(self) -> None:
        epoch = self._epoch
        self._client.set(Keys.version, SCHEMA_VERSION, nx=True)
        version = cast("str", self._client.get(Keys.version))
        if not version.isdecimal() or int(version) > SCHEMA_VERSION:
            raise StoreError(
                f"state store {self._name} was written by a later release; name another one (…/number)"
            )
        self._checked = epoch

    # ---- the store

    def save_session(self, record: SessionRecord) -> None:
        """Keep a session; a record with the same id takes the place of the one before."""

        def save(client: redis.Redis) -> None:
            with client.pipeline() as pipeline:
                _put_session(pipeline, record)
                _, added = pipeline.execute()
            with self._lock:
                if added and record.id in self._written:  # it was there, and is not any more
                    self._epoch += 1
                self._written.add(record.id)

        self._call(save)

    def session(self, session: str) -> SessionRecord | None:
        """The session with this id, or None."""
        known = self._call(lambda client: cast("dict[str, str]", client.hgetall(Keys.session(session))))
        return _session(session, known) if known else None

    def sessions(self) -> list[SessionRecord]:
        """All sessions, oldest first."""

        def read(client: redis.Redis) -> list[SessionRecord]:
            ids = cast("list[str]", client.zrange(Keys.sessions, 0, -1))
            with client.pipeline(transaction=False) as pipeline:
                for session in ids:
                    pipeline.hgetall(Keys.session(session))
                found = pipeline.execute()
            return [_session(session, known) for session, known in zip(ids, found, strict=True) if known]

        return self._call(read)

    def save_configuration(self, session: str, number: int, document: dict[str, Any]) -> None:
        """Keep the ``number``-th acquisition setting of a session."""
        key = Keys.configurations(session)
        self._call(lambda client: client.hset(key, str(number), json.dumps(document)))

    def configurations(self, session: str) -> list[dict[str, Any]]:
        """The acquisition settings of a session, in order; none for an unknown session."""
        key = Keys.configurations(session)
        known = self._call(lambda client: cast("dict[str, str]", client.hgetall(key)))
        return [json.loads(known[number]) for number in sorted(known, key=int)]

    def add_event(self, session: str, event: EventRecord) -> None:
        """Keep an event; of one session the last ``EVENTS_KEPT`` are kept."""
        self._add(Keys.events(session), event.number, _event_fields(event), EVENTS_KEPT)

    def events(self, session: str, after: int = 0, limit: int = EVENTS_KEPT) -> list[EventRecord]:
        """Up to ``limit`` events with a number above ``after``, in order."""
        key = Keys.events(session)
        # the lowest id behind n-0, whatever comes next
        rows = self._call(lambda client: cast("Rows", client.xrange(key, min=f"{after}-1", count=limit)))
        return [_event(number, fields) for number, fields in rows]

    def add_telemetry(self, session: str, record: TelemetryRecord) -> None:
        """Keep counters; of one session the last ``TELEMETRY_KEPT`` are kept."""
        self._add(Keys.telemetry(session), record.number, _telemetry_fields(record), TELEMETRY_KEPT)

    def telemetry(self, session: str, limit: int = TELEMETRY_KEPT) -> list[TelemetryRecord]:
        """The last ``limit`` counters of a session, oldest first."""
        key = Keys.telemetry(session)
        rows = self._call(lambda client: cast("Rows", client.xrevrange(key, count=limit)))
        return [
            TelemetryRecord(_number(identity), float(fields["at"]), json.loads(fields["values"]))
            for identity, fields in reversed(rows)
        ]

    def rewrite(
        self,
        record: SessionRecord,
        configurations: Sequence[dict[str, Any]],
        events: Sequence[EventRecord],
        telemetry: Sequence[TelemetryRecord],
    ) -> None:
        """Put all that is known of a session in the place of all that was kept of it, at once."""
        session = record.id

        def write(client: redis.Redis) -> None:
            with client.pipeline() as pipeline:
                pipeline.delete(
                    Keys.session(session),
                    Keys.configurations(session),
                    Keys.events(session),
                    Keys.telemetry(session),
                )
                _put_session(pipeline, record)
                for number, document in enumerate(configurations, 1):
                    pipeline.hset(Keys.configurations(session), str(number), json.dumps(document))
                for event in events[-EVENTS_KEPT:]:
                    pipeline.xadd(Keys.events(session), _event_fields(event), id=f"{event.number}-0")
                for point in telemetry[-TELEMETRY_KEPT:]:
                    pipeline.xadd(Keys.telemetry(session), _telemetry_fields(point), id=f"{point.number}-0")
                pipeline.execute()
            with self._lock:
                self._written.add(session)

        self._call(write)

    @property
    def epoch(self) -> int:
        """Another number than before: the server was started anew, or its keys were deleted.

        Asks the server, so that a new one is noticed before anything is written to it.
        """
        self._call(lambda client: client.ping())
        return self._epoch

    def close(self) -> None:
        """Let go of the server; what was written stays."""
        self._closed = True
        self._client.close()

    def _add(self, key: str, number: int, fields: Fields, kept: int) -> None:
        def add(client: redis.Redis) -> None:
            try:
                client.xadd(key, fields, id=f"{number}-0", maxlen=kept, approximate=False)
            except ResponseError as error:
                if "equal or smaller" not in str(error):  # it is there from the time before
                    raise

        self._call(add)


Fields = dict[Any, Any]
Rows = list[tuple[str, dict[str, str]]]


def _put_session(pipeline: Any, record: SessionRecord) -> None:
    pipeline.zadd(Keys.sessions, {record.id: record.created_at})
    document = json.dumps(record.document)
    fields = {"created_at": repr(record.created_at), "state": str(record.state), "document": document}
    pipeline.hset(Keys.session(record.id), mapping=fields)


def _session(session: str, known: dict[str, str]) -> SessionRecord:
    return SessionRecord(session, float(known["created_at"]), known["state"], json.loads(known["document"]))


def _event_fields(event: EventRecord) -> Fields:
    return {
        "at": repr(event.at),
        "component": event.component,
        "name": event.name,
        "kind": event.kind,
        "message": event.message,
        "details": json.dumps(event.details),
    }


def _event(identity: str, fields: dict[str, str]) -> EventRecord:
    return EventRecord(
        number=_number(identity),
        at=float(fields["at"]),
        component=fields["component"],
        name=fields["name"],
        kind=fields["kind"],
        message=fields["message"],
        details=json.loads(fields["details"]),
    )


def _telemetry_fields(record: TelemetryRecord) -> Fields:
    return {"at": repr(record.at), "values": json.dumps(record.values)}


def _number(identity: str) -> int:
    return int(identity.partition("-")[0])
