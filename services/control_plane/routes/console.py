"""The web console: static files, nothing that is built and nothing from elsewhere."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).parent.parent / "console"

# Not those of the machine: a registry that takes .js for plain text would leave the page blank.
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".LICENSE": "text/plain; charset=utf-8",
}

HEADERS = {
    # everything from here, nothing inline, in nobody's frame
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # asked for again each time, answered with 304 unless the console was updated
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


class _File(NamedTuple):
    content: bytes
    etag: str


@router.api_route("/", methods=["GET", "HEAD"])
async def console_page(request: Request) -> Response:
    """The page."""
    return _answer(request, "index.html")


@router.api_route("/console/{path:path}", methods=["GET", "HEAD"])
async def console_file(request: Request, path: str) -> Response:
    """What the page needs."""
    return _answer(request, path)


def _answer(request: Request, path: str) -> Response:
    content_type = CONTENT_TYPES.get(PurePosixPath(path).suffix)
    if content_type is None or path not in _paths():
        raise HTTPException(HTTPStatus.NOT_FOUND, f"no such page: {request.url.path}; the console is at /")
    place = FOLDER / path
    file = _read(path, place.stat().st_mtime_ns)
    headers = {**HEADERS, "ETag": file.etag}
    known = request.headers.get("if-none-match", "").split(",")
    if file.etag in (tag.strip().removeprefix("W/") for tag in known):  # W/: a proxy compressed it
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    # the server leaves the content of an answer to HEAD away
    return Response(file.content, headers=headers, media_type=content_type)


@lru_cache(maxsize=1)
def _paths() -> frozenset[str]:
    """The files there are: a path that is asked for is looked up, never opened."""
    return frozenset(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())


@lru_cache(maxsize=64)
def _read(path: str, changed_at: int) -> _File:
    content = (FOLDER / path).read_bytes()
    return _File(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
