"""Namespaces that live as long as a process that does nothing else, which dies with the test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import program


class Holder:
    """Holds namespaces.

    Parameters
    ----------
    namespaces : str
        As ``unshare`` takes it: ``--net``, ``--mount``.
    prepare : str
        Shell command that is run in it first.
    """

    def __init__(self, namespaces: str, prepare: str = "true") -> None:
        for name in ("nsenter", "setpriv", "unshare"):
            program(name, "util-linux")
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", namespaces,
                   "sh", "-c", f"{prepare} && echo && exec sleep inf"]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            _, why = self._process.communicate()
            missing = f"this test needs root with CAP_SYS_ADMIN for namespaces: {why.decode().strip()}"
            if os.environ.get("CI"):
                pytest.fail(missing)
            pytest.skip(missing)

    def enter(self, namespaces: str) -> Sequence[str]:
        """The command before a command that is to run there."""
        return ("nsenter", "--target", str(self.pid), namespaces, f"--wdns={Path.cwd()}", "--")

    def close(self) -> None:
        """Let go of the namespaces."""
        self._process.kill()
        self._process.communicate()
