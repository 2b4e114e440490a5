"""The process that packs a session's archive while the session runs; the control plane's end of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.wire.control import error_line
from services.supervisor import THREAD_VARIABLES

GRACE_SECONDS = 5.0


class Archiver:
    """Packs with low priority, in a process of its own: frames do not wait for it, and cannot fail of it.

    Parameters
    ----------
    output : Path
        The session's results.
    file : Path
        The archive.
    specification : mapping
        ``common.session.SessionSpec`` as JSON.
    failed : callable
        Told, in one line, when the archive cannot be gone on with.
    environment : mapping, optional
        Of the process, over that of this one.
    """

    def __init__(
        self,
        output: Path,
        file: Path,
        specification: Mapping[str, Any],
        failed: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._output, self.file, self._specification = output, file, specification
        self._environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), **(environment or {})}
        self._failed = failed
        self._process: Process | None = None
        self._listener: asyncio.Task[None] | None = None
        self._said: dict[str, Any] = {}
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Begin, or go on with what a process before this one left."""
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start()

    async def _start(self) -> None:
        command = [sys.executable, "-m", "services.cli", "archive", str(self._output), str(self.file)]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command, "--follow", "--parent", str(os.getpid()), stdin=PIPE, stdout=PIPE,
                env=self._environment, process_group=0,
            )  # fmt: skip
        except OSError as error:
            self._hear({"error": error_line(error)})
            return
        self._listener = asyncio.create_task(self._listen(self._process))
        await self._tell({"specification": dict(self._specification)})

    async def finish(self, account: Mapping[str, Any]) -> dict[str, Any]:
        """Have everything packed; what the archive holds, or ``error``.

        Parameters
        ----------
        account : mapping
            What ``session.json`` says.
        """
        for _ in range(2):
            if self._said:
                break
            await self.start()  # unless it runs
            await self._tell({"account": dict(account)})
            if self._listener is not None:
                await self._listener
        else:
            if not self._said:
                self._hear({"error": "the process that packs it was killed"})
        return {"path": str(self.file), **self._said}

    async def close(self) -> None:
        """Leave it as it is; another process may go on with it."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), GRACE_SECONDS)
            except TimeoutError:
                self._process.kill()
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    async def _tell(self, message: Mapping[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(OSError):  # it is gone; ``finish`` sees to that
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            await self._process.stdin.drain()

    async def _listen(self, process: Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            with contextlib.suppress(ValueError):
                self._hear(json.loads(line))
        await process.wait()

    def _hear(self, said: Mapping[str, Any]) -> None:
        self._said = dict(said)
        if "error" in said:
            self._failed(f"archive {self.file}: {said['error']}")
