"""``cryoflux serve`` and the commands that steer what runs there, as a user runs them."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.waiting import eventually

pytestmark = pytest.mark.timeout(240)

PATIENCE_SECONDS = 120.0
CRYOFLUX = [sys.executable, "-m", "services.cli"]


def cryoflux(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CRYOFLUX, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


class Serving:
    """A running ``cryoflux serve``."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.shown = folder / "shown.txt"
        self.results = folder / "results"
        with self.shown.open("w") as shown:
            self.process = subprocess.Popen(
                [*CRYOFLUX, *options, "serve", "--port", "0", "--workers", "1",
                 "--results", str(self.results), "--state", str(folder / "state.sqlite")],
                stdout=shown, stderr=shown, process_group=0,
                env={**os.environ, "CRYOFLUX_HEARTBEAT_SECONDS": "0.2"},
            )  # fmt: skip
        try:
            self.url = eventually(self._address, "the console's address is shown").rstrip("/")
        except BaseException:
            self.process.kill()
            raise

    def _address(self) -> str | None:
        assert self.process.poll() is None, self.shown.read_text()
        found = re.search(r"console +(http://[\d.:]+/)", self.shown.read_text())
        return found[1] if found else None

    def end(self) -> int:
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(PATIENCE_SECONDS)

    def logs(self) -> dict[str, list[str]]:
        return {path.stem: path.read_text().splitlines() for path in (self.results / "logs").glob("*.log")}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    running = Serving(tmp_path_factory.mktemp("serve"), "--log-format", "json")
    yield running
    if running.process.poll() is None:
        running.process.kill()


PATTERN = ("--input", "pattern", "--side", "32")


def test_nothing_runs_before_it_is_asked_for(serving: Serving) -> None:
    done = cryoflux("status", "--url", serving.url)
    assert done.returncode == 0, done.stderr
    assert "ready: detector, 1 worker" in done.stdout
    assert "none yet" in done.stdout
    done = cryoflux("stop", "--url", serving.url)
    assert done.returncode == 1
    assert done.stderr == ("cryoflux stop: there is no session yet; POST /api/v1/sessions starts one\n")


def test_a_session_is_started_and_followed(serving: Serving) -> None:
    done = cryoflux("start", "--url", serving.url, *PATTERN, "--frames", "120", "--rate", "100",
                    "--change", "40=4")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "120 acquired, 120 recovered, none lost" in done.stdout
    assert f"console  {serving.url}/" in done.stdout
    output = Path(done.stdout.splitlines()[-1].split()[-1])
    assert output.parent == serving.results
    account = json.loads((output / "session.json").read_text())
    assert account["frames"]["recovered"] == 120
    assert [known["compression_factor"] for known in account["configurations"]] == [2, 4]


def test_a_session_is_started_and_left_and_steered(serving: Serving, tmp_path: Path) -> None:
    output = tmp_path / "steered"
    done = cryoflux("start", "--url", serving.url, *PATTERN, "--rate", "100", "--output", str(output),
                    "--detach")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = cryoflux("start", "--url", serving.url, *PATTERN)
    assert done.returncode == 1
    assert "stop it first" in done.stderr
    done = cryoflux("change", "--url", serving.url, "--compression", "8")
    assert re.fullmatch(r"coded aperture K=4 b=2, C = 8 from frame \d+ on\n", done.stdout), done.stderr
    done = cryoflux("change", "--url", serving.url, "--compression", "100")
    assert (done.returncode, done.stdout) == (2, "")
    assert "from 1 to 16" in done.stderr or "1 to 16" in done.stderr
    for verb, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopping")):
        done = cryoflux(verb, "--url", serving.url)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"is {state}\n") or verb == "stop"
    eventually(
        lambda: "completed" in cryoflux("status", "--url", serving.url).stdout, "the session is completed"
    )
    account = json.loads((output / "session.json").read_text())
    assert account["frames"]["lost"] == 0
    assert account["configurations"][-1]["compression_factor"] == 8


def test_the_end_delivers_what_was_acquired(serving: Serving, tmp_path: Path) -> None:
    output = tmp_path / "last"
    done = cryoflux("start", "--url", serving.url, *PATTERN, "--rate", "100", "--output", str(output),
                    "--detach")  # fmt: skip
    assert done.returncode == 0, done.stderr
    children = psutil.Process(serving.process.pid).children(recursive=True)
    assert len(children) >= 3
    assert serving.end() == 0
    account = json.loads((output / "session.json").read_text())
    assert account["state"] == "completed"
    assert account["frames"]["recovered"] == account["frames"]["acquired"] > 0
    assert account["frames"]["lost"] == 0
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
    assert alive == []


def test_every_line_of_every_log_is_json(serving: Serving) -> None:
    logs = serving.logs()
    assert logs.keys() == {"control", "detector", "worker-1"}
    components = {"control": "control", "detector": "detector", "worker-1": "reconstructor"}
    for name, lines in logs.items():
        said = [json.loads(line) for line in lines]
        assert said[0]["message"].startswith("$ cryoflux")
        for line in said[1:]:
            assert {"time", "level", "logger", "message"} <= line.keys()
            assert (line["component"], line["name"]) == (components[name], name)
    at_one = [line for line in map(json.loads, logs["control"]) if "completed" in line["message"]]
    assert len({line["session"] for line in at_one}) == len(at_one) == 3
    assert all(line["config"] for line in at_one)


def test_an_address_where_nobody_answers_is_named() -> None:
    done = cryoflux("start", "--url", "127.0.0.1:9", "--wait", "0.5")
    assert done.returncode == 1
    assert done.stderr.startswith("cryoflux start: http://127.0.0.1:9 was not ready within 0.5 s: ")
    assert len(done.stderr.splitlines()) == 1
    done = cryoflux("status", "--url", "127.0.0.1:9")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    done = cryoflux("stop", "--url", "ftp://somewhere")
    assert done.returncode == 2
    assert "http://host:port" in done.stderr


# amid the header, and after its last line
@pytest.mark.parametrize("moment", [pytest.param(b"results", marks=pytest.mark.slow), b"change C"])
def test_a_closed_terminal_ends_a_session_cleanly(tmp_path: Path, moment: bytes) -> None:
    output = tmp_path / "s"
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever started the tests may have it ignored
        os.execvp(
            CRYOFLUX[0], [*CRYOFLUX, "live", *PATTERN, "--rate", "100", "--workers", "1", "--port", "0",
                          "--output", str(output)],
        )  # fmt: skip
    shown = b""
    try:
        while moment not in shown:  # frames are being acquired
            shown += os.read(terminal, 65536)
        children = psutil.Process(pid).children(recursive=True)
    finally:
        os.close(terminal)  # what the kernel makes of it is a hangup
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        assert time.monotonic() < deadline, "it does not end"
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    account = json.loads((output / "session.json").read_text())
    assert account["state"] == "completed"
    assert account["frames"]["lost"] == 0
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
    assert alive == []
