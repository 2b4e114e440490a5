"""The control plane's process: REST and control bus, until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from common.ending import ending_signals
from common.logs import last_word
from common.protection import NotProtected
from common.settings import Settings
from common.state.opening import open_store
from common.state.store import StoreError
from common.tokens import Tokens, tokens_for_http
from common.wire.control import error_line
from common.wire.planes import Planes
from services.control_plane.bus import Bus
from services.control_plane.connections import LARGEST_HEADER_BYTES, Connection, allow_many_files
from services.control_plane.guard import Access
from services.control_plane.https import Certificate, certificate_of
from services.control_plane.places import Places
from services.control_plane.recorder import Recorder

log = logging.getLogger(__name__)

GRACE_SECONDS = 5
WRONG_SETTING = 2  # exit code: nothing was started, and starting it again would not help
STALLED_SECONDS = 60.0  # a client that reads nothing for so long has its connection closed


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: any free one.

    Raises
    ------
    OSError
        In one line that says what to do, if it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}: {error.strerror}") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # of every connection that is accepted
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * STALLED_SECONDS))
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno or 0)
        raise OSError(
            error.errno, f"cannot listen on {host}:{port}: {reason}; choose another with --port"
        ) from error
    return listener


class Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: the process has one end, with one exit code.

    It waits for requests to be answered, so streams, which never are, end first.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End streams, then everything else."""
        self.config.app.state.sessions.followers.close()  # pyright: ignore
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to ``run_control``."""
        yield


def protection_of(settings: Settings) -> tuple[Tokens, Certificate | None]:
    """The tokens that REST asks for, and the certificate it is served with, before anything is started.

    Raises
    ------
    ValueError
        In one line, if they cannot be used, or if REST could be reached from other machines without a token.
    """
    try:
        return tokens_for_http(settings), certificate_of(settings)
    except NotProtected as error:
        raise ValueError(error.strerror) from error


def run_control(settings: Settings) -> int:
    """Run a control plane until it is told to end (SIGTERM, SIGINT); the process's exit code.

    A session that runs meanwhile goes on, and is taken up again by the next control plane on the same store.
    """
    try:
        tokens, certificate = protection_of(settings)
    except ValueError as error:
        last_word(f"cryoflux control: {error}")
        return WRONG_SETTING
    try:
        listener = listen(settings.http_host, settings.http_port)
        planes = Planes(settings, "control")
        planes.check_control_bus(settings.control_endpoint)
        bus = Bus(
            settings.control_endpoint,
            silent_after_seconds=settings.silent_after_seconds,
            security=planes.control_bus,
        )
        recorder = Recorder(open_store(settings.state))
    except (OSError, StoreError) as error:
        last_word(f"cryoflux control: {getattr(error, 'strerror', None) or error_line(error)}")
        return WRONG_SETTING if isinstance(error, NotProtected) else 1
    # torch comes with these and takes its time; a port that is taken should be told at once
    from reconstructor.finalise import finalise
    from services.control_plane.app import create_app

    host, port = listener.getsockname()[:2]
    scheme = "https" if certificate is not None else "http"
    log.info("REST on %s://%s:%d, control bus on %s", scheme, host, port, bus.endpoint)
    access = Access(tokens, settings.http_published)
    app = create_app(bus, recorder, finalise, settings.results, access, Places.of(settings))
    allow_many_files()
    asyncio.run(_serve(Server(served(app, certificate)), listener))
    return 0


def served(app: FastAPI, certificate: Certificate | None = None) -> uvicorn.Config:
    """How the application is served."""
    return uvicorn.Config(
        app,
        log_config=None,  # uvicorn's lines go where ours do
        log_level="warning",
        access_log=False,
        server_header=False,
        http=Connection,
        h11_max_incomplete_event_size=LARGEST_HEADER_BYTES,
        ws="none",
        ssl_certfile=certificate.file if certificate is not None else None,
        ssl_keyfile=certificate.key if certificate is not None else None,
        timeout_graceful_shutdown=GRACE_SECONDS,
        lifespan="on",
    )


async def _serve(server: Server, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    for number in ending_signals():
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    await server.serve(sockets=[listener])
