"""Whether a session can be started, and will be kept."""

from __future__ import annotations

from services.control_plane.bus import Bus
from services.control_plane.models import Readiness
from services.control_plane.recorder import Recorder


def readiness(bus: Bus, recorder: Recorder) -> Readiness:
    """Whether a detector and at least one worker are there, and whether the state store can be written."""
    workers = sum(worker.present for worker in bus.workers)
    missing = [name for name, there in (("detector", bus.detector), ("worker", workers)) if not there]
    detail = [f"no {name} is registered" for name in missing]
    if recorder.error:
        detail.append(f"{recorder.error}; sessions go on, but a restart would forget them")
    told = bus.detector.telemetry if bus.detector is not None else {}
    spool_error, unaccounted = told.get("spool_error", ""), told.get("frames_unaccounted", 0)
    if spool_error:
        detail.append(
            f"the detector's spool cannot be written ({spool_error}); frames are kept in memory only"
        )
    if unaccounted:
        detail.append(
            f"the detector's accounts do not balance: {unaccounted} frames are unaccounted for; this is a bug"
        )
    full = [worker for worker in bus.workers if worker.present and worker.telemetry.get("results_error")]
    detail += [
        f"{worker.name} cannot write results ({worker.telemetry['results_error']}) and takes no frames"
        for worker in full
    ]
    is_degraded = bool(recorder.error or spool_error or unaccounted or full)
    return Readiness(
        status="not ready" if missing else "degraded" if is_degraded else "ready",
        detector=bus.detector is not None,
        workers=workers,
        store="failing" if recorder.error else "ok",
        detail="; ".join(detail),
    )
