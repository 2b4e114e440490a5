"""Whether the control plane is alive, and whether sessions can run."""

from __future__ import annotations

from http import HTTPStatus
from importlib.metadata import version

from fastapi import APIRouter, Response

from services.control_plane.models import Health, Readiness
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
    workers = sum(worker.present for worker in bus.workers)
    missing = [name for name, there in (("detector", bus.detector), ("worker", workers)) if not there]
    if missing:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    status = "not ready" if missing else "degraded" if recorder.error else "ready"
    detail = [f"no {name} is registered" for name in missing]
    if recorder.error:
        detail.append(f"{recorder.error}; sessions go on, but a restart would forget them")
    return Readiness(
        status=status,
        detector=bus.detector is not None,
        workers=workers,
        store="failing" if recorder.error else "ok",
        detail="; ".join(detail),
    )
