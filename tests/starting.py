"""Processes of the product, forked from one that has imported already what they all need.

Nearly all of a process's start is importing torch and its like: two seconds of a core, and the tests of
faults start thousands. Forked they are processes as any other, with their own memory, files and sockets, and
are killed or stopped as any other. What must begin otherwise (in a network of its own, with a library
preloaded) is executed, as the product itself does it; so is all that the command line starts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol
from unittest.mock import patch

# nothing that starts threads when it is imported (blosc2, pandas): they would be missing in who is forked
IMPORTED = (
    "common.operators.spec", "common.settings", "common.wire.messages", "fastapi", "h5py", "httpx", "mrcfile",
    "numba", "prometheus_client", "redis", "rich.console", "scipy.fft", "services.cli", "torch", "uvicorn",
    "zmq",
)  # fmt: skip

COMMAND_LINE = "from services.cli import main\nmain()"  # takes what stands on it as arguments

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(list(IMPORTED))


class Process(Protocol):
    """What the tests use of a ``subprocess.Popen``."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def start(
    code: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    before: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
) -> Process:
    """Run ``code`` with ``arguments`` in a process whose output is appended to ``log``.

    ``before`` is a command to run it with, ``more`` are variables that its interpreter must begin with; where
    either is given it is executed, else forked.
    """
    if before or more:
        command = [*before, sys.executable, "-c", code, *arguments]
        with log.open("ab") as file:
            return subprocess.Popen(command, env={**environment, **(more or {})}, stdout=file, stderr=file)
    return _Forked(code, arguments, environment, log)


class _Forked:
    def __init__(
        self, code: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self._process = _server.Process(
            target=_run, args=(code, list(arguments), dict(environment), str(log), os.getcwd())
        )
        # read by the server's libraries as they are loaded
        with patch.dict(os.environ, OMP_NUM_THREADS="1"):
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(code: str, arguments: list[str], environment: dict[str, str], log: str, folder: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exec(code, {"__name__": "__main__"})  # what `python -c` does
