"""Single frames: what is known of them, and pictures."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response
from starlette.exceptions import HTTPException

from common.roots import NotAllowed
from reconstructor.journal import find_row
from services.control_plane.models import FrameView
from services.control_plane.preview import Contrast, NoPicture, Scale, View, picture
from services.control_plane.routes.access import LARGEST_NUMBER, TheSession, TheSessions
from services.control_plane.routes.sessions import SEARCHING
from services.control_plane.sessions import InvalidValue
from services.explain import FieldProblem

router = APIRouter(prefix="/sessions/{session_id}/frames", tags=["frames"])


FrameId = Annotated[int, Path(ge=0, le=LARGEST_NUMBER, description="counts from 0 within the session")]


async def results_folder(sessions: TheSessions, session: TheSession) -> FilePath:
    """The results of a session, whoever has named it: the store may be shared."""
    if session.opened.get("output") is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "the session has no results yet")
    try:
        return await asyncio.to_thread(sessions.places.results, session.opened)
    except (NotAllowed, OSError) as error:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"results cannot be read: {error}") from None


Results = Annotated[FilePath, Depends(results_folder)]


@router.get("/{frame_id}", responses=SEARCHING)
async def frame(results: Results, frame_id: FrameId) -> FrameView:
    """How a frame was taken and recovered, and how good it is; as soon as its result is on disk."""
    try:
        row = await asyncio.to_thread(find_row, results, frame_id)
    except (KeyError, OSError):
        raise HTTPException(HTTPStatus.NOT_FOUND, f"frame {frame_id} is not recovered (yet)") from None
    return FrameView.of(row)


@router.get(
    "/{frame_id}/preview.png",
    response_class=Response,
    responses={200: {"description": "8-bit grey", "content": {"image/png": {}}}, **SEARCHING},
)
async def preview(
    results: Results,
    frame_id: FrameId,
    view: Annotated[View, Query(description="which picture of the frame")] = View.RECOVERED,
    size: Annotated[
        int | None, Query(ge=16, le=4096, description="longer side of the picture, pixels")
    ] = None,
    low: Annotated[float, Query(ge=0, le=100, description="percentile that is drawn black")] = 1.0,
    high: Annotated[float, Query(ge=0, le=100, description="percentile that is drawn white")] = 99.0,
    scale: Annotated[
        Scale,
        Query(
            description="whose percentiles: the picture's own, or the reference's where the frame has one "
            "(recovered: the same range of grey; residual: a range as wide, around zero)"
        ),
    ] = Scale.OWN,
) -> Response:
    """A frame as a picture.

    *reference*: the frame as acquired (only of frames also sent whole). *measurement*: what came over the
    wire. *recovered*: the recovered image. *residual*: what of the measurement the recovered image leaves
    unexplained, A⁺(y − A x).
    """
    if low >= high:
        raise InvalidValue([FieldProblem("low", f"must be below high, which is {high:g}, got {low:g}")])
    contrast = Contrast(low, high, scale)
    try:
        png = await asyncio.to_thread(picture, results, frame_id, view, size, contrast)
    except NoPicture as error:
        raise HTTPException(HTTPStatus.NOT_FOUND, str(error)) from error
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})
