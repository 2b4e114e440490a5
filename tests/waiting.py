"""Waiting for something to happen, instead of for some time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def eventually(
    holds: Callable[[], Any],
    what: str,
    alive: subprocess.Popen[str] | None = None,
    *,
    seconds: float = 120.0,
    pause: float = 0.05,
) -> Any:
    """The first true value of ``holds``, asked again until so many seconds are over, or a process is."""
    deadline = time.monotonic() + seconds
    while True:
        ended = alive is not None and alive.poll() is not None
        if value := holds():
            return value
        assert not ended, f"the process ended first: {what}"
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(pause)
