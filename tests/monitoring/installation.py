"""CryoFlux's processes and a Prometheus that scrapes them, for real and on free ports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from services.supervisor import free_port
from tests.starting import COMMAND_LINE, Process, start

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "services/monitoring"
PATIENCE_SECONDS = 120.0
SCRAPE_SECONDS = 1


def eventually(holds: Callable[[], Any], what: str, log: Callable[[], str] = str) -> Any:
    """The first true value of ``holds``, asked again until the patience ends."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if value := holds():
                return value
        except (httpx.TransportError, json.JSONDecodeError):
            pass
        assert time.monotonic() < deadline, f"never happened: {what}\n{log()}"
        time.sleep(0.1)


class Installation:
    """A control plane, a detector and workers, each a process of its own."""

    def __init__(self, folder: Path, workers: int, operator: str = "", **environment: str) -> None:
        self.folder = folder
        self.port = free_port("127.0.0.1")
        self._environment = {
            **os.environ,
            "CRYOFLUX_CONTROL_ENDPOINT": f"tcp://127.0.0.1:{free_port('127.0.0.1')}",
            "CRYOFLUX_DATA_BIND": "tcp://127.0.0.1:0",
            "CRYOFLUX_HTTP_PORT": str(self.port),
            "CRYOFLUX_STATE": str(folder / "state.sqlite"),
            "CRYOFLUX_SPOOL": str(folder / "spool"),
            "CRYOFLUX_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "CRYOFLUX_OPERATOR_TOKEN": operator,
            **environment,
        }
        self.processes = {
            "control": self._start("control", "control"),
            "detector": self._start("detector", "detector"),
        }
        for number in range(1, workers + 1):
            name = f"worker-{number}"
            self.processes[name] = self._start(name, "reconstructor", "--name", name)
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {operator}"} if operator else {},
            timeout=60,
        )

    def _start(self, name: str, *command: str) -> Process:
        return start(COMMAND_LINE, command, self._environment, self.folder / f"{name}.log")

    def logs(self) -> str:
        """What the processes said last."""
        return "\n".join(
            f"==> {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in self.folder.glob("*.log")
        )

    def ready(self) -> None:
        workers = sum(name.startswith("worker") for name in self.processes)

        def is_ready() -> bool:
            answer = self.client.get("/readyz")
            return answer.status_code == 200 and answer.json()["workers"] == workers

        eventually(is_ready, "detector and workers are registered", self.logs)

    def targets(self) -> dict[str, str]:
        """Where each process serves its metrics, by its name."""
        found = self.client.get("/metrics/targets").json()
        return {target["labels"]["name"]: target["targets"][0] for target in found}

    def start_session(self, **spec: Any) -> None:
        answer = self.client.post("/api/v1/sessions", json=spec)
        assert answer.status_code == 201, answer.text

    def metrics(self) -> dict[str, Any]:
        return self.client.get("/api/v1/sessions/current/metrics").json()

    def reaches(self, frame: int) -> None:
        eventually(
            lambda: self.metrics()["frames"]["acknowledged"] >= frame,
            f"frame {frame} is recovered",
            self.logs,
        )

    def ends(self) -> None:
        eventually(lambda: self.metrics()["state"] in ("completed", "failed"), "the session ends", self.logs)
        assert self.metrics()["state"] == "completed", self.metrics()

    def kill(self, name: str) -> None:
        os.kill(self.processes[name].pid, signal.SIGKILL)

    def end(self, name: str) -> None:
        self.processes[name].terminate()

    def close(self) -> None:
        self.client.close()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Prometheus:
    """The committed configuration and rules, with this installation's address and a shorter interval."""

    def __init__(self, program: str, folder: Path, control_port: int, token: str = "") -> None:
        folder.mkdir()
        (folder / "rules").mkdir()
        for rules in (MONITORING / "rules").glob("*.yml"):
            (folder / "rules" / rules.name).write_text(rules.read_text())
        text = (MONITORING / "prometheus.yml").read_text()
        assert "http://control:8000/metrics/targets" in text
        text = text.replace("control:8000", f"127.0.0.1:{control_port}")
        text = re.sub(r"(interval: )5s", rf"\g<1>{SCRAPE_SECONDS}s", text)
        text = re.sub(r"(scrape_timeout: )4s", rf"\g<1>{SCRAPE_SECONDS}s", text)
        (folder / "prometheus.yml").write_text(text)
        (folder / "viewer-token").write_text(token)
        port = free_port("127.0.0.1")
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
                process_group=0,
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        eventually(lambda: self.client.get("/-/ready").status_code == 200, "Prometheus is ready", self.log)

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    def troubles(self) -> str:
        """Targets that cannot be scraped, and why."""
        found = self.client.get("/api/v1/targets").json()["data"]["activeTargets"]
        return "\n".join(f"{t['labels'].get('name')}: {t['lastError']}" for t in found if t["lastError"])

    def ask(self, path: str, **parameters: Any) -> Any:
        answer = self.client.post(f"/api/v1/{path}", data=parameters)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def now(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """An instant query's series."""
        return self.ask("query", query=expr, **({} if at is None else {"time": at}))["result"]

    def over(self, expr: str, begin: float, end: float) -> list[dict[str, Any]]:
        """A range query's series."""
        return self.ask("query_range", query=expr, start=begin, end=end, step=SCRAPE_SECONDS)["result"]

    def value(self, expr: str) -> float | None:
        """An instant query's only value; None: no series."""
        found = self.now(expr)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def close(self) -> None:
        self.client.close()
        self._process.terminate()
        self._process.wait(20)
