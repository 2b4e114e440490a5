"""A whole session with every kind of secret there is: none is found anywhere, meanwhile or afterwards."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest
import redis

from common.archive import Archive
from common.wire.keys import make_keys
from services.control_plane.app import BASE, routed
from services.supervisor import free_port
from tests import waiting
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(600)

PATIENCE_SECONDS = 240.0
eventually = partial(waiting.eventually, seconds=PATIENCE_SECONDS)
CRYOFLUX = [sys.executable, "-m", "services.cli"]

OPERATOR = "operator-Zk3vPq8LxW5tRm2N"
VIEWER = "viewer-Hb7yTc4GdS9wQe6J"
GUESS = "guess-Ua1nXo3KfV8pMz5B"  # of a token, wrong
WORD = "p4ss/w@rd:ü?Yt6r"  # of the state store
COLLECTOR_WORD = "collector-Fj2sEi7CqL0d"
HEADER_WORD = "header-Rg5mDu9NwB4h"


class Search:
    """Looks for secrets in whatever it is shown, in all the ways that they may be written."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self.bytes_seen = 0
        self._forms: dict[bytes, str] = {}
        for name, secret in secrets.items():
            written = {secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1]}
            written |= {repr(secret)[1:-1], base64.b64encode(secret.encode()).decode().rstrip("=")}
            self._forms |= {form.encode(): name for form in written}

    def look(self, where: str, content: bytes | str) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.bytes_seen += len(data)
        for form, name in self._forms.items():
            at = data.find(form)
            assert at < 0, f"{where} holds the {name}: …{data[max(0, at - 150) : at]!r}<the {name}>"

    def look_at_files(self, folder: Path) -> list[Path]:
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        for path in files:
            self.look(str(path), path.read_bytes())
        return files

    def look_at_arguments(self) -> int:
        """Of every process on this machine."""
        count = 0
        for process in psutil.process_iter():
            try:
                arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            except OSError:
                continue
            count += 1
            self.look(f"the command line of process {process.pid}", arguments)
        return count

    def look_at_store(self, client: redis.Redis) -> int:
        keys = list(client.scan_iter("*"))
        for key in keys:
            kind = client.type(key)
            value: Any = {
                b"string": client.get, b"hash": client.hgetall, b"stream": client.xrange,
                b"set": client.smembers, b"zset": lambda key: client.zrange(key, 0, -1),
                b"list": lambda key: client.lrange(key, 0, -1),
            }[kind](key)  # fmt: skip
            self.look(f"{key!r} in the store", repr(key) + repr(value))
        return len(keys)


@contextmanager
def secured(folder: Path) -> Iterator[RedisServer]:
    folder.mkdir()
    with RedisServer(folder) as server:
        with server.client() as client:
            client.config_set("requirepass", WORD)
        yield server


@contextmanager
def variables(server: RedisServer, keys: Path, log_format: str) -> Iterator[dict[str, str]]:
    """Of an installation that has all its secrets, as an administrator sets them."""
    make_keys(keys)
    collector = free_port("127.0.0.1")  # nobody is there: sending traces fails
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("CRYOFLUX_", "OTEL_"))}
    yield {
        **bare,
        "CRYOFLUX_OPERATOR_TOKEN": OPERATOR,
        "CRYOFLUX_VIEWER_TOKEN": VIEWER,
        "CRYOFLUX_KEYS": str(keys),
        "CRYOFLUX_STATE": f"redis://:{quote(WORD, safe='')}@127.0.0.1:{server.port}/0",
        "CRYOFLUX_OTLP_ENDPOINT": f"http://user:{COLLECTOR_WORD}@127.0.0.1:{collector}",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{HEADER_WORD}",
        "CRYOFLUX_LOG_FORMAT": log_format,
        "CRYOFLUX_LOG_LEVEL": "debug",
        "CRYOFLUX_HEARTBEAT_SECONDS": "0.2",
    }


