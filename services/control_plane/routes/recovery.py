"""How images are recovered, changed while frames flow."""

from __future__ import annotations

from fastapi import APIRouter

from services.control_plane.models import RecoveryPatch, RecoveryView, WorkerAnswer
from services.control_plane.routes.access import TheSession, TheSessions
from services.control_plane.routes.sessions import LOOKING, STEERING

router = APIRouter(prefix="/sessions/{session_id}/recovery", tags=["recovery"])


@router.get("", responses=LOOKING)
async def recovery(session: TheSession) -> RecoveryView:
    """The setting in force; those before it are in the session."""
    return RecoveryView(**session.recovery[-1].model_dump())


@router.patch("", responses=STEERING)
async def change_recovery(change: RecoveryPatch, session: TheSession, sessions: TheSessions) -> RecoveryView:
    """Change the method or its parameters, from each worker's next batch on."""
    setting, answers = await sessions.change_recovery(
        session, change.method, change.parameters, change.free_share
    )
    workers = [
        WorkerAnswer(name=name, taken=not wrong, error=wrong or None) for name, wrong in answers.items()
    ]
    return RecoveryView(**setting.model_dump(), workers=workers)
