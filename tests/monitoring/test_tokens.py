"""A Prometheus of an installation with tokens: with the viewer's one it scrapes all, without it nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx

from tests.conftest import program
from tests.monitoring.installation import Installation, Prometheus, eventually

OPERATOR, VIEWER = "the-operators-own-token", "the-viewers-own-token"


def test_prometheus_scrapes_all_with_the_viewers_token_and_nothing_without(tmp_path: Path) -> None:
    prometheus = program("prometheus", "prometheus")
    with contextlib.ExitStack() as stack:
        installation = Installation(
            tmp_path, 1, OPERATOR, CRYOFLUX_VIEWER_TOKEN=VIEWER, CRYOFLUX_METRICS_HOST="0.0.0.0"
        )
        stack.callback(installation.close)
        installation.ready()
        without = Prometheus(prometheus, tmp_path / "without", installation.port)
        stack.callback(without.close)
        with_token = Prometheus(prometheus, tmp_path / "with", installation.port, VIEWER + "\n")
        stack.callback(with_token.close)
        eventually(lambda: len(with_token.now("up == 1")) == 3, "all are scraped", with_token.troubles)
        eventually(lambda: "401" in without.log(), "the one without a token is refused", without.log)
        assert without.now("up") == []
        for name, address in installation.targets().items():
            port = address.rpartition(":")[2]
            answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60)
            assert (answer.status_code, "cryoflux_" in answer.text) == (401, False), name
