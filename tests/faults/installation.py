"""A whole installation as its processes: control plane, detector and workers, steered by REST."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from services.supervisor import free_port
from tests.integration.bus import Place
from tests.starting import COMMAND_LINE, Process, start
from tests.unit.served import Reader
from tests.waiting import eventually

PATIENCE_SECONDS = 120.0  # starting three processes takes long where many do that at once
BASE = "/api/v1/sessions"
CURRENT = f"{BASE}/current"
OVER = ("completed", "failed")
ANYWHERE = Place()


class Installation:
    """Control plane, detector and workers, each started by its own command; REST is on loopback.

    Parameters
    ----------
    places : mapping, optional
        Where parts run; those not named run here.
    host : str
        Address under which the parts find the control plane.
    settings : dict
        Of all parts, as the environment says them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: Sequence[str] = ("worker-1",),
        state: str = "",
        host: str = "127.0.0.1",
        data_bind: str = "tcp://127.0.0.1:0",
        places: Mapping[str, Place] | None = None,
        **settings: Any,
    ) -> None:
        self.folder, self.places = folder, places or {}
        port = free_port("127.0.0.1")
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CRYOFLUX_CONTROL_ENDPOINT": f"tcp://{host}:{free_port(host)}",
            "CRYOFLUX_HEARTBEAT_SECONDS": "0.2",  # counters come five times a second
            **{f"CRYOFLUX_{name.upper()}": str(value) for name, value in settings.items()},
        }
        results, spool = str(folder / "results"), str(folder / "spool")
        self._commands = {
            "control": ["control", "--port", str(port), "--state", state or str(folder / "state.sqlite"),
                        "--results", results],
            "detector": ["detector", "--data-bind", data_bind, "--spool", spool],
            **{name: ["reconstructor", "--name", name, "--threads", "1"] for name in workers},
        }  # fmt: skip
        self.processes: dict[str, Process] = {}
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        try:
            for name in self._commands:
                self.start(name)
            self.becomes("ready")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        if error is not None:
            for name in self.processes:
                print(f"---- {name}\n{self.log(name)}")

    # ---- processes

    def start(self, name: str) -> None:
        """Start a part."""
        place = self.places.get(name, ANYWHERE)
        self.processes[name] = start(
            f"{place.code}\n{COMMAND_LINE}",
            self._commands[name],
            self._environment,
            self.folder / f"{name}.log",
            before=place.before,
            more=place.environment,
        )

    def log(self, name: str) -> str:
        """What a part printed."""
        return (self.folder / f"{name}.log").read_text()

    def kill(self, name: str) -> None:
        """End a part without giving it a chance to do anything."""
        self.processes[name].kill()
        self.processes[name].wait()

    def terminate(self, name: str) -> int:
        """Ask a part to end; its exit code."""
        self.processes[name].terminate()
        return self.processes[name].wait(PATIENCE_SECONDS)

    def freeze(self, name: str) -> None:
        """It is still there, but does nothing."""
        self.processes[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Go on."""
        self.processes[name].send_signal(signal.SIGCONT)

    # ---- what it says

    def ready(self) -> dict[str, Any]:
        """What /readyz says; nothing where nobody answers."""
        try:
            return self.client.get("/readyz").json()
        except httpx.TransportError:
            return {}

    def becomes(self, status: str) -> None:
        """Wait until /readyz says so."""
        eventually(lambda: self.ready().get("status") == status, f"the installation is {status}")

    def begin(self, **specification: Any) -> str:
        """Begin a session of numbered frames; its id."""
        pattern = {"kind": "pattern", "shape": [32, 32]}
        body = {"source": pattern, "camera": {"rate": 100}, **specification}
        answer = self.client.post(BASE, json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def current(self) -> dict[str, Any]:
        """The session that runs or ran last."""
        return self.client.get(CURRENT).json()

    def metrics(self) -> dict[str, Any]:
        """Its figures."""
        return self.client.get(f"{CURRENT}/metrics").json()

    def events(self) -> list[dict[str, Any]]:
        """Its history."""
        return self.client.get(f"{CURRENT}/events", params={"limit": 10_000}).json()

    def kinds(self) -> list[str]:
        """The kinds of its events."""
        return [event["kind"] for event in self.events()]

    def reaches(self, frames: int) -> None:
        """Wait until so many frames are acquired."""
        eventually(lambda: self.metrics()["frames"]["acquired"] >= frames, f"{frames} frames are acquired")

    def goes_on(self, frames: int = 100) -> None:
        """Frames are acquired and recovered all the while."""
        before, counted = self.metrics()["frames"], ("acquired", "acknowledged")
        eventually(
            lambda: min(self.metrics()["frames"][kind] - before[kind] for kind in counted) >= frames,
            "frames flow",
        )

    def written(self) -> int:
        """Bytes of the journals: frames that were recovered, whoever counts them."""
        journals = self.folder.glob("results/*/journal/*.csv")
        return sum(path.stat().st_size for path in journals)

    def frames_flow(self) -> None:
        """Frames are recovered, also where nobody can be asked."""
        before = self.written()
        eventually(lambda: self.written() > before + 20_000, "the journals grow")

    def finish(self) -> dict[str, Any]:
        """Stop the session; its view at the end."""
        answer = self.client.post(f"{CURRENT}/stop")
        assert answer.status_code == 200, answer.text
        eventually(lambda: self.current()["state"] in OVER, "it ends")
        return self.current()

    def follow(self, after: str = "") -> Reader:
        """The event stream, from ``after`` on."""
        return Reader(f"{self.url}{CURRENT}/stream", after)
