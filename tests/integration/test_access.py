"""Real processes on an address that other machines reach: without a token only ``/healthz`` answers."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from starlette.routing import Mount

from services.control_plane.app import routed
from services.control_plane.routes.console import FOLDER
from tests import waiting
from tests.conftest import program

pytestmark = pytest.mark.timeout(400)

PATIENCE_SECONDS = 150.0
eventually = partial(waiting.eventually, seconds=PATIENCE_SECONDS)
CRYOFLUX = [sys.executable, "-m", "services.cli"]
OPERATOR, VIEWER = "the-operators-own-token", "the-viewers-own-token"
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE")
HTML = {"Accept": "text/html"}


def outer_address() -> str:
    """An address of this machine that is not loopback."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family is socket.AF_INET and not address.address.startswith("127."):
                return address.address
    if os.environ.get("CI"):
        pytest.fail("this machine has no address but loopback")
    pytest.skip("this machine has no address but loopback")


def environment(folder: Path, **settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CRYOFLUX_")}
    return {
        **clean,
        "CRYOFLUX_SPOOL": str(folder / "spool"),
        "CRYOFLUX_STATE": str(folder / "state.sqlite"),
        "CRYOFLUX_CONTROL_ENDPOINT": f"ipc://{folder}/bus",
        "OMP_NUM_THREADS": "1",
        **{f"CRYOFLUX_{name.upper()}": value for name, value in settings.items()},
    }


def cryoflux(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CRYOFLUX, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        env=environment(folder, **settings),
    )  # fmt: skip


class Part:
    """A process whose log says where it serves."""

    def __init__(self, folder: Path, pattern: str, *command: str, **settings: str) -> None:
        self.log = folder / f"{command[0]}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*CRYOFLUX, *command], stdout=log, stderr=log, process_group=0,
                env=environment(folder, **settings),
            )  # fmt: skip
        try:
            self.port = int(eventually(lambda: self._found(pattern), f"{command[0]} serves"))
        except BaseException:
            self.close()
            raise

    def _found(self, pattern: str) -> str | None:
        text = self.log.read_text()
        assert self.process.poll() is None, text
        found = re.search(pattern, text)
        return found[1] if found else None

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def pem(folder: Path, name: str = "node") -> tuple[str, str]:
    """A certificate for this machine's outer address, and its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [program("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", f"/CN={name}",
         "-addext", f"subjectAltName=IP:{outer_address()},IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(certificate), str(key)


# ---- every route there is


def paths_of(routes: Any) -> Iterator[str]:
    """The path of every route, its parameters filled; a kind of route that is not known here is a failure."""
    for route in routes:
        if hasattr(route, "effective_route_contexts"):  # a router that was included
            yield from (_filled(context.path) for context in route.effective_route_contexts())
        elif isinstance(route, Mount):
            yield f"{route.path}/"
            folder = Path(str(getattr(route.app, "directory", "")))
            files = [path for path in folder.rglob("*") if path.is_file()]
            assert files, route.path
            yield from (f"{route.path}/{path.relative_to(folder).as_posix()}" for path in files)
        else:
            yield _filled(route.path)


def _filled(path: str) -> str:
    if path.endswith("{path:path}"):
        return path.replace("{path:path}", "index.html")
    return path.format(session_id="current", frame_id=0)


def every_path() -> list[str]:
    """Of routes, of every static file, and some that nothing is behind."""
    console = [f"/console/{path.relative_to(FOLDER).as_posix()}" for path in FOLDER.rglob("*")]
    nothing = ["/none", "/api", "/api/v1", "/api/v2/sessions", "/docs", "/redoc", "/favicon.ico",
               "/robots.txt", "/.well-known/security.txt", "/console/../app.py", "/healthz/", "/healthz/x",
               "//healthz", "/healthz%2f..%2freadyz", "/api/v1/sessions/",
               "/api/v1/sessions/x/y/z"]  # fmt: skip
    return sorted({*paths_of(routed().routes), *console, *nothing})


def test_every_operation_is_among_the_paths_that_are_tried() -> None:
    documented = {_filled(path) for path in routed().openapi()["paths"]}
    tried = set(every_path())
    assert documented <= tried
    assert {"/", "/openapi.json", "/api/v1/docs", "/api/v1/docs-assets/swagger-ui-bundle.js",
            "/console/js/main.js", "/api/v1/sessions/current/stream", "/metrics"} <= tried  # fmt: skip
    assert len(tried) > 60


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Part, str]]:
    folder = tmp_path_factory.mktemp("control")
    part = Part(folder, r"REST on http://[^:]+:(\d+)", "control", "--host", "0.0.0.0", "--port", "0",
                operator_token=OPERATOR, viewer_token=VIEWER)  # fmt: skip
    yield part, f"http://{outer_address()}:{part.port}"
    part.close()


@pytest.mark.parametrize("accept", ["*/*", "text/html"])
def test_without_a_token_only_healthz_answers(control: tuple[Part, str], accept: str) -> None:
    _, url = control
    with httpx.Client(base_url=url, timeout=60, headers={"Accept": accept}) as client:
        for path in every_path():
            for method in METHODS:
                answer = client.request(method, path)
                where = (method, path)
                if path == "/healthz" and method in ("GET", "HEAD"):
                    assert answer.status_code in (200, 405), where
                    continue
                assert answer.status_code == 401, where
                assert answer.headers["www-authenticate"] == 'Bearer realm="cryoflux"', where
                page = accept == "text/html" and method in ("GET", "HEAD")
                kind = "text/html; charset=utf-8" if page else "application/problem+json"
                assert answer.headers["content-type"] == kind, where
                assert "allow" not in answer.headers, where
                assert "location" not in answer.headers, where
        assert client.get("/healthz").json()["status"] == "alive"


def test_with_a_viewers_token_nothing_can_be_changed(control: tuple[Part, str]) -> None:
    _, url = control
    with httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {VIEWER}"}) as client:
        for path in every_path():
            for method in set(METHODS) - {"GET", "HEAD", "OPTIONS"}:
                if path == "/api/v1/sign-in":
                    continue
                assert client.request(method, path).status_code == 403, (method, path)
        for path in ("/", "/metrics", "/openapi.json", "/api/v1/docs", "/api/v1/sessions"):
            assert client.get(path).status_code == 200, path


def test_the_token_is_in_no_log_and_in_no_arguments(control: tuple[Part, str]) -> None:
    part, url = control
    httpx.get(f"{url}/readyz", headers={"Authorization": "Bearer a-wrong-token-that-is-shown"}, timeout=60)
    eventually(lambda: "a wrong token was shown" in part.log.read_text(), "it is told")
    arguments = " ".join(psutil.Process(part.process.pid).cmdline())
    for secret in (OPERATOR, VIEWER, "a-wrong-token-that-is-shown"):
        assert secret not in part.log.read_text()
        assert secret not in arguments


def test_commands_say_what_to_set(control: tuple[Part, str], tmp_path: Path) -> None:
    _, url = control
    for command in (("status",), ("stop",), ("start", "--wait", "0"), ("change", "--compression", "4")):
        done = cryoflux(tmp_path, *command, "--url", url)
        expected = f"cryoflux {command[0]}: {url} asks for a token: set CRYOFLUX_TOKEN\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
    done = cryoflux(tmp_path, "status", "--url", url, token="another-token-of-mine")
    assert done.stderr == f"cryoflux status: {url} knows no such token: set CRYOFLUX_TOKEN to one it knows\n"
    done = cryoflux(tmp_path, "status", "--url", url, token="a token")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    done = cryoflux(tmp_path, "stop", "--url", url, token=VIEWER)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "the viewer's token lets you look" in done.stderr
    assert "set CRYOFLUX_TOKEN" in done.stderr


@pytest.mark.parametrize(
    "shown", [{"token": VIEWER}, {"viewer_token": VIEWER}, {"token": VIEWER, "operator_token": "x" * 20}]
)
def test_commands_show_the_token_they_are_given(
    control: tuple[Part, str], tmp_path: Path, shown: dict[str, str]
) -> None:
    _, url = control
    done = cryoflux(tmp_path, "status", "--url", url, **shown)
    assert done.returncode == 1  # there is no detector
    assert done.stderr == ""
    assert "no detector is registered" in done.stdout


# ---- what does not start

BEYOND = {"http_host": "0.0.0.0"}
REFUSED = {
    "control": (("control", "--host", "0.0.0.0", "--port", "0"), {}, "CRYOFLUX_OPERATOR_TOKEN"),
    "an address": (("control", "--port", "0"), {"http_host": "192.0.2.77"}, "CRYOFLUX_OPERATOR_TOKEN"),
    "IPv6": (("control", "--host", "::", "--port", "0"), {}, "CRYOFLUX_OPERATOR_TOKEN"),
    "a name": (("control", "--host", "some.name", "--port", "0"), {}, "CRYOFLUX_OPERATOR_TOKEN"),
    "published": (("control", "--port", "0"), {"http_published": "cryo.example"}, "CRYOFLUX_OPERATOR_TOKEN"),
    "live": (("live", "--host", "0.0.0.0", "--port", "0"), {}, "CRYOFLUX_OPERATOR_TOKEN"),
    "serve": (("serve", "--port", "0"), {"http_host": "0.0.0.0"}, "CRYOFLUX_OPERATOR_TOKEN"),
    "viewer only": (("serve", "--port", "0"), {**BEYOND, "viewer_token": VIEWER}, "operator_token is needed"),
    "short": (("control", "--port", "0"), {**BEYOND, "operator_token": "abc"}, "at least 16 letters"),
    "the same": (
        ("control", "--port", "0"),
        {"operator_token": OPERATOR, "viewer_token": OPERATOR},
        "it is the operator_token too",
    ),
    "detector's metrics": (
        ("detector", "--data-bind", "ipc:///tmp/none"), {"metrics_host": "0.0.0.0"}, "'metrics' in"
    ),
    "worker's metrics": (("reconstructor",), {"metrics_host": "0.0.0.0"}, "'metrics' in"),
    "no such certificate": (("control", "--port", "0"), {"http_certificate": "/no.pem"}, "/no.pem: No such"),
    "a key alone": (("serve", "--port", "0"), {"http_key": "/none.pem"}, "http_certificate is needed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_open_is_not_started(tmp_path: Path, name: str) -> None:
    command, settings, words = REFUSED[name]
    if command[0] in ("live", "serve"):
        folder = "--output" if command[0] == "live" else "--results"
        command = (*command, folder, str(tmp_path / "results"))
    done = cryoflux(tmp_path, *command, **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"cryoflux {command[0]}: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert VIEWER not in done.stderr
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "state.sqlite").exists()


def test_pem_files_that_cannot_be_used_are_told_in_one_line(tmp_path: Path) -> None:
    certificate, key = pem(tmp_path)
    _, other_key = pem(tmp_path, "other")
    encrypted, cut, text = (str(tmp_path / name) for name in ("encrypted.key", "cut.crt", "text.crt"))
    subprocess.run(
        [program("openssl", "openssl"), "rsa", "-aes256", "-in", key, "-passout", "pass:secret",
         "-out", encrypted],
        check=True, capture_output=True,
    )  # fmt: skip
    Path(cut).write_bytes(Path(certificate).read_bytes()[:300])
    Path(text).write_text("hello\n")
    for given, its_key, words in (
        (certificate, other_key, f"{other_key} is not the key of {certificate}"),
        (certificate, encrypted, f"{encrypted} is encrypted"),
        (cut, key, "no certificate and its key in PEM"),
        (text, key, "no certificate and its key in PEM"),
        (certificate, "", "no certificate with its key in PEM"),
        (str(tmp_path), key, "Is a directory"),
    ):
        done = cryoflux(tmp_path, "control", "--port", "0", http_certificate=given, http_key=its_key)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert words in done.stderr


# ---- HTTPS


def test_rest_is_served_by_https_and_commands_trust_whom_they_are_told_to(tmp_path: Path) -> None:
    certificate, key = pem(tmp_path)
    part = Part(tmp_path, r"REST on https://[^:]+:(\d+)", "control", "--host", "0.0.0.0", "--port", "0",
                operator_token=OPERATOR, http_certificate=certificate, http_key=key)  # fmt: skip
    try:
        url = f"https://{outer_address()}:{part.port}"
        trusting = ssl.create_default_context(cafile=certificate)
        with httpx.Client(base_url=url, verify=trusting, timeout=60) as client:
            assert client.get("/readyz").status_code == 401
            answer = client.post("/api/v1/sign-in", json={"token": OPERATOR})
            assert "; Secure" in answer.headers["set-cookie"]
            assert client.get("/openapi.json").status_code == 200
            (target,) = client.get("/metrics/targets").json()
            assert target["labels"]["__scheme__"] == "https"
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{outer_address()}:{part.port}/healthz", timeout=60)
        done = cryoflux(tmp_path, "status", "--url", url, token=OPERATOR)
        assert done.returncode == 1
        assert "CERTIFICATE_VERIFY_FAILED" in done.stderr
        assert done.stderr.count("\n") == 1
        for address in (url, f"https://127.0.0.1:{part.port}"):
            done = subprocess.run(
                [*CRYOFLUX, "status", "--url", address], capture_output=True, text=True, check=False,
                timeout=PATIENCE_SECONDS,
                env={**environment(tmp_path, token=OPERATOR), "SSL_CERT_FILE": certificate},
            )  # fmt: skip
            assert "no detector is registered" in done.stdout, done.stderr
    finally:
        part.close()


# ---- detector and worker


@pytest.mark.parametrize(
    "command", [("detector", "--data-bind", "ipc://{folder}/data"), ("reconstructor", "--device", "cpu")]
)
def test_metrics_are_behind_the_token_too(tmp_path: Path, command: tuple[str, ...]) -> None:
    words = [word.format(folder=tmp_path) for word in command]
    part = Part(tmp_path, r"metrics on http://[^:]+:(\d+)/metrics", *words,
                metrics_host="0.0.0.0", operator_token=OPERATOR, viewer_token=VIEWER)  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://{outer_address()}:{part.port}", timeout=60) as client:
            for path in ("/metrics", "/", "/metrics/", "//metrics", "/none", "/favicon.ico"):
                for method in METHODS:
                    for token in ("", "a-wrong-token-that-is-shown"):
                        if token and method != "GET":
                            continue  # each takes its time
                        headers = {"Authorization": f"Bearer {token}"} if token else {}
                        assert client.request(method, path, headers=headers).status_code == 401, (
                            method,
                            path,
                        )
            for token in (OPERATOR, VIEWER):
                answer = client.get("/metrics", headers={"Authorization": f"Bearer {token}"})
                assert answer.status_code == 200
                assert "cryoflux_build_info" in answer.text
                assert token not in answer.text
            assert client.get("/healthz").text == "alive\n"
    finally:
        part.close()


def test_a_whole_session_runs_beyond_loopback_by_https(tmp_path: Path) -> None:
    certificate, key = pem(tmp_path)
    output = tmp_path / "session"
    done = cryoflux(
        tmp_path, "live", "--host", "0.0.0.0", "--port", "0", "--input", "pattern", "--side", "32",
        "--frames", "40", "--rate", "100", "--workers", "1", "--output", str(output), results=str(tmp_path),
        operator_token=OPERATOR, http_certificate=certificate, http_key=key,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "40 acquired, 40 recovered, none lost" in done.stdout
    assert f"console  https://{socket.gethostname()}:" in done.stdout
    assert "curl -X PATCH https://127.0.0.1:" in done.stdout
    assert '"Authorization: Bearer $CRYOFLUX_TOKEN"' in done.stdout
    for path in [*output.rglob("*")]:
        if path.is_file():
            assert OPERATOR.encode() not in path.read_bytes(), path
    assert OPERATOR not in done.stdout + done.stderr
