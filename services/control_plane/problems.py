"""Errors as RFC 9457 problem details: one clear line, and the fields that are wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from common.state.store import StoreError
from services.control_plane.bus import CommandError
from services.control_plane.sessions import InvalidValue, Unavailable, UnknownSession
from services.control_plane.states import WrongState
from services.explain import FieldProblem, explain

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

MOST_PROBLEMS = 20  # told of one request
LONGEST_LINE = 4000  # letters

PHRASES = {413: "Content Too Large", 422: "Unprocessable Content"}

OF_COMMAND = {
    "invalid": HTTPStatus.UNPROCESSABLE_ENTITY,
    "conflict": HTTPStatus.CONFLICT,
    "failed": HTTPStatus.BAD_GATEWAY,
    "gone": HTTPStatus.SERVICE_UNAVAILABLE,
    "timeout": HTTPStatus.GATEWAY_TIMEOUT,
}


class WrongField(BaseModel):
    """A field of the request that is wrong."""

    field: str = Field(description="its path, such as mask.kernel_size; empty: the request as a whole")
    message: str = Field(description="what is wrong with it, and what is allowed")


class Problem(BaseModel):
    """Why a request was not carried out (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="one line: what is wrong, and what to do")
    errors: list[WrongField] = []


def problem(
    status: int,
    detail: str,
    errors: list[FieldProblem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A response that says what went wrong."""
    content = Problem(
        title=phrase(status),
        status=int(status),
        detail=_line(detail),
        errors=[WrongField(field=_line(e.field), message=_line(e.message)) for e in errors or []],
    )
    return JSONResponse(content.model_dump(), status, headers, media_type=MEDIA_TYPE)


def phrase(status: int) -> str:
    """What a status is called in RFC 9110, whatever the Python version calls it."""
    return PHRASES.get(status) or HTTPStatus(status).phrase


def _line(text: str) -> str:
    """Text that somebody else may have chosen, as one line; the middle of a long one is left out."""
    line = " ".join(text.split())
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]}…{line[-half:]}"


def responses(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """What a route may answer instead of its result, for the OpenAPI document."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        int(status): {"description": phrase(status), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Have every error of ``app`` answered as a problem."""

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = explain_request(request, error)
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(map(str, problems)), problems)

    @app.exception_handler(InvalidValue)
    async def _invalid_value(_: Request, error: InvalidValue) -> JSONResponse:
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), error.problems)

    @app.exception_handler(UnknownSession)
    async def _unknown(_: Request, error: UnknownSession) -> JSONResponse:
        return problem(HTTPStatus.NOT_FOUND, str(error.args[0]))

    @app.exception_handler(WrongState)
    async def _wrong_state(_: Request, error: WrongState) -> JSONResponse:
        return problem(HTTPStatus.CONFLICT, str(error))

    @app.exception_handler(Unavailable)
    @app.exception_handler(StoreError)
    async def _unavailable(_: Request, error: Exception) -> JSONResponse:
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error))

    @app.exception_handler(CommandError)
    async def _command(_: Request, error: CommandError) -> JSONResponse:
        status = OF_COMMAND[error.kind]
        named = [FieldProblem.parse(str(error))] if error.kind == "invalid" else None
        return problem(status, str(error), named)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        detail, headers = str(error.detail), dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            known = allowed_methods(app, request.url.path)
            headers["Allow"] = ", ".join(known) if known else headers.get("Allow", "")
            detail = f"{request.method} is not possible here; allowed: {headers['Allow']}"
        return problem(error.status_code, detail, headers=headers)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "an error inside the control plane; see its log")


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """What may be asked of a path; several routes may share it."""
    document = app.openapi()
    return sorted(
        {
            method.upper()
            for template, operations in document["paths"].items()
            if compile_path(template)[0].match(path)
            for method in operations
        }
    )


def explain_request(request: Request, error: RequestValidationError) -> list[FieldProblem]:
    """The fields of a request that are wrong, by the schemas of the OpenAPI document."""
    document = request.app.openapi()
    operations = (item for path in document["paths"].values() for item in path.values())
    operation = next(item for item in operations if item["operationId"] == request.scope["route"].name)
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    parameters = {item["name"]: item["schema"] for item in operation.get("parameters", [])}
    problems: list[FieldProblem] = []
    every = error.errors()
    for item in every[:MOST_PROBLEMS]:
        place, *location = item["loc"]
        schema = body if place == "body" else {"properties": parameters}
        problems += explain([{**item, "loc": location}], schema, document)
    if len(every) > MOST_PROBLEMS:
        problems.append(FieldProblem("", f"and {len(every) - MOST_PROBLEMS} more things are wrong"))
    return problems
