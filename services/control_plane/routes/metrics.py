"""The figures of a session, now and over time."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from common.state.store import TELEMETRY_KEPT
from services.control_plane.metrics import Metrics
from services.control_plane.models import HistoryPoint
from services.control_plane.routes.access import TheSession, TheSessions
from services.control_plane.routes.sessions import LOOKING, SEARCHING

router = APIRouter(prefix="/sessions/{session_id}/metrics", tags=["metrics"])


@router.get("", responses=LOOKING)
async def metrics(session: TheSession, sessions: TheSessions) -> Metrics:
    """What was acquired, what it cost on the wire, what came back, and how good it is."""
    return sessions.metrics(session)


@router.get("/history", responses=SEARCHING)
async def history(
    session: TheSession,
    sessions: TheSessions,
    limit: Annotated[
        int, Query(ge=1, le=TELEMETRY_KEPT, description="the last so many points")
    ] = TELEMETRY_KEPT,
) -> list[HistoryPoint]:
    """The figures over time, about one point a second, oldest first."""
    return await sessions.history(session, limit)
