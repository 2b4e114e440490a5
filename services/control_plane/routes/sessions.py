"""Sessions: start, look, pause, resume, stop."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response

from common.session import SessionSpec
from common.state.store import EVENTS_KEPT
from services.control_plane.body import JsonRoute
from services.control_plane.models import EventView, SessionView
from services.control_plane.problems import responses
from services.control_plane.routes.access import LARGEST_NUMBER, TheSession, TheSessions

router = APIRouter(prefix="/sessions", tags=["sessions"], route_class=JsonRoute)

LOOKING = responses(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE)
SEARCHING = {**LOOKING, **responses(HTTPStatus.UNPROCESSABLE_ENTITY)}
STEERING = {
    **LOOKING,
    **responses(HTTPStatus.CONFLICT, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT),
}
CHANGING = {
    **STEERING,
    **responses(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    ),
}


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    responses={
        201: {"headers": {"Location": {"description": "of the session", "schema": {"type": "string"}}}},
        **{status: answer for status, answer in CHANGING.items() if status != HTTPStatus.NOT_FOUND},
    },
)
async def start(spec: SessionSpec, sessions: TheSessions, response: Response) -> SessionView:
    """Start a session. Answers when the detector acquires; one session runs at a time."""
    session = await sessions.create(spec)
    response.headers["Location"] = f"/api/v1/sessions/{session.id}"
    return SessionView.of(session)


@router.get("", responses=responses(HTTPStatus.SERVICE_UNAVAILABLE))
async def list_sessions(sessions: TheSessions) -> list[SessionView]:
    """Every session that the store knows, oldest first."""
    return [SessionView.of(session) for session in await sessions.all()]


@router.get("/{session_id}", responses=LOOKING)
async def look(session: TheSession) -> SessionView:
    """A session: its state, its specification, and all its settings so far."""
    return SessionView.of(session)


@router.post("/{session_id}/pause", responses=STEERING)
async def pause(session: TheSession, sessions: TheSessions) -> SessionView:
    """Expose nothing until *resume*; what was acquired is delivered."""
    return SessionView.of(await sessions.pause(session))


@router.post("/{session_id}/resume", responses=STEERING)
async def resume(session: TheSession, sessions: TheSessions) -> SessionView:
    """Expose again."""
    return SessionView.of(await sessions.resume(session))


@router.post("/{session_id}/stop", responses=STEERING)
async def stop(session: TheSession, sessions: TheSessions) -> SessionView:
    """Expose no further frame. What was acquired is delivered, then the results are finalised."""
    return SessionView.of(await sessions.stop(session))


@router.get("/{session_id}/events", responses=SEARCHING)
async def events(
    session: TheSession,
    sessions: TheSessions,
    after: Annotated[int, Query(ge=0, le=LARGEST_NUMBER, description="only events with a higher number")] = 0,
    limit: Annotated[int, Query(ge=1, le=EVENTS_KEPT, description="at most so many")] = 1000,
) -> list[EventView]:
    """The session's history: bad files skipped, workers lost and restarted, changes made."""
    return await sessions.events(session, after, limit)
