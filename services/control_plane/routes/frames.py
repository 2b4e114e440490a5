"""Single frames, as pictures."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from starlette.exceptions import HTTPException

from services.control_plane.preview import NoPicture, View, picture
from services.control_plane.routes.access import TheSession
from services.control_plane.routes.sessions import LOOKING

router = APIRouter(prefix="/sessions/{session_id}/frames", tags=["frames"])


@router.get(
    "/{frame_id}/preview.png",
    response_class=Response,
    responses={200: {"description": "8-bit grey", "content": {"image/png": {}}}, **LOOKING},
)
async def preview(
    session: TheSession,
    frame_id: Annotated[int, Path(ge=0)],
    view: Annotated[View, Query(description="which picture of the frame")] = View.RECOVERED,
    size: Annotated[
        int | None, Query(ge=16, le=4096, description="longer side of the picture, pixels")
    ] = None,
) -> Response:
    """A frame as a picture, its contrast from the 1st to the 99th percentile.

    *reference*: the frame as acquired (only of frames also sent whole). *measurement*: what came over the
    wire. *recovered*: the recovered image. *residual*: what of the measurement the recovered image leaves
    unexplained, A⁺(y − A x).
    """
    output = session.opened.get("output")
    if output is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "the session has no results yet")
    try:
        png = await asyncio.to_thread(picture, output, frame_id, view, size)
    except NoPicture as error:
        raise HTTPException(HTTPStatus.NOT_FOUND, str(error)) from error
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})
