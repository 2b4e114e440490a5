"""Following a session: one stream of events that resumes where it was cut off."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from services.control_plane.chronicle import Chronicle
from services.control_plane.readiness import readiness
from services.control_plane.routes.access import SessionName, TheBus, TheRecorder, TheSessions
from services.control_plane.routes.sessions import SEARCHING
from services.control_plane.sessions import CURRENT
from services.control_plane.stream import MOST_FOLLOWERS, Cursor, follow

router = APIRouter(prefix="/sessions/{session_id}/stream", tags=["stream"])

CURSOR = r"^[A-Za-z0-9-]{1,100}/[0-9]{1,16}/[0-9]{1,16}$"


class EventStream(StreamingResponse):
    """Server-Sent Events, already in their form."""

    media_type = "text/event-stream"


HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy may gather events
STREAM: dict[str, Any] = {
    "description": "Server-Sent Events, until the session is over, the client leaves or the server stops",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


async def _named(sessions: TheSessions, session_id: SessionName) -> Chronicle | None:
    return None if session_id == CURRENT else await sessions.chronicle_of(session_id)


@router.get("", response_class=EventStream, responses={200: STREAM, **SEARCHING})
async def stream(
    named: Annotated[Chronicle | None, Depends(_named)],
    sessions: TheSessions,
    bus: TheBus,
    recorder: TheRecorder,
    last_event_id: Annotated[
        str | None,
        Header(pattern=CURSOR, description="id of the last event or point received; browsers send it"),
    ] = None,
    after: Annotated[
        str | None, Query(pattern=CURSOR, description="the same, for clients that cannot set the header")
    ] = None,
) -> EventStream:
    """Follow a session, as Server-Sent Events: what is kept of it first, then what happens.

    | `event` | `data` | when |
    |---|---|---|
    | `session` | SessionView | first, and when the state or a setting changes |
    | `health` | Readiness | at the start, and when it changes |
    | `event` | EventView | each once, in order |
    | `point` | HistoryPoint | each once, in order; about one a second |
    | `metrics` | Metrics | the latest, about once a second |
    | `end` | SessionView | a session that was named is over; the stream closes |

    *event* and *point* carry an `id`, `<session>/<event number>/<point number>`. A client that sends it back
    goes on behind it without gap or duplicate, also after the control plane was restarted. *current* goes on
    with the next session when that starts: `session` then has another id, and all of it follows.
    """
    if sessions.followers.full:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{MOST_FOLLOWERS} clients follow already; close a console, or ask again later",
            headers={"Retry-After": "10"},
        )
    cursor = Cursor.parse(last_event_id or after) if last_event_id or after else Cursor()
    told = follow(
        sessions.followers,
        lambda: sessions.newest,
        lambda: readiness(bus, recorder).model_dump_json(),
        named,
        cursor,
    )
    return EventStream(told, headers=HEADERS)
