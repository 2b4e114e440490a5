"""How images are recovered, changed while frames flow."""

from __future__ import annotations

from fastapi import APIRouter

from services.control_plane.body import JsonRoute
from services.control_plane.models import RecoveryPatch, RecoveryView, WorkerAnswer
from services.control_plane.routes.access import TheSession, TheSessions
from services.control_plane.routes.sessions import CHANGING, LOOKING

router = APIRouter(prefix="/sessions/{session_id}/recovery", tags=["recovery"], route_class=JsonRoute)


@router.get("", responses=LOOKING)
async def recovery(session: TheSession) -> RecoveryView:
    """The setting in force; those before it are in the session."""
    return RecoveryView(**session.recovery[-1].model_dump())


@router.patch("", responses=CHANGING)
async def change_recovery(change: RecoveryPatch, session: TheSession, sessions: TheSessions) -> RecoveryView:
    """Change the method or its parameters, from each worker's next batch on."""
    setting, answers = await sessions.change_recovery(
        session, change.method, change.parameters, change.free_share
    )
    workers = [
        WorkerAnswer(name=name, taken=not wrong, error=wrong or None) for name, wrong in answers.items()
    ]
    return RecoveryView(**setting.model_dump(), workers=workers)
