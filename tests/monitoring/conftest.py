"""A session that was watched by a real Prometheus from its beginning to its end."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.conftest import program
from tests.monitoring.installation import Installation, Prometheus, eventually

# the sessions that are watched use none; what a worker gives of it is looked at in test_live_diffusion.py
OF_A_LEARNED_PRIOR = re.compile("prior_shift|recovery_evaluations|frames_per_second_(possible|asked)")
PATTERN = {"kind": "pattern", "shape": [64, 64]}


class Watched(NamedTuple):
    """What was watched, and when; everything runs still."""

    installation: Installation
    prometheus: Prometheus
    began: float
    ended: float  # Unix seconds


@pytest.fixture(scope="package")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Two sessions of one detector; in the second one C changes, a worker is killed and one leaves.

    The second goes on for as long as it is watched, and no longer: others need the cores.
    """
    prometheus_program = program("prometheus", "prometheus")
    folder = tmp_path_factory.mktemp("watched")
    installation = Installation(folder, workers=3)
    prometheus = None
    try:
        installation.ready()
        prometheus = Prometheus(prometheus_program, folder / "prometheus", installation.port)
        began = time.time()
        eventually(lambda: len(prometheus.now("up == 1")) == 5, "all five are scraped", prometheus.log)
        _run(installation, prometheus)
        yield Watched(installation, prometheus, began, time.time())
    finally:
        installation.close()
        if prometheus is not None:
            prometheus.close()


def _run(installation: Installation, prometheus: Prometheus) -> None:
    installation.start_session(
        source=PATTERN, camera={"rate": 40, "frames": 80, "reference_every": 5},
        link_mbit_per_s=50, output=str(installation.folder / "first"),
    )  # fmt: skip
    installation.ends()
    _scraped(installation, prometheus, "cryoflux_frames_acknowledged_total >= 80")
    installation.start_session(
        source=PATTERN, camera={"rate": 60, "reference_every": 10},
        link_mbit_per_s=4, output=str(installation.folder / "second"),
    )  # fmt: skip
    installation.reaches(300)
    # a rate needs counts that were seen twice, so each step lasts until Prometheus has seen what it did
    _scraped(
        installation,
        prometheus,
        'increase(cryoflux_configuration_frames_total{compression_factor="2"}[10s]) > 100',
    )
    answer = installation.client.patch("/api/v1/sessions/current/acquisition", json={"compression_factor": 4})
    assert answer.status_code == 200, answer.text
    installation.reaches(answer.json()["effective_from_frame"] + 300)
    _scraped(
        installation,
        prometheus,
        'increase(cryoflux_frame_psnr_decibels_count{compression_factor="4"}[10s]) > 2',
    )
    installation.kill("worker-2")
    _scraped(installation, prometheus, 'sum(cryoflux_workers_departed_total{how!="left"}) == 1')
    _scraped(installation, prometheus, 'cryoflux_components{kind="reconstructor", state="silent"} == 1')
    installation.end("worker-3")
    _scraped(installation, prometheus, 'cryoflux_workers_departed_total{how="left"} == 1')
    _scraped(installation, prometheus, 'ALERTS{alertname="CryofluxWorkerGone", alertstate="firing"}')
    _scraped(installation, prometheus, "rate(cryoflux_frames_acknowledged_total[5s]) > 0")
    _scraped(installation, prometheus, "cryoflux:throughput_gain:ratio1m")


def _scraped(installation: Installation, prometheus: Prometheus, expr: str) -> None:
    eventually(lambda: prometheus.now(expr), expr, lambda: f"{installation.logs()}\n{prometheus.troubles()}")
