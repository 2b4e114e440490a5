"""A session's processes on one machine: starts the commands that a cluster would run, and restarts them."""

from __future__ import annotations

import json
import logging
import os
import random
import shlex
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common import logs
from services.failure import CannotRun

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
RESTARTS = 5
RESTART_WINDOW_SECONDS = 60.0
GRACE_SECONDS = 15.0
PORTS = range(20_000, 32_000)
LAST_BYTES = 65_536  # of a log, that its last line is looked for in
WRONG_SETTING = 2  # exit code of a part whose settings cannot be used
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class GaveUp(RuntimeError):
    """A process died again and again; the message has its last words."""


class WrongSetting(GaveUp):
    """It ended because of its settings; starting it again would not put that right."""


class Process:
    """One command, started again when it dies: after a growing pause, and at most a few times a minute.

    Parameters
    ----------
    arguments : sequence of str
        Of ``cryoflux``.
    log : Path
        What it prints goes to the end of this file.
    threads : int
        For the numerical libraries it uses.
    log_format : str
        As which it writes its log.
    environment : mapping, optional
        Variables over those of this process; unlike arguments, nobody else on the machine sees them.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log: Path,
        *,
        threads: int,
        log_format: logs.Format = "human",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self._log, self._threads, self._log_format = name, log, threads, log_format
        self._environment = environment or {}
        self._command = [sys.executable, "-m", "services.cli", *arguments, "--parent", str(os.getpid())]
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts: deque[float] = deque(maxlen=RESTARTS)
        self._start_at = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process that runs, or ran last."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the command in a process group of its own, so that a Ctrl-C reaches only the supervisor."""
        environment = {
            **os.environ,
            **dict.fromkeys(THREAD_VARIABLES, str(self._threads)),
            "CRYOFLUX_METRICS_PORT": "0",  # all of them on one machine: each tells where it serves its own
            **self._environment,
        }
        with self._log.open("ab") as log:
            log.write(self._first_line().encode())
            log.flush()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                process_group=0,
            )

    def _first_line(self) -> str:
        command = f"$ cryoflux {shlex.join(self._command[3:])}"
        if self._log_format == "human":
            return f"{command}\n"
        record = logging.makeLogRecord({"name": "supervisor", "levelname": "INFO", "msg": command})
        return logs.formatter("json", component="supervisor", name=self.name).format(record) + "\n"

    def watch(self, now: float) -> str | None:
        """Start the command again if it is dead and its pause is over; what happened, in one line.

        Raises
        ------
        GaveUp
            If it ended more than ``RESTARTS`` times within ``RESTART_WINDOW_SECONDS``, or of a wrong
            setting, which starting it again would not put right.
        """
        process = self._process
        if process is None:
            if now < self._start_at:
                return None
            self.start()
            return f"{self.name} started again"
        code = process.poll()
        if code is None:
            return None
        self._process = None
        if code == WRONG_SETTING:
            raise WrongSetting(self.last_words())
        if len(self._restarts) == RESTARTS and now - self._restarts[0] < RESTART_WINDOW_SECONDS:
            raise GaveUp(f"{self.name} ended {RESTARTS + 1} times in a minute: {self.last_words()}")
        recent = sum(now - then < RESTART_WINDOW_SECONDS for then in self._restarts)
        self._restarts.append(now)
        self._start_at = now + min(FIRST_PAUSE_SECONDS * 2**recent, LONGEST_PAUSE_SECONDS)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"{self.name} {how}: {self.last_words()}" if code > 0 else f"{self.name} {how}"

    @property
    def is_running(self) -> bool:
        """Whether it lives."""
        return self._process is not None and self._process.poll() is None

    def rest(self, now: float) -> None:
        """Start it again only after ``RESTART_WINDOW_SECONDS``, and then as if for the first time."""
        self._restarts.clear()
        self._start_at = now + RESTART_WINDOW_SECONDS

    def last_words(self) -> str:
        """The last line of its log."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - LAST_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return _message(lines[-1].strip()) if lines else ""

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self, until: float) -> None:
        """Wait for its end until a monotonic time, then kill it."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Supervisor:
    """A control plane, a detector and workers on this machine, on free local ports.

    Parameters
    ----------
    host, port
        Of the REST interface; port 0: any free one.
    workers : int
        How many; each gets its share of the cores, less one for the detector where there are several.
    logs_folder : Path
        Folder of the processes' logs.
    state : str or Path, optional
        The state store; else as the settings say.
    results : Path, optional
        Folder of the sessions that do not name their own; else as the settings say.
    spool : Path, optional
        Folder of the detector's spool; else as the settings say.
    environment : mapping, optional
        Variables of all the processes, over those of this one.
    report : callable
        Told, in one line, when a process died or was started again.
    """

    def __init__(
        self,
        host: str,
        port: int,
        workers: int,
        *,
        logs_folder: Path,
        state: str | Path | None = None,
        results: Path | None = None,
        spool: Path | None = None,
        log_format: logs.Format = "human",
        environment: Mapping[str, str] | None = None,
        report: Callable[[str], None],
    ) -> None:
        self._report = report
        self.logs_folder = logs_folder
        cores = os.cpu_count() or 1
        threads = max(1, (cores - 1) // workers)
        self.port = port or free_port(host)
        control = f"tcp://127.0.0.1:{free_port('127.0.0.1')}"
        logs_folder.mkdir(parents=True, exist_ok=True)
        common = ["--control-endpoint", control]
        self.control = Process(
            "control",
            [
                *("control", *common, "--host", host, "--port", str(self.port)),
                *(("--results", str(results.absolute())) if results is not None else ()),
            ],
            logs_folder / "control.log",
            threads=1,
            log_format=log_format,
            environment={  # an address may hold a password, and arguments are for all to see
                **(environment or {}),
                **({"CRYOFLUX_STATE": str(state)} if state is not None else {}),
            },
        )
        self.detector = Process(
            "detector",
            [
                *("detector", *common, "--data-bind", "tcp://127.0.0.1:0"),
                *(("--spool", str(spool.absolute())) if spool is not None else ()),
            ],
            logs_folder / "detector.log",
            threads=max(1, cores - workers * threads),
            log_format=log_format,
            environment=environment,
        )
        self.workers = [
            Process(
                name,
                ["reconstructor", "--name", name, *common, "--threads", str(threads)],
                logs_folder / f"{name}.log",
                threads=threads,
                log_format=log_format,
                environment=environment,
            )
            for name in (f"worker-{number}" for number in range(1, workers + 1))
        ]

    @property
    def processes(self) -> list[Process]:
        """All of them, the control plane first."""
        return [self.control, self.detector, *self.workers]

    def start(self) -> None:
        """Start everything."""
        for process in self.processes:
            process.start()

    def watch(self) -> None:
        """Look after everything once; to be called a few times a second.

        A worker that dies again and again is left out for a while, as long as another one lives: what is
        wrong with it (its GPU, its memory) need not be wrong with the others.

        Raises
        ------
        GaveUp
            If another process dies again and again, or the last worker, or one's settings are wrong.
        """
        now = time.monotonic()
        for process in self.processes:
            try:
                happened = process.watch(now)
            except WrongSetting:
                raise
            except GaveUp as error:
                others = (worker for worker in self.workers if worker is not process)
                if process not in self.workers or not any(worker.is_running for worker in others):
                    raise
                process.rest(now)
                happened = f"{error}; it rests for {RESTART_WINDOW_SECONDS:g} s, the other workers go on"
            if happened:
                self._report(happened)

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """End everything: asked first, killed after the grace period; nothing is left behind."""
        for process in self.processes:
            process.terminate()
        until = time.monotonic() + grace_seconds
        for process in self.processes:
            process.wait(until)


def _message(line: str) -> str:
    """What a line of a log says, JSON or not."""
    try:
        return json.loads(line)["message"]
    except (ValueError, KeyError, TypeError):
        return line


def free_port(host: str) -> int:
    """A TCP port that nobody listens on now, nor is likely to before it is used.

    The system gives ports from 32768 on (Linux) to whoever asks for any, as detectors and metrics do: one of
    those might be taken by a process that is started meanwhile.
    """
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise CannotRun(f"of 100 ports of {host} between {PORTS[0]} and {PORTS[-1]} none is free")
