"""A session steered over REST, as anyone may steer it: what ``live`` and ``start`` have in common.

Nothing heavy is imported, so that the small commands (``status``, ``stop``, ...) answer at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from services.display import Display, curl, setting, standing, summary
from services.failure import CannotRun, WrongOption

if TYPE_CHECKING:
    from common.session import SessionSpec

ANSWER_SECONDS = 180.0  # opening a session may read a large structure, or build a large operator
CONNECT_SECONDS = 10.0
LOST_CONTROL_SECONDS = 60.0
POLL_SECONDS = 0.25
INTERRUPTED = 130
OVER = ("completed", "failed")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TOKEN_VARIABLE = "CRYOFLUX_TOKEN"


class Ending:
    """What the user asks for by signals: first to end, then to end at once."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.at_once = asyncio.Event()

    def catch(self, *numbers: signal.Signals) -> None:
        """Listen to these signals from now on."""
        loop = asyncio.get_running_loop()
        for number in numbers:
            loop.add_signal_handler(number, self._hang_up if number == signal.SIGHUP else self._ask)

    def _hang_up(self) -> None:
        """The terminal is gone: nothing can be shown there any more, and trying would fail."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            if stat.S_ISCHR(os.fstat(stream).st_mode):  # a file or a pipe goes on being written to
                os.dup2(nowhere, stream)
        self._ask()

    def _ask(self) -> None:
        if self.wanted.is_set():
            self.at_once.set()
        self.wanted.set()


@dataclass(frozen=True)
class Plan:
    """A session as it was asked for on the command line."""

    spec: SessionSpec
    changes: Sequence[tuple[int, float]] = ()  # from a frame on, a compression factor


class Remote:
    """A control plane, by its address.

    Every method raises ``CannotRun`` in one line if the control plane refuses, and ``httpx.TransportError``
    if it does not answer.

    Parameters
    ----------
    token : str
        Shown with every request; empty: none is.
    verify : ssl.SSLContext, optional
        Whose certificates are trusted; else those of the system's authorities, or of ``SSL_CERT_FILE``.
    """

    def __init__(self, address: str, token: str = "", verify: ssl.SSLContext | None = None) -> None:
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        try:
            url = httpx.URL(self.address)
        except httpx.InvalidURL as error:
            raise WrongOption(f"--url: {address}: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise WrongOption(f"--url: {address}: http://host:port expected")
        self.asks_token = bool(token)
        # a proxy that the environment names does not reach this machine
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            trust_env=url.host not in LOOPBACK,
            verify=verify or _trusted(url.scheme),
        )

    async def __aenter__(self) -> Remote:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What it answers to one request below ``/api/v1``."""
        answer = await self._client.request(method, f"/api/v1/{path}", json=body)
        self._let_in(answer)
        if not answer.is_success:
            raise CannotRun(_reason(answer), exit_code=2 if answer.status_code == 422 else 1)
        return answer.json()

    async def readiness(self) -> Mapping[str, Any]:
        """Whether sessions can run, ready or not."""
        answer = await self._client.get("/readyz")
        self._let_in(answer)
        try:
            ready = answer.json()
            ready["status"], ready["workers"]
        except (ValueError, KeyError, TypeError):
            raise CannotRun(f"{self.address} is no control plane: {_reason(answer)}") from None
        return ready

    async def until_ready(self, seconds: float, ending: Ending) -> Mapping[str, Any] | None:
        """Wait for a detector and a worker; how ready it is, or None if the user wants to end first.

        Raises
        ------
        CannotRun
            If that does not happen within ``seconds``; the message says what is missing.
        """
        deadline = time.monotonic() + seconds
        while not ending.wanted.is_set():
            missing = "no answer"
            try:
                answer = await self._client.get("/readyz")
                self._let_in(answer)
                if answer.status_code == 200:
                    return answer.json()
                missing = _reason(answer)
            except (httpx.TransportError, ValueError) as error:
                missing = " ".join(str(error).split()) or missing
            if time.monotonic() > deadline:
                raise CannotRun(f"{self.address} was not ready within {seconds:g} s: {missing}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wanted.wait(), POLL_SECONDS)
        return None

    def _let_in(self, answer: httpx.Response) -> None:
        """Say what to set if the control plane does not let us in."""
        if answer.status_code == 401 and not self.asks_token:
            raise CannotRun(f"{self.address} asks for a token: set {TOKEN_VARIABLE}")
        if answer.status_code == 401:
            raise CannotRun(f"{self.address} knows no such token: set {TOKEN_VARIABLE} to one it knows")
        if answer.status_code == 403:
            raise CannotRun(f"{self.address} refuses: {_reason(answer)}; set {TOKEN_VARIABLE}")


def own_token() -> str:
    """The token that a command shows: of ``CRYOFLUX_TOKEN``, else the operator's or viewer's of the settings.

    Raises
    ------
    CannotRun
        If it, or a setting, cannot be used.
    """
    from common.tokens import SHAPE

    token, name = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
    if not token:
        from common.settings import Settings

        try:
            settings = Settings.load()
        except ValueError as error:
            raise CannotRun(str(error), exit_code=2) from error
        secret = settings.operator_token or settings.viewer_token
        token, name = secret.get_secret_value() if secret is not None else "", "the settings"
    if token and not SHAPE.fullmatch(token):
        raise CannotRun(
            f"the token of {name} is none: only letters, digits and -._~+/= can be in one", exit_code=2
        )
    return token


def _trusted(scheme: str) -> ssl.SSLContext | bool:
    """Who is trusted to say who a server is; asked of the environment for servers of this machine too."""
    if scheme != "https":
        return True
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise WrongOption(f"SSL_CERT_FILE: {os.environ.get('SSL_CERT_FILE')}: {error.strerror}") from error


class Steering:
    """A session from its start to its account, with what the user sees of it.

    ``logs``: where to look when it fails, if that is known here.
    """

    def __init__(self, remote: Remote, display: Display, ending: Ending, logs: Path | None = None) -> None:
        self._remote, self._display, self._ending, self._logs = remote, display, ending, logs
        self._id, self._asked_to_stop = "", False
        self._events_seen = 0

    async def start(self, spec: SessionSpec, workers: int, console: str = "") -> None:
        """Start it; returns when the detector acquires."""
        session = await self._remote.ask("POST", "sessions", spec.model_dump(mode="json"))
        self._id = session["id"]
        address = self._remote.address
        self._display.header(session, address, console or f"{address}/", workers, self._remote.asks_token)

    async def stop_what_runs(self) -> None:
        """Stop the session that runs, whoever started it, and wait until its results are on disk."""
        try:
            session = await self._remote.ask("GET", "sessions/current")
        except CannotRun:  # there was none
            return
        if session["state"] in OVER:
            return
        self._id, self._asked_to_stop = session["id"], True
        self._display.note(f"stopping session {self._id}: what was acquired is delivered")
        if await self._stop():
            await self.follow(())

    async def follow(self, changes: Sequence[tuple[int, float]]) -> None:
        """Show how the session goes, make the planned changes, until it is over."""
        changes = sorted(changes)
        heard_at = time.monotonic()
        while True:
            try:
                figures = await self._get("/metrics")
                await self._tell_events()
                if self._ending.wanted.is_set() and not self._asked_to_stop and figures["state"] not in OVER:
                    self._asked_to_stop = True
                    self._display.note("stopping: what was acquired is delivered (Ctrl-C again ends at once)")
                    await self._stop()
                while changes and figures["frames"]["acquired"] >= changes[0][0] and not self._asked_to_stop:
                    await self._change(*changes.pop(0))
            except httpx.TransportError as error:
                if time.monotonic() - heard_at > LOST_CONTROL_SECONDS:
                    raise CannotRun("the control plane does not answer any more") from error
            else:
                heard_at = time.monotonic()
                self._display.update(figures)
                if figures["state"] in OVER:
                    for frame, factor in changes:
                        self._display.warn(
                            f"--change {frame}={factor:g}: the session ended before that frame"
                        )
                    return
            await asyncio.sleep(POLL_SECONDS)

    async def account(self) -> None:
        """Show what the session gained and what it cost.

        Raises
        ------
        CannotRun
            If frames were lost, or the session failed.
        """
        await self._tell_events()
        session, figures = await self._get(""), await self._get("/metrics")
        self._display.close()
        if session["output"] is not None:
            summary(_account(figures), Path(session["output"]))
        frames = figures["frames"]
        if frames["lost"]:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in frames["lost_by_reason"].items())
            raise CannotRun(f"{frames['lost']} of {frames['acquired']} frames are lost: {reasons}")
        if session["state"] != "completed":
            where = f"; see {self._logs}" if self._logs else ""
            raise CannotRun(f"the session failed: {session['error']}{where}")

    async def _stop(self) -> bool:
        try:
            await self._remote.ask("POST", f"sessions/{self._id}/stop")
        except CannotRun as error:  # it may be over already
            self._display.note(str(error))
            return False
        return True

    async def _change(self, frame: int, factor: float) -> None:
        self._display.note(curl(self._remote.address, factor, self._remote.asks_token))
        try:
            await self._remote.ask(
                "PATCH", f"sessions/{self._id}/acquisition", {"compression_factor": factor}
            )
        except CannotRun as error:
            self._display.warn(f"--change {frame}={factor:g}: {error}")

    async def _tell_events(self) -> None:
        for event in await self._get(f"/events?after={self._events_seen}"):
            self._events_seen = event["number"]
            self._display.event(event)

    async def _get(self, what: str) -> Any:
        return await self._remote.ask("GET", f"sessions/{self._id}{what}")


