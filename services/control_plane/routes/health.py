"""Whether the control plane is alive, and whether sessions can run."""

from __future__ import annotations

from http import HTTPStatus
from importlib.metadata import version

from fastapi import APIRouter, Response

from services.control_plane.models import Health, Readiness
from services.control_plane.readiness import readiness
from services.control_plane.routes.access import TheBus, TheRecorder

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Health:
    """The control plane is alive."""
    return Health(version=version("cryoflux"))


@router.get(
    "/readyz", responses={503: {"model": Readiness, "description": "a detector or a worker is missing"}}
)
async def readyz(bus: TheBus, recorder: TheRecorder, response: Response) -> Readiness:
    """Whether a detector and at least one worker are there, and whether the state store can be written."""
    found = readiness(bus, recorder)
    if found.status == "not ready":
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return found
