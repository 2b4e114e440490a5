"""``cryoflux live``: a whole session on this machine, steered by the same REST calls that anyone may make."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from common.session import SessionSpec
from services.control_plane.server import listen
from services.display import Display, curl, summary
from services.supervisor import GaveUp, Supervisor

READY_SECONDS = 180.0
OPEN_SECONDS = 180.0
LOST_CONTROL_SECONDS = 60.0
POLL_SECONDS = 0.25
WATCH_SECONDS = 0.2
INTERRUPTED = 130

RESULTS = ("recovered.mrcs", "references.mrcs", "recovered.star", "frames.csv", "session.json", "journal",
           "measurements")  # fmt: skip
LEFTOVERS = ("logs", "state.sqlite", "state.sqlite-wal", "state.sqlite-shm")


class CannotRun(RuntimeError):
    """The session cannot run, or not go on; the message is one line."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Request:
    """What ``cryoflux live`` was asked for."""

    spec: SessionSpec
    host: str
    port: int
    workers: int
    changes: Sequence[tuple[int, float]] = ()  # from a frame on, a compression factor
    overwrite: bool = False


def live(request: Request) -> int:
    """Run the session; the exit code: 0 if every frame acquired was recovered."""
    output = Path(request.spec.output).absolute()
    try:
        prepare_output(output, overwrite=request.overwrite)
        if request.port:
            listen(request.host, request.port).close()
    except OSError as error:
        raise CannotRun(error.strerror or str(error), exit_code=2) from error
    return asyncio.run(_Live(request, output).run())


def prepare_output(output: Path, *, overwrite: bool) -> None:
    """Make the results folder, empty of results.

    Raises
    ------
    CannotRun
        If it holds a session and ``overwrite`` is not set, or cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise CannotRun(f"--output: {output} is a file; name a folder", exit_code=2)
    if not overwrite and any((output / name).exists() for name in RESULTS):
        raise CannotRun(
            f"--output: {output} already holds a session; name another folder or give --overwrite",
            exit_code=2,
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in (*RESULTS, *LEFTOVERS):
            path = output / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise CannotRun(f"--output: {output}: {error.strerror}", exit_code=2) from error


class _Live:
    """A session that is being run: its processes, its REST client, and what the user sees."""

    def __init__(self, request: Request, output: Path) -> None:
        self._request, self._output = request, output
        self._display = Display(request.spec)
        self._supervisor = Supervisor(
            request.host,
            request.port,
            request.workers,
            logs=output / "logs",
            state=output / "state.sqlite",
            report=self._display.warn,
        )
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._client = httpx.AsyncClient(
            base_url=f"http://{request.host}:{self._supervisor.port}", timeout=OPEN_SECONDS
        )
        self._events_seen = 0

    async def run(self) -> int:
        """From the first process to the last line."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        self._supervisor.start()
        steering = asyncio.create_task(self._steer())
        others = [asyncio.create_task(self._watch()), asyncio.create_task(self._at_once.wait())]
        try:
            done, _ = await asyncio.wait([steering, *others], return_when=asyncio.FIRST_COMPLETED)
            if steering in done:
                return steering.result()
            for task in done:
                task.result()  # raises if the supervisor gave up
            self._display.warn("ended at once; what was not yet recovered is lost")
            return INTERRUPTED
        except GaveUp as error:
            raise CannotRun(f"{error}; see {self._output / 'logs'}") from error
        finally:
            self._display.close()
            for task in (steering, *others):
                task.cancel()
            await asyncio.gather(steering, *others, return_exceptions=True)
            await self._client.aclose()
            self._supervisor.stop(0.0 if self._at_once.is_set() else 15.0)

    def _interrupt(self) -> None:
        if self._stop.is_set():
            self._at_once.set()
        self._stop.set()

    async def _watch(self) -> None:
        while True:
            self._supervisor.watch()
            await asyncio.sleep(WATCH_SECONDS)

    # ---- the session

    async def _steer(self) -> int:
        await self._until_ready()
        if self._stop.is_set():
            return INTERRUPTED
        session = await self._start()
        self._display.header(session, str(self._client.base_url), self._request.workers)
        await self._follow()
        return await self._account()

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._stop.is_set():
            with contextlib.suppress(httpx.TransportError):
                if (await self._client.get("/readyz")).status_code == 200:
                    return
            if time.monotonic() > deadline:
                logs = self._output / "logs"
                raise CannotRun(f"the processes did not get ready within {READY_SECONDS:g} s; see {logs}")
            await asyncio.sleep(POLL_SECONDS)

    async def _start(self) -> dict[str, Any]:
        body = self._request.spec.model_copy(update={"output": str(self._output)}).model_dump(mode="json")
        answer = await self._client.post("/api/v1/sessions", json=body)
        if answer.status_code != 201:
            raise CannotRun(answer.json()["detail"], exit_code=2 if answer.status_code == 422 else 1)
        return answer.json()

    async def _follow(self) -> None:
        """Show how the session goes, make the planned changes, until it is over."""
        changes = sorted(self._request.changes)
        asked_to_stop = False
        heard_at = time.monotonic()
        while True:
            try:
                figures = (await self._get("metrics")).json()
                await self._tell_events()
                if self._stop.is_set() and not asked_to_stop:
                    asked_to_stop = True
                    self._display.note("stopping: what was acquired is delivered (Ctrl-C again ends at once)")
                    await self._client.post("/api/v1/sessions/current/stop")
                while changes and figures["frames"]["acquired"] >= changes[0][0] and not asked_to_stop:
                    await self._change(*changes.pop(0))
            except httpx.TransportError as error:
                if time.monotonic() - heard_at > LOST_CONTROL_SECONDS:
                    raise CannotRun("the control plane does not answer any more") from error
            else:
                heard_at = time.monotonic()
                self._display.update(figures)
                if figures["state"] in ("completed", "failed"):
                    for frame, factor in changes:
                        self._display.warn(
                            f"--change {frame}={factor:g}: the session ended before that frame"
                        )
                    return
            await asyncio.sleep(POLL_SECONDS)

    async def _change(self, frame: int, factor: float) -> None:
        self._display.note(curl(str(self._client.base_url), factor))
        answer = await self._client.patch(
            "/api/v1/sessions/current/acquisition", json={"compression_factor": factor}
        )
        if answer.status_code != 200:
            self._display.warn(f"--change {frame}={factor:g}: {answer.json()['detail']}")

    async def _tell_events(self) -> None:
        for event in (await self._get(f"events?after={self._events_seen}")).json():
            self._events_seen = event["number"]
            self._display.event(event)

    async def _get(self, what: str) -> httpx.Response:
        return (await self._client.get(f"/api/v1/sessions/current/{what}")).raise_for_status()

    async def _account(self) -> int:
        await self._tell_events()
        session = (await self._client.get("/api/v1/sessions/current")).json()
        self._display.close()
        path = self._output / "session.json"
        if path.exists():
            account = json.loads(path.read_text())
            summary(account, self._output)
            if account["frames"]["lost"]:
                reasons = ", ".join(
                    f"{reason} ({count})" for reason, count in account["frames"]["lost_by_reason"].items()
                )
                lost, acquired = account["frames"]["lost"], account["frames"]["acquired"]
                raise CannotRun(f"{lost} of {acquired} frames are lost: {reasons}")
        if session["state"] != "completed":
            raise CannotRun(f"the session failed: {session['error']}; see {self._output / 'logs'}")
        return 0


def fail(command: str, error: CannotRun) -> int:
    """Say in one line why a command cannot do its work; its exit code."""
    print(f"cryoflux {command}: {error}", file=sys.stderr)
    return error.exit_code