def secrets_of(keys: Path) -> dict[str, str]:
    """All that nobody may find."""
    known = {
        "operator's token": OPERATOR, "viewer's token": VIEWER, "guessed token": GUESS,
        "password of the store": WORD, "password of the collector": COLLECTOR_WORD,
        "header for the collector": HEADER_WORD,
    }  # fmt: skip
    for path in keys.glob("*.key_secret"):
        found = re.search(r'secret-key = "(.{40})"', path.read_text())
        assert found
        known[f"secret key {path.stem}"] = found[1]
    return known


def answers(search: Search, client: httpx.Client) -> int:
    """All that REST answers to questions, and what detector and workers say of themselves."""
    count = 0
    for path, operations in routed().openapi()["paths"].items():
        if "get" not in operations or path.endswith("/stream"):
            continue
        for token in (OPERATOR, VIEWER, GUESS, ""):
            url = path.format(session_id="current", frame_id=0)
            answer = client.get(url, headers={"Authorization": f"Bearer {token}"} if token else {})
            assert (answer.status_code == 401) == (token in (GUESS, "") and path != "/healthz"), (path, token)
            search.look(f"the answer to {path}", answer.content + repr(answer.headers.raw).encode())
            count += 1
    return count


def provoke(client: httpx.Client) -> None:
    """Mistakes, each with a secret where it may be repeated."""
    operator = {"Authorization": f"Bearer {OPERATOR}"}
    viewer, guess = {"Authorization": f"Bearer {VIEWER}"}, {"Authorization": f"Bearer {GUESS}"}
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/sessions", {"headers": operator, "json": {"camera": {"rate": -1}}}),
        ("POST", "/sessions", {"headers": operator, "content": b"{"}),
        ("POST", "/sessions", {"headers": viewer, "json": {}}),
        ("POST", "/sessions", {"headers": guess, "json": {}}),
        ("POST", "/sign-in", {"json": {"token": GUESS}}),
        ("POST", "/sign-in", {"json": {"token": [GUESS]}}),
        ("PATCH", "/sessions/current/acquisition", {"headers": operator, "json": {"compression_factor": 0}}),
        ("GET", f"/sessions/{'x' * 30}", {"headers": operator}),
    ]
    for method, path, options in wrong:
        answer = client.request(method, f"{BASE}{path}", **options)
        assert 400 <= answer.status_code < 500, (path, answer.text)
        assert GUESS not in answer.text
    assert client.post(f"{BASE}/sign-in", json={"token": VIEWER}).status_code == 200
    assert client.get(f"{BASE}/sessions").status_code == 200  # by the cookie now
    client.cookies.clear()