def start(url: str, plan: Plan, *, wait_seconds: float, detach: bool) -> int:
    """Start a session at a control plane that runs elsewhere, and follow it."""
    display = Display()

    async def session(remote: Remote, ending: Ending) -> int:
        ready = await remote.until_ready(wait_seconds, ending)
        if ready is None:
            return INTERRUPTED
        steering = Steering(remote, display, ending)
        await steering.start(plan.spec, ready["workers"])
        if not detach:
            await steering.follow(plan.changes)
            await steering.account()
        return 0

    async def work() -> int:
        ending = Ending()
        ending.catch(signal.SIGINT, signal.SIGTERM)
        async with Remote(url, own_token()) as remote:
            working = asyncio.create_task(session(remote, ending))
            leaving = asyncio.create_task(ending.at_once.wait())
            try:
                await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    return working.result()
                display.warn("not followed any more; the session goes on without this command")
                return INTERRUPTED
            finally:
                display.close()
                for task in (working, leaving):
                    task.cancel()
                await asyncio.gather(working, leaving, return_exceptions=True)

    return run(work())


def status(url: str, session: str) -> int:
    """Show what is there and how a session goes; 0 if sessions can run."""

    async def work() -> int:
        async with Remote(url, own_token()) as remote:
            ready = await remote.readiness()
            try:
                figures = await remote.ask("GET", f"sessions/{session}/metrics")
            except CannotRun:
                if session != "current":
                    raise
                figures = None  # no session yet
            standing(ready, figures)
            return 0 if ready["status"] != "not ready" else 1

    return run(work())


def steer(url: str, session: str, verb: str) -> int:
    """Pause, resume or stop a session."""

    async def work() -> int:
        async with Remote(url, own_token()) as remote:
            answer = await remote.ask("POST", f"sessions/{session}/{verb}")
            print(f"session {answer['id']} is {answer['state']}")
            return 0

    return run(work())


def change(url: str, session: str, compression: float) -> int:
    """Change the compression factor."""

    async def work() -> int:
        async with Remote(url, own_token()) as remote:
            answer = await remote.ask(
                "PATCH", f"sessions/{session}/acquisition", {"compression_factor": compression}
            )
            print(setting(answer))
            return 0

    return run(work())


def _account(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a session that is over, as its ``session.json`` has them."""
    frames = figures["frames"]
    return {**figures, "frames": {**frames, "recovered": frames["acknowledged"]}}


def _reason(answer: httpx.Response) -> str:
    """Why a request was refused, in one line, whoever answered it."""
    try:
        return answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase}"


def run(work: Any) -> int:
    """Run a command's coroutine; what the network does to it is told in one line."""
    try:
        return asyncio.run(work)
    except httpx.TransportError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CannotRun(f"the control plane does not answer: {reason}") from error
