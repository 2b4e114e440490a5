"""``cryoflux live`` and ``cryoflux serve``: all the processes on this machine, with a session and without.

A session is steered by the same REST calls that anyone may make.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from common.ending import ending_signals
from common.logs import Format
from common.roots import Roots, inputs_of, outputs_of
from common.session import SessionSpec
from common.settings import Settings
from common.tokens import Role, Tokens
from services.archiving import remove_archive
from services.clearing import clear
from services.client import INTERRUPTED, Ending, Plan, Remote, Steering, run
from services.control_plane.https import Certificate, trusting
from services.control_plane.places import Places, named_by
from services.control_plane.server import listen
from services.display import Display, serving
from services.failure import CannotRun, WrongOption
from services.priors import FIELD as PRIOR_FIELD
from services.supervisor import GRACE_SECONDS, GaveUp, Supervisor

READY_SECONDS = 180.0
WATCH_SECONDS = 0.2
ANYWHERE = ("", "0.0.0.0", "::")


@dataclass(frozen=True)
class Place:
    """Where the processes run, how many workers, and how REST is protected."""

    host: str
    port: int
    workers: int
    log_format: Format = "human"
    tokens: Tokens = field(default_factory=Tokens)
    certificate: Certificate | None = None

    def check(self) -> None:
        """See that the port can be had.

        Raises
        ------
        CannotRun
            If not, in one line that says what to do.
        """
        if not self.port:
            return
        try:
            listen(self.host, self.port).close()
        except OSError as error:
            raise CannotRun(error.strerror or str(error), exit_code=2) from error

    def remote(self, port: int) -> Remote:
        """The control plane as this machine reaches it."""
        return Remote(
            self._url("127.0.0.1" if self.host in ANYWHERE else self.host, port),
            self.tokens.secret(Role.OPERATOR) or "",
            trusting(self.certificate) if self.certificate is not None else None,
        )

    def console(self, port: int) -> str:
        """Where a browser finds the console; from other machines too if the host means every interface."""
        return self._url(socket.gethostname() if self.host in ANYWHERE else self.host, port) + "/"

    def _url(self, host: str, port: int) -> str:
        scheme = "https" if self.certificate is not None else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def live(plan: Plan, place: Place, *, overwrite: bool) -> int:
    """Run a session in its own processes; the exit code: 0 if every frame acquired was recovered."""
    output = Path(plan.spec.output or "output").absolute()
    spec, problems = Places().settled(plan.spec.model_copy(update={"output": str(output)}))
    for problem in problems:
        if problem.field == PRIOR_FIELD:  # all else is told by the control plane
            raise WrongOption(f"--parameter prior: {problem.message}")
    plan = Plan(spec, plan.changes)
    place.check()
    clear(output, overwrite=overwrite)
    if overwrite and plan.spec.archive is not None:
        remove_archive(Path(plan.spec.archive))
    display = Display()
    supervisor = Supervisor(
        place.host,
        place.port,
        place.workers,
        logs_folder=output / "logs",
        log_format=place.log_format,
        state=output / "state.sqlite",
        spool=output / "spool",
        environment=limits(place.host, output, plan.spec),
        report=display.warn,
    )

    async def session(ending: Ending) -> int:
        async with place.remote(supervisor.port) as remote:
            if await _ready(remote, supervisor, ending) is None:
                return INTERRUPTED
            steering = Steering(remote, display, ending, supervisor.logs_folder)
            await steering.start(plan.spec, place.workers, place.console(supervisor.port))
            await steering.follow(plan.changes)
            await steering.account()
            return 0

    return run(_supervised(supervisor, display, session))


def serve(place: Place, *, results: Path, state: str | None, logs: Path) -> int:
    """Keep a control plane, a detector and workers running until Ctrl-C; 0 if they ended as asked."""
    place.check()
    try:
        results.mkdir(parents=True, exist_ok=True)
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotRun(f"{error.filename}: {error.strerror}", exit_code=2) from error
    display = Display()
    supervisor = Supervisor(
        place.host,
        place.port,
        place.workers,
        logs_folder=logs,
        log_format=place.log_format,
        state=state,
        results=results,
        environment=limits(place.host, results.absolute()),
        report=display.warn,
    )

    async def service(ending: Ending) -> int:
        async with place.remote(supervisor.port) as remote:
            if await _ready(remote, supervisor, ending) is not None:
                serving(place.console(supervisor.port), remote.address, place.workers, results)
            await ending.wanted.wait()
            display.note("ending (Ctrl-C again ends at once)")
            with suppress(httpx.TransportError):
                await Steering(remote, display, ending, logs).stop_what_runs()
            return 0

    return run(_supervised(supervisor, display, service))


def limits(host: str, results: Path, spec: SessionSpec | None = None) -> dict[str, str]:
    """By which all processes keep to the folders of the settings, and to those of the command's own options.

    Parameters
    ----------
    results : Path
        Folder of the sessions that do not name their own, or of the only one.
    spec : SessionSpec, optional
        The session that the command itself asks for.
    """
    settings = Settings.load(http_host=host, results=str(results))
    reads, writes = named_by(spec) if spec is not None else ([], [])
    inputs, outputs = inputs_of(settings), outputs_of(settings)
    places = Places(
        Roots([*inputs.places, *reads]) if inputs.limited else inputs,
        Roots([*outputs.places, *writes]) if outputs.limited else outputs,
    )
    return places.environment()


async def _ready(remote: Remote, supervisor: Supervisor, ending: Ending) -> object | None:
    try:
        return await remote.until_ready(READY_SECONDS, ending)
    except CannotRun as error:
        raise CannotRun(f"{error}; see {supervisor.logs_folder}") from error


async def _supervised(
    supervisor: Supervisor, display: Display, work: Callable[[Ending], Coroutine[Any, Any, int]]
) -> int:
    """Do some work while the processes run; whatever becomes of it, none is left behind."""
    ending = Ending()
    ending.catch(*ending_signals())
    supervisor.start()
    working = asyncio.create_task(work(ending))
    others = [asyncio.create_task(_watch(supervisor)), asyncio.create_task(ending.at_once.wait())]
    try:
        done, _ = await asyncio.wait([working, *others], return_when=asyncio.FIRST_COMPLETED)
        if working in done:
            return working.result()
        for task in done:
            task.result()  # raises if the supervisor gave up
        display.warn("ended at once; what was not yet recovered is lost")
        return INTERRUPTED
    except GaveUp as error:
        raise CannotRun(f"{error}; see {supervisor.logs_folder}") from error
    finally:
        display.close()
        for task in (working, *others):
            task.cancel()
        await asyncio.gather(working, *others, return_exceptions=True)
        supervisor.stop(0.0 if ending.at_once.is_set() else GRACE_SECONDS)


async def _watch(supervisor: Supervisor) -> None:
    while True:
        supervisor.watch()
        await asyncio.sleep(WATCH_SECONDS)
