"""What Prometheus asks for."""

from __future__ import annotations

import asyncio
from collections import Counter

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from common.exposition import registry_of
from services.control_plane.exposition import Figures, Target, families, request_families, targets
from services.control_plane.routes.access import TheBus, TheRecorder, TheSessions
from services.control_plane.sessions import CURRENT, UnknownSession

router = APIRouter(prefix="/metrics", tags=["monitoring"])


@router.get(
    "",
    response_class=Response,
    responses={200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}},
)
async def prometheus(request: Request, sessions: TheSessions, bus: TheBus, recorder: TheRecorder) -> Response:
    """The control plane's metrics; what each means is told in the monitoring guide.

    Detector and workers serve theirs themselves; ``/metrics/targets`` says where.
    """
    try:
        session = await sessions.get(CURRENT)
    except UnknownSession:
        session = None
    figures = Figures(
        session=sessions.metrics(session) if session is not None else None,
        link_mbit_per_s=session.spec.link_mbit_per_s if session is not None else None,
        components=bus.components,
        events=Counter(sessions.event_counts),
        store_failing=bool(recorder.error),
        store_writes_waiting=recorder.waiting,
        not_let_in=bus.turned_away,
    )
    now = [*families(figures), *request_families(request.app.state.requests)]
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    text = await asyncio.to_thread(encode, registry_of(lambda: now))
    return Response(text, media_type=content_type)


@router.get("/targets")
async def monitoring_targets(request: Request, bus: TheBus) -> list[Target]:
    """Where the metrics of every process are, for Prometheus' HTTP service discovery.

    The control plane names itself as it was asked for.
    """
    host, port = request.url.hostname or "localhost", request.url.port
    port = port or (443 if request.url.scheme == "https" else 80)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return targets(address, bus.components, request.url.scheme)
