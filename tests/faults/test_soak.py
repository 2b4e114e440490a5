"""Half a minute of the soak, by a seed that draws something of everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MINUTES, SEED = 100 / 60, 16  # 30 s of storm: a worker hangs, the detector and a worker are killed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_storm_keeps_every_promise(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--phases", "storm", "--output", str(tmp_path)]
    command += ["--minutes", str(MINUTES), "--seed", str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "soak.json").read_text())
    verbs = {deed["verb"] for deed in document["deeds"] if deed["outcome"] == "done"}
    assert verbs >= {"kill", "hang", "acquisition", "recovery", "pause"}
    assert {process["name"] for process in document["processes"].values()} >= {"control", "detector", "serve"}
    assert sum(session["recovered"] for phase in document["phases"] for session in phase["sessions"]) > 0
