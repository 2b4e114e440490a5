"""A control plane of a few lines: it registers components, sends commands and listens, as a test says."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq

from common.protection import is_local
from common.session import SessionSpec
from common.wire.keys import CONTROL_BUS, Keyring, Security
from common.wire.link import Link, PeerGone
from common.wire.messages import Command, Event, Goodbye, Register, Registered, Reply, Telemetry
from tests.starting import Process, start

T = TypeVar("T")

DEADLINE_SECONDS = 120.0  # starting processes takes long where many do that at once

_DETECTOR = "from detector_sim.detector import run_detector as run; arguments = ()"
_WORKER = "from reconstructor.worker import run_worker as run; arguments = (sys.argv[2],)"
_RUN = """
import json, logging, sys
from common.settings import Settings
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
{imports}
sys.exit(run(Settings.load(**json.loads(sys.argv[1])), *arguments))
"""


@dataclass(frozen=True)
class Place:
    """Where a process runs: the command that brings it there, its variables, code that it begins with."""

    before: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    code: str = ""


HERE = Place()


class Bus:
    """The control bus and the processes of one test; on leaving, whatever still runs is killed.

    ``registered``, ``telemetry`` and ``events`` hold what components said, by name. With the setting *keys*
    everything is encrypted; without it, what other machines would reach is so as the settings allow it.
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", **settings: Any) -> None:
        self.folder = folder
        self._context: zmq.Context[Any] = zmq.Context()
        self.security = None
        if settings.get("keys"):
            self.security = Security(Keyring(Path(settings["keys"]), "control"), CONTROL_BUS)
        self.link = Link.router(self._context, f"tcp://{host}:*", self.security)
        self.endpoint = self.link.endpoint
        self.settings = {
            **({} if is_local(self.endpoint) or self.security else {"unprotected": ["planes"]}),
            "control_endpoint": self.endpoint,
            "data_bind": "tcp://127.0.0.1:0",
            "heartbeat_seconds": 0.1,
            "silent_after_seconds": 1.0,
            "threads": 1,
            "device": "cpu",
            "spool": str(folder / "spool"),
            **settings,
        }
        self.identities: dict[str, bytes] = {}
        self.registered: dict[str, Register] = {}
        self.registrations: list[str] = []
        self.telemetry: dict[str, dict[str, Any]] = {}
        self.events: list[Event] = []
        self.recovery: dict[str, Any] = {}
        self.processes: dict[str, Process] = {}
        self._replies: dict[str, Reply] = {}
        self._requests = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        self.link.close(0)
        self._context.destroy(0)
        if error is not None:
            for name in self.processes:
                print(f"---- {name}\n{self.log(name)}")

    # ---- processes

    def detector(self, place: Place = HERE, **settings: Any) -> None:
        """Start a detector."""
        self._start("detector", _DETECTOR, place, **settings)

    def worker(self, name: str, place: Place = HERE, **settings: Any) -> None:
        """Start a worker."""
        self._start(name, _WORKER, place, name, **settings)

    def _start(self, name: str, imports: str, place: Place, *arguments: str, **settings: Any) -> None:
        self.identities.pop(name, None)
        self.processes[name] = start(
            _RUN.format(imports=f"{imports}\n{place.code}"),
            [json.dumps({**self.settings, **settings}), *arguments],
            {**os.environ, "OMP_NUM_THREADS": "1"},
            self.folder / f"{name}.log",
            before=place.before,
            more=place.environment,
        )

    def log(self, name: str) -> str:
        """What a process printed."""
        return (self.folder / f"{name}.log").read_text()

    def kill(self, name: str) -> None:
        """End a process without giving it a chance to do anything."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def terminate(self, name: str) -> int:
        """Ask a process to end; its exit code."""
        self.processes[name].terminate()
        self.wait(lambda: self.processes[name].poll() is not None, dead=[name])
        return self.processes[name].returncode

    # ---- listening and commanding

    def wait(self, ready: Callable[[], T], *, dead: Collection[str] = ()) -> T:
        """What ``ready`` gives as soon as it is true; no process but those named may end meanwhile."""
        poller = zmq.Poller()
        self.link.register(poller)
        until = time.monotonic() + DEADLINE_SECONDS
        while not (value := ready()):
            assert time.monotonic() < until, f"waited {DEADLINE_SECONDS} s; last: {self.telemetry}"
            for name, process in self.processes.items():
                if name not in dead and process.poll() not in (None, -signal.SIGKILL, 0):
                    raise AssertionError(f"{name} ended: {self.log(name)}")
            poller.poll(50)
            self._receive()
        return value

    def _receive(self) -> None:
        while (received := self.link.receive()) is not None:
            match received.message:
                case Register() as register:
                    name = register.name
                    self.identities[name], self.registered[name] = received.identity, register
                    self.registrations.append(name)
                    if register.component == "detector":
                        self._attach(register.data_endpoint)
                    self._send(name, Registered(**self.recovery))
                case Telemetry(name=name, values=values):
                    self.telemetry[name] = values
                case Event() as event:
                    self.events.append(event)
                case Reply() as reply:
                    self._replies[reply.request] = reply
                case Goodbye():
                    pass
                case other:
                    raise AssertionError(f"not expected on the control bus: {other}")

    def _attach(self, endpoint: str) -> None:
        """Tell workers, those to come too, where the detector is."""
        self.recovery["data_endpoint"] = endpoint
        for name, register in self.registered.items():
            if register.component == "reconstructor":
                arguments = {"data_endpoint": endpoint}
                self._send(name, Command(request=f"attach {name}", verb="attach", arguments=arguments))

    def _send(self, name: str, message: Registered | Command) -> None:
        with contextlib.suppress(PeerGone, KeyError):  # it just ended, or another in its place begins
            self.link.send(message, to=self.identities[name])

    def ask(self, name: str, verb: str, **arguments: Any) -> Reply:
        """A command, once the component has registered, and its answer, whatever that is."""
        self.wait(lambda: name in self.identities)
        request = str(next(self._requests))
        self._send(name, Command(request=request, verb=verb, arguments=arguments))
        return self.wait(lambda: self._replies.get(request))  # pyright: ignore[reportReturnType]

    def command(self, name: str, verb: str, **arguments: Any) -> dict[str, Any]:
        """A command that must succeed; its result."""
        reply = self.ask(name, verb, **arguments)
        assert reply.ok, reply.error
        return reply.result

    def open(self, spec: SessionSpec, session: str = "session-1") -> dict[str, Any]:
        """Open a session when all are there; workers that register from now on recover as it says."""
        self.wait(lambda: self.processes.keys() <= self.identities.keys())
        self.recovery["recovery"] = {**spec.recovery.model_dump(), "recovery_id": "r1"}
        for name, register in self.registered.items():
            if register.component == "reconstructor":
                self.command(name, "recovery", recovery=spec.recovery.model_dump(), recovery_id="r1")
        return self.command("detector", "open", session=session, spec=spec.model_dump(mode="json"))

    def of_detector(self, counter: str) -> Any:
        """A counter of the detector as last told."""
        return self.telemetry.get("detector", {}).get(counter, 0)

    def finished(self) -> dict[str, Any]:
        """Wait until the series is over; the detector's final counters."""
        self.wait(lambda: any(event.kind in ("finished", "failed") for event in self.events))
        return self.telemetry["detector"]

    def kinds(self) -> list[str]:
        """The kinds of the events so far."""
        return [event.kind for event in self.events]
