"""The REST interface: routes by resource, under one versioned base."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from services.control_plane import problems
from services.control_plane.bus import Bus
from services.control_plane.examples import illustrate
from services.control_plane.problems import Problem
from services.control_plane.recorder import Recorder
from services.control_plane.requests import timed
from services.control_plane.routes import (
    acquisition,
    console,
    frames,
    health,
    metrics,
    monitoring,
    recovery,
    sessions,
    stream,
)
from services.control_plane.sessions import Finalise, Sessions

API_VERSION = "1.1.0"
BASE = "/api/v1"

DESCRIPTION = """
Steers a live compressive cryo-EM session: start it, change its mask and its recovery while frames flow, and
see what was gained and what it cost. Errors are problem details (RFC 9457) with one clear line.
"""


def create_app(
    bus: Bus, recorder: Recorder, finalise: Finalise, results: str | Path = "output"
) -> FastAPI:
    """The application; while it runs, it serves the bus and keeps the sessions.

    Parameters
    ----------
    results : str or Path
        Folder of the sessions that do not name their own.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        the_sessions = Sessions(bus, recorder, finalise, results)
        app.state.bus, app.state.recorder, app.state.sessions = bus, recorder, the_sessions
        await the_sessions.restore()
        bus.start(the_sessions)
        yield
        await the_sessions.close()
        await bus.close()
        await asyncio.to_thread(recorder.close)

    return routed(lifespan)


def routed(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None) -> FastAPI:
    """The routes and their document, without anything behind them."""
    app = FastAPIOffline(
        title="CryoFlux control plane",
        version=API_VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=f"{BASE}/docs",
        redoc_url=None,
        static_url=f"{BASE}/docs-assets",
        swagger_ui_oauth2_redirect_url=f"{BASE}/docs/oauth2-redirect",
        generate_unique_id_function=lambda route: route.name,
    )
    for resource in (sessions, stream, acquisition, recovery, metrics, frames):
        app.include_router(resource.router, prefix=BASE)
    app.include_router(health.router)
    app.include_router(monitoring.router)
    app.include_router(console.router)
    problems.install(app)
    app.state.requests = timed(app)
    _document_problems(app)
    return app


def _drop_foreign_errors(document: dict[str, Any]) -> None:
    """FastAPI's own errors, which it expects wherever there are parameters, are never answered."""
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for operations in document["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]


def _document_problems(app: FastAPI) -> None:
    """Have the OpenAPI document say what errors look like."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = make()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"].update(schema.pop("$defs", {}), Problem=schema)
        _drop_foreign_errors(document)
        illustrate(document)
        return document

    app.openapi = openapi  # pyright: ignore[reportAttributeAccessIssue]
