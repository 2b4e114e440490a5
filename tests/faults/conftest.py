"""Every fault as often as wanted (``--count``), and a table of how that went (``--tally``)."""

from __future__ import annotations

import os
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_REPETITION = re.compile(r"run \d+-|-?run \d+(?=\])")
_ROW = re.compile(r"^\| `([^`]+)` \|")
_HEAD = ["| test | passed | failed | median, s | longest, s |", "|---|---:|---:|---:|---:|"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known where ``tests/faults`` or files in it are named on the command line."""
    parser.addoption("--count", type=int, default=1, help="run each fault so many times")
    parser.addoption("--tally", type=Path, help="keep a table of passes, failures and times in this file")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat."""
    count = metafunc.config.getoption("count", 1)
    if count > 1:
        runs = range(1, count + 1)
        metafunc.parametrize("_repetition", runs, indirect=True, ids=[f"run {number}" for number in runs])


@pytest.fixture(autouse=True)
def _repetition(request: pytest.FixtureRequest) -> int:
    return getattr(request, "param", 1)


@dataclass
class _Runs:
    seconds: list[float] = field(default_factory=list)
    failed: int = 0


class _Tally:
    """Adds up the runs of this session; what else stands in the file stays as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs: dict[str, _Runs] = defaultdict(_Runs)
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a run; one that fails in more than one phase failed once."""
        name = _REPETITION.sub("", report.nodeid.rsplit("/", 1)[-1]).replace("[]", "")
        if report.failed and report.nodeid not in self._failed:
            self._failed.add(report.nodeid)
            self._runs[name].failed += 1
        if report.when == "call" and not report.skipped:
            self._runs[name].seconds.append(report.duration)

    def pytest_sessionfinish(self) -> None:
        """Write the table."""
        rows: dict[str, str] = {}
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        for line in lines:
            if found := _ROW.match(line):
                rows[found[1]] = line
        prose = [line for line in lines if not line.startswith("|")]
        for name, runs in self._runs.items():
            seconds = runs.seconds or [0.0]
            passed = max(0, len(runs.seconds) - runs.failed)
            figures = [passed, runs.failed, f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"]
            rows[name] = f"| `{name}` | {' | '.join(map(str, figures))} |"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n".join([*prose, *_HEAD, *(rows[name] for name in sorted(rows))]) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run in several processes, the one that started them counts."""
    path = config.getoption("tally", None)
    if path is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(_Tally(path))
