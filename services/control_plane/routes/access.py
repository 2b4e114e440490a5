"""What routes are given: the control plane's parts, and the session that the path names."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request

from services.control_plane.bus import Bus
from services.control_plane.recorder import Recorder
from services.control_plane.session import Session
from services.control_plane.sessions import Sessions

LARGEST_NUMBER = 2**53 - 1
"""The largest whole number that every reader of JSON keeps exactly."""


def _sessions(request: Request) -> Sessions:
    return request.app.state.sessions


def _bus(request: Request) -> Bus:
    return request.app.state.bus


def _recorder(request: Request) -> Recorder:
    return request.app.state.recorder


TheSessions = Annotated[Sessions, Depends(_sessions)]
TheBus = Annotated[Bus, Depends(_bus)]
TheRecorder = Annotated[Recorder, Depends(_recorder)]


SessionName = Annotated[str, Path(description="id of a session, or *current*: the one that runs or ran last")]


async def _session(sessions: TheSessions, session_id: SessionName) -> Session:
    return await sessions.get(session_id)


TheSession = Annotated[Session, Depends(_session)]
