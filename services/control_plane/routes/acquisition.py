"""How frames are acquired: the mask and its compression factor, changed while frames flow."""

from __future__ import annotations

from fastapi import APIRouter

from services.control_plane.body import JsonRoute
from services.control_plane.models import AcquisitionPatch
from services.control_plane.routes.access import TheSession, TheSessions
from services.control_plane.routes.sessions import CHANGING, LOOKING, STEERING
from services.control_plane.session import AcquisitionSetting
from services.control_plane.states import WrongState

router = APIRouter(prefix="/sessions/{session_id}/acquisition", tags=["acquisition"], route_class=JsonRoute)


@router.get("", responses={**LOOKING, 409: STEERING[409]})
async def acquisition(session: TheSession) -> AcquisitionSetting:
    """The setting in force; those before it are in the session."""
    if not session.acquisition:
        raise WrongState(f"the session is {session.state}; it has not acquired anything")
    return session.acquisition[-1]


@router.patch("", responses=CHANGING)
async def change_acquisition(
    change: AcquisitionPatch, session: TheSession, sessions: TheSessions
) -> AcquisitionSetting:
    """Change the mask or its compression factor. Answers when it is known from which frame on it holds.

    The operator is built while frames flow through the mask before it; no frame is lost, and each carries the
    id of the configuration that it was taken with.
    """
    return await sessions.change_acquisition(session, change.mask, change.compression_factor)
