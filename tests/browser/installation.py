"""A real installation for browser tests: `cryoflux serve` with its own processes, results and state."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests import waiting

PATIENCE_SECONDS = 150.0
eventually = partial(waiting.eventually, seconds=PATIENCE_SECONDS)


class Installation:
    """Control plane, detector and two workers under the supervisor, as a user runs them.

    Parameters
    ----------
    folder : Path
        Of its results, its state and its settings.
    tokens : str
        Settings of the configuration file, such as ``operator_token``; the client shows the operator's.
    """

    def __init__(self, folder: Path, **tokens: str) -> None:
        self.folder = folder
        self._printed = folder / "serve.txt"
        self._configuration = folder / "cryoflux.toml"
        self._configure(tokens)
        with self._printed.open("w") as printed:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "serve", "--port", "0", "--workers", "2",
                 "--results", str(folder / "results"), "--state", str(folder / "state.sqlite")],
                stdout=printed, stderr=subprocess.STDOUT, process_group=0,
                env={**os.environ, "CRYOFLUX_SILENT_AFTER_SECONDS": "2",
                     "CRYOFLUX_CONFIG": str(self._configuration)},
            )  # fmt: skip
        self.client = httpx.Client(timeout=60)
        try:
            self.url = eventually(self._address, "serve tells its address")
            self.client.base_url = f"{self.url}/api/v1/"
            self._show(tokens)
            eventually(self._ready, f"a detector and two workers\n{self._printed.read_text()}")
        except BaseException:
            self.close()
            raise

    def _configure(self, tokens: dict[str, str]) -> None:
        lines = (f'{name} = "{value}"\n' for name, value in tokens.items())
        self._configuration.write_text("".join(lines))

    def _show(self, tokens: dict[str, str]) -> None:
        token = tokens.get("operator_token")
        self.client.headers.pop("authorization", None)
        if token is not None:
            self.client.headers["authorization"] = f"Bearer {token}"

    def change(self, **tokens: str) -> None:
        """Other tokens: the control plane is killed, and its successor reads the new ones."""
        self._configure(tokens)
        self._show(tokens)
        before = self.child("control").pid
        self.child("control").kill()

        def another() -> bool:
            try:
                return self.child("control").pid != before and self._ready()
            except LookupError:
                return False

        eventually(another, "another control plane takes over")

    def _address(self) -> str | None:
        assert self.process.poll() is None, self._printed.read_text()
        found = re.search(r"console +(http://[\d.:]+)", self._printed.read_text())
        return found[1] if found else None

    def _ready(self) -> bool:
        try:
            answer = self.client.get(f"{self.url}/readyz", timeout=10)
        except httpx.TransportError:
            return False
        return answer.status_code == 200 and answer.json()["workers"] == 2

    def child(self, *words: str) -> psutil.Process:
        """The running process with these words on its command line."""
        for process in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):  # it ended, and nobody has taken notice yet
                if all(word in process.cmdline() for word in words):
                    return process
        raise LookupError(f"no process {words}")

    @contextlib.contextmanager
    def without_control_plane(self) -> Iterator[None]:
        """The control plane is killed, and stays so to the end: its supervisor is stopped meanwhile."""
        supervisor = psutil.Process(self.process.pid)
        supervisor.suspend()
        try:
            self.child("control").kill()
            yield
        finally:
            supervisor.resume()

    def detector(self) -> str:
        """Where the detector serves its own metrics."""
        targets = self.client.get(f"{self.url}/metrics/targets").json()
        return next(t["targets"][0] for t in targets if t["labels"]["component"] == "detector")

    def acknowledged(self, detector: str) -> int:
        """Frames recovered and on disk, as the detector at that address says itself."""
        text = self.client.get(f"http://{detector}/metrics").text
        found = re.search(r"^cryoflux_frames_acknowledged_total(?:\{.*\})? (\S+)$", text, re.MULTILINE)
        assert found, text
        return int(float(found[1]))

    def start(self, **changes: Any) -> dict[str, Any]:
        """A lively session: small frames, many references."""
        spec = {
            "camera": {"rate": 40, "reference_every": 10},
            "link_mbit_per_s": 8,
            **changes,
        }
        answer = self.client.post("sessions", json=spec)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def restart(self) -> dict[str, Any]:
        """Another session in the place of the one that runs."""
        self.stop_session()
        return self.start()

    def session(self) -> dict[str, Any]:
        """The session that runs or ran last."""
        return self.client.get("sessions/current").json()

    def stop_session(self) -> None:
        """Stop what runs, and wait until it is over."""

        def over() -> bool:
            answer = self.client.get("sessions/current")
            if answer.status_code == 404:
                return True
            state = answer.json()["state"]
            if state in ("running", "paused"):
                self.client.post("sessions/current/stop")
            return state in ("completed", "failed")

        eventually(over, "the session is over")

    def close(self) -> None:
        """End everything, asked first."""
        self.client.close()
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for child in children:
            if child.is_running():
                child.kill()
