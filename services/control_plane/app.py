"""The REST interface: routes by resource, under one versioned base."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from services.control_plane import problems
from services.control_plane.bus import Bus
from services.control_plane.examples import illustrate
from services.control_plane.guard import HEALTH, SIGN_IN, Access, Guard
from services.control_plane.headers import SecurityHeaders
from services.control_plane.places import Places
from services.control_plane.problems import Problem
from services.control_plane.recorder import Recorder
from services.control_plane.requests import RequestTimes, TimedRequests
from services.control_plane.routes import (
    acquisition,
    console,
    documentation,
    frames,
    health,
    metrics,
    monitoring,
    recovery,
    sessions,
    sign_in,
    stream,
)
from services.control_plane.sessions import Finalise, Sessions
from services.control_plane.sign_in import COOKIE

API_VERSION = "1.3.0"
BASE = "/api/v1"

DESCRIPTION = """
Steers a live compressive cryo-EM session: start it, change its mask and its recovery while frames flow, and
see what was gained and what it cost. Where the control plane has tokens, every request shows one. Errors are
problem details (RFC 9457) with one clear line.
"""


def create_app(
    bus: Bus,
    recorder: Recorder,
    finalise: Finalise,
    results: str | Path = "output",
    access: Access | None = None,
    places: Places | None = None,
) -> FastAPI:
    """The application; while it runs, it serves the bus and keeps the sessions.

    Parameters
    ----------
    results : str or Path
        Folder of the sessions that do not name their own.
    access : Access, optional
        Who may come in; else everybody, which is fit for loopback alone.
    places : Places, optional
        What sessions may read and write; else everything, which is fit for loopback alone.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        the_sessions = Sessions(bus, recorder, finalise, results, places)
        app.state.bus, app.state.recorder, app.state.sessions = bus, recorder, the_sessions
        await the_sessions.restore()
        bus.start(the_sessions)
        yield
        await the_sessions.close()
        await bus.close()
        await asyncio.to_thread(recorder.close)

    return routed(lifespan, access)


def routed(
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    access: Access | None = None,
) -> FastAPI:
    """The routes, who guards them, and their document, without anything behind them."""
    app = FastAPIOffline(
        title="CryoFlux control plane",
        version=API_VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        static_url=documentation.ASSETS,
        generate_unique_id_function=lambda route: route.name,
    )
    for resource in (sessions, stream, acquisition, recovery, metrics, frames, sign_in, documentation):
        app.include_router(resource.router, prefix=BASE)
    app.include_router(health.router)
    app.include_router(monitoring.router)
    app.include_router(console.router)
    problems.install(app)
    _guard(app, access or Access())
    _document(app)
    return app


def _guard(app: FastAPI, access: Access) -> None:
    """Put counting, headers and the guard around all of the application, its answers to errors included."""
    app.state.access, app.state.requests = access, RequestTimes()
    build = app.build_middleware_stack

    def guarded() -> ASGIApp:
        return TimedRequests(SecurityHeaders(Guard(build(), access)), app.state.requests)

    app.build_middleware_stack = guarded  # pyright: ignore[reportAttributeAccessIssue]


def _drop_foreign_errors(document: dict[str, Any]) -> None:
    """FastAPI's own errors, which it expects wherever there are parameters, are never answered."""
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for operations in document["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]


def _document_access(document: dict[str, Any]) -> None:
    """Every operation needs a token, but for those that are open."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "a token, for scripts"},
        "cookie": {
            "type": "apiKey",
            "in": "cookie",
            "name": COOKIE,
            "description": "for browsers; `POST /api/v1/sign-in` sets it",
        },
    }
    document["security"] = [{"bearer": []}, {"cookie": []}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path == HEALTH:
                operation["security"] = []
                continue
            if (method, path) == ("post", SIGN_IN):
                operation["security"] = []
            refusals = problems.responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
            for status, answer in refusals.items():
                operation["responses"][str(status)] = answer


def _document(app: FastAPI) -> None:
    """Have the OpenAPI document say what errors look like, and what has to be shown."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = make()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"].update(schema.pop("$defs", {}), Problem=schema)
        _drop_foreign_errors(document)
        _document_access(document)
        illustrate(document)
        return document

    app.openapi = openapi  # pyright: ignore[reportAttributeAccessIssue]
