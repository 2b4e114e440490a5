"""A real Redis server that a test starts, kills, freezes and starts again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from services.supervisor import free_port
from tests.conftest import program

PATIENCE_SECONDS = 20.0


class RedisServer:
    """On a port of its own, keeping nothing on disk unless ``save`` is called; a context manager."""

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        self._folder, self._options = folder, options
        self._program = program("redis-server", "redis-server")
        self.port = free_port("127.0.0.1")
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, with what ``save`` left on disk; returns when it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", "",
                   "--appendonly", "no", *self._options]  # fmt: skip
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([self._program, *options], stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(redis.RedisError), self.client() as client:
                if client.ping():
                    return
            assert self._process.poll() is None, (self._folder / "redis.log").read_text()
            assert time.monotonic() < deadline, "the Redis server does not answer"
            time.sleep(0.02)

    def client(self) -> redis.Redis:
        """A client of its own."""
        return redis.Redis(port=self.port, decode_responses=True, socket_timeout=PATIENCE_SECONDS)

    def save(self) -> None:
        """Have all that it knows on disk."""
        with self.client() as client:
            client.save()

    def forget(self) -> None:
        """Have what was on disk gone."""
        for path in self._folder.glob("*.rdb"):
            path.unlink()

    def kill(self) -> None:
        """End it without giving it a chance to do anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """It still has its port, but answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
