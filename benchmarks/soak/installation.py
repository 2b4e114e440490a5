"""``cryoflux serve`` as anybody would run it, and its processes and REST interface as the soak uses them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from benchmarks.soak.plan import WORKERS

PATIENCE_SECONDS = 180.0
PASSING = (409, 502, 503, 504)  # what a call may answer while processes are killed
OVER = ("completed", "failed")


class Unfit(RuntimeError):
    """The soak cannot go on: what did not happen, in one line."""


class Installation:
    """A running ``cryoflux serve`` with two workers, everything it writes in one folder.

    Parameters
    ----------
    settings : str
        By name, where they are not the usual ones.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        folder.mkdir(parents=True)
        self.folder, self.results = folder, folder / "results"
        self.shown = folder / "shown.txt"
        environment = {
            **os.environ,
            "CRYOFLUX_SPOOL": str(folder / "spool"),
            **{f"CRYOFLUX_{name.upper()}": value for name, value in settings.items()},
        }
        command = [
            *(sys.executable, "-m", "services.cli", "serve", "--port", "0"),
            *("--workers", str(len(WORKERS)), "--results", str(self.results)),
            *("--state", str(folder / "state.sqlite"), "--logs", str(folder / "logs")),
        ]
        with self.shown.open("w") as shown:
            self.process = subprocess.Popen(
                command, stdout=shown, stderr=shown, env=environment, process_group=0
            )
        self.client = httpx.Client(timeout=30.0)

    def __enter__(self) -> Self:
        try:
            self.client.base_url = httpx.URL(self._eventually(self._address, "the service is ready"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.end()

    def end(self) -> int:
        """Ctrl-C; the exit code of ``serve``."""
        for process in self.processes().values():
            process.send_signal(signal.SIGCONT)  # whoever hangs would have to be killed
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _address(self) -> str | None:
        found = re.search(r"console +(http://[\d.:]+)/", self.shown.read_text())
        return found[1] if found else None

    def _eventually(self, holds: Any, what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (value := holds()):
            if self.process.poll() is not None:
                raise Unfit(f"serve ended with code {self.process.returncode}: {self.last_words()}")
            if time.monotonic() > deadline:
                raise Unfit(f"not within {PATIENCE_SECONDS:g} s: {what}; see {self.folder / 'logs'}")
            time.sleep(0.1)
        return value

    def last_words(self) -> str:
        """The last line that ``serve`` showed."""
        lines = self.shown.read_text().strip().splitlines()
        return lines[-1] if lines else ""

    # ---- processes

    def processes(self) -> dict[str, psutil.Process]:
        """Those that run now, by name; ``serve`` is the supervisor itself."""
        found: dict[str, psutil.Process] = {}
        try:
            supervisor = psutil.Process(self.process.pid)
            children = supervisor.children()
        except psutil.Error:
            return found
        found["serve"] = supervisor
        for child in children:
            try:
                words = child.cmdline()
            except psutil.Error:
                continue
            if "reconstructor" in words:
                found[words[words.index("--name") + 1]] = child
            else:
                found.update({name: child for name in ("control", "detector") if name in words})
        return found

    def metrics_address(self, name: str) -> str | None:
        """Where a process serves its metrics, as it told its log last."""
        try:
            with (self.folder / "logs" / f"{name}.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - (1 << 20)))
                found = re.findall(rb"metrics on (http://\S+/metrics)", log.read())
        except OSError:
            return None
        return found[-1].decode() if found else None

    # ---- REST

    def ask(self, path: str) -> dict[str, Any] | None:
        """What a GET gives; None while nobody answers well."""
        try:
            answer = self.client.get(f"/api/v1/{path}")
            return answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        """Change something once; the status and what was said. Status 0: nobody answered."""
        try:
            answer = self.client.request(method, f"/api/v1/{path}", json=body)
        except httpx.HTTPError as error:
            return 0, type(error).__name__
        return answer.status_code, "" if answer.is_success else str(answer.json().get("detail", ""))

    def ready(self) -> None:
        """Wait until a detector and a worker are there."""

        def answers() -> bool:
            try:
                return self.client.get("/readyz").status_code == 200
            except httpx.HTTPError:
                return False

        self._eventually(answers, "detector and workers are there")

    def start(self, specification: dict[str, Any]) -> str:
        """Start a session; its id."""
        self.ready()
        status, said = self.call("POST", "sessions", specification)
        session = self.ask("sessions/current") if status == 201 else None
        if session is None:
            raise Unfit(f"the session was not started: {status} {said}")
        return str(session["id"])

    def stop(self, session: str) -> None:
        """Stop a session once its detector is there: else what it still owes would be given up."""
        self.ready()

        def stopped() -> bool:
            status, _ = self.call("POST", f"sessions/{session}/stop")
            return status == 200 or self.is_over(session)

        self._eventually(stopped, f"session {session} is stopped")

    def is_over(self, session: str) -> bool:
        """Whether a session has ended."""
        found = self.ask(f"sessions/{session}")
        return found is not None and found["state"] in OVER

    def finished(self, session: str) -> dict[str, Any]:
        """Wait for a session's end, however long frames go on coming back; what the interface shows of it."""
        deadline, frames = time.monotonic() + PATIENCE_SECONDS, -1
        while not self.is_over(session):
            figures = self.ask(f"sessions/{session}/metrics")
            if figures is not None and figures["frames"]["acknowledged"] != frames:
                frames = figures["frames"]["acknowledged"]
                deadline = time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > deadline:
                raise Unfit(f"session {session}: no frame came back for {PATIENCE_SECONDS:g} s")
            if self.process.poll() is not None:
                raise Unfit(f"serve ended with code {self.process.returncode}: {self.last_words()}")
            time.sleep(0.1)
        return self._eventually(lambda: self.ask(f"sessions/{session}"), f"session {session} is shown")