@pytest.mark.parametrize("log_format", [pytest.param("human", marks=pytest.mark.slow), "json"])
def test_no_secret_is_found_anywhere(tmp_path: Path, log_format: str) -> None:
    seen, keys, archive = tmp_path / "seen", tmp_path / "keys", tmp_path / "seen" / "session.h5"
    seen.mkdir()
    with secured(tmp_path / "redis") as server, variables(server, keys, log_format) as environment:
        search = Search(secrets_of(keys))
        with (seen / "shown.txt").open("w") as shown:
            serving = subprocess.Popen(
                [*CRYOFLUX, "serve", "--port", "0", "--workers", "1", "--results", str(seen / "results")],
                stdout=shown, stderr=shown, process_group=0, env=environment, cwd=seen,
            )  # fmt: skip
        try:

            def address() -> str | None:
                assert serving.poll() is None, (seen / "shown.txt").read_text()
                found = re.search(r"console +(http://[\d.:]+)/", (seen / "shown.txt").read_text())
                return found and found[1]

            url = eventually(address, "the console's address is shown")
            search.look_at_arguments()
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                provoke(client)
                (seen / "started.txt").write_text(
                    subprocess.run(
                        [*CRYOFLUX, "start", "--url", url, "--input", "pattern", "--side", "32",
                         "--frames", "40", "--rate", "40", "--archive", str(archive)],
                        env=environment, cwd=seen, capture_output=True, text=True,
                        timeout=PATIENCE_SECONDS, check=True,
                    ).stdout
                )  # fmt: skip
                operator = {"Authorization": f"Bearer {OPERATOR}"}
                body = {"source": {"kind": "pattern", "shape": [32, 32]}, "camera": {"rate": 20}}
                started = client.post(f"{BASE}/sessions", headers=operator, json=body)
                assert started.status_code == 201, started.text
                server.freeze()  # the store cannot be reached, in mid-session
                ready = lambda: client.get("/readyz", headers=operator).json()["status"]  # noqa: E731
                eventually(lambda: ready() == "degraded", "the store is missed")
                search.look("the answer to /readyz", client.get("/readyz", headers=operator).content)
                server.thaw()
                eventually(lambda: ready() == "ready", "the store is found again")
                with server_client(server) as control:  # and then it refuses us
                    control.config_set("requirepass", WORD + "x")
                    control.client_kill_filter(_type="normal", skipme=True)
                    eventually(lambda: ready() == "degraded", "the store refuses")
                    told = client.get("/readyz", headers=operator).text
                    search.look("the answer to /readyz", told)
                    control.config_set("requirepass", WORD)
                eventually(lambda: ready() == "ready", "the store lets us in again")
                detector = next(
                    process for process in psutil.Process(serving.pid).children(recursive=True)
                    if "detector" in process.cmdline()
                )  # fmt: skip
                detector.kill()  # what supervisors say of it, and what its successor goes on with
                eventually(
                    lambda: "resumed" in client.get(f"{BASE}/sessions/current/events", headers=operator).text,
                    "the detector goes on",
                )
                assert answers(search, client) > 40
                exposed = re.findall(
                    r'"targets": ?\["([\d.:]+)"', client.get("/metrics/targets", headers=operator).text
                )
                for place in exposed:
                    told = httpx.get(f"http://{place}/metrics", headers={"Authorization": f"Bearer {VIEWER}"})
                    assert told.status_code == 200
                    search.look(f"metrics of {place}", told.content)
                assert len(exposed) >= 2
                assert search.look_at_arguments() > 5
                search.look_at_files(seen)  # while it runs: spool, journals, logs
        finally:
            if serving.poll() is None:
                os.killpg(serving.pid, signal.SIGINT)
            code = serving.wait(PATIENCE_SECONDS)
        assert code == 0
        for command in (
            ["config", "show"],
            ["status", "--url", url],
            ["control", "--state", "redis://:a@b@c"],
        ):
            done = subprocess.run(
                [*CRYOFLUX, *command], env=environment, cwd=seen, capture_output=True,
                timeout=PATIENCE_SECONDS, check=False,
            )  # fmt: skip
            search.look(f"what {command[0]} says", done.stdout + done.stderr)
        with server_client(server) as client:
            assert search.look_at_store(client) > 5
        found = {path.name for path in search.look_at_files(seen)}
    assert {"session.json", "session.h5", "control.log", "detector.log", "worker-1.log"} <= found
    with Archive(archive) as packed:  # what is compressed in it
        search.look("the archive", json.dumps([packed.start, packed.specification, packed.account]))
    assert search.bytes_seen > 100_000
    log = "\n".join(path.read_text() for path in (seen / "results" / "logs").glob("*.log"))
    assert "state store redis://:***@127.0.0.1" in log  # the errors were told


def server_client(server: RedisServer) -> redis.Redis:
    return redis.Redis(port=server.port, password=WORD, socket_timeout=20)


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    search = Search({"password": WORD})
    search.look("a line", "nothing")
    for written in (WORD, quote(WORD, safe=""), base64.b64encode(WORD.encode()).decode(), json.dumps(WORD)):
        with pytest.raises(AssertionError, match="a line holds the password"):
            search.look("a line", f"before {written} behind")
    (tmp_path / "file").write_text(f"x{WORD}")
    with pytest.raises(AssertionError, match="file holds the password"):
        search.look_at_files(tmp_path)
