"""What a process does about its own metrics, before anybody scrapes it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", ["detector", "reconstructor"])
def test_a_port_that_is_taken_ends_the_process_with_one_clear_line(command: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "services.cli", command],
            env={
                **os.environ,
                "CRYOFLUX_METRICS_PORT": str(port),
                "CRYOFLUX_DATA_BIND": "tcp://127.0.0.1:0",
                "CRYOFLUX_SPOOL": str(tmp_path / "spool"),
                "CRYOFLUX_LOG_LEVEL": "error",
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert ended.returncode == 1
    line = f"cryoflux {command}: cannot serve /metrics on 127.0.0.1:{port}: .*CRYOFLUX_METRICS_PORT.*"
    assert re.fullmatch(line, ended.stderr.strip()), ended.stderr
