"""A Redis server that asks for a password and speaks TLS: what an address can say, and what of it is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from common.state.redis import RedisStore
from common.state.store import SessionRecord, StoreError
from services.supervisor import free_port
from tests.conftest import program
from tests.redis_server import RedisServer
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)

PATIENCE_SECONDS = 120.0
WORD, WRONG = "right-w0rd", "wr0ng-word"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
RECORD = SessionRecord("a", 1.0, "running", {"x": 1})


def openssl(*arguments: str | Path) -> None:
    subprocess.run([program("openssl", "openssl"), *map(str, arguments)], check=True, capture_output=True)


class Certificates:
    """An authority, and certificates that it has signed: of a server here, of one elsewhere, of a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ca", "other-ca"):
            openssl("req", "-x509", *NEW_KEY, "-days", 2, "-subj", f"/CN={name}",
                    "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")  # fmt: skip
        hosts = {"here": "IP:127.0.0.1", "elsewhere": "DNS:elsewhere", "client": "DNS:client"}
        for name, host in hosts.items():
            openssl("req", *NEW_KEY, "-subj", f"/CN={name}",
                    "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.csr")  # fmt: skip
            (folder / f"{name}.ext").write_text(f"subjectAltName={host}\n")
            openssl("x509", "-req", "-in", folder / f"{name}.csr", "-CA", folder / "ca.pem", "-CAkey",
                    folder / "ca.key", "-CAcreateserial", "-days", 2, "-extfile", folder / f"{name}.ext",
                    "-out", folder / f"{name}.pem")  # fmt: skip

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


class Tls:
    """A server that has a TLS port beside its plain one, which the tests speak to it by."""

    def __init__(self, folder: Path, certificates: Certificates, name: str, *, asks: bool = False) -> None:
        folder.mkdir()
        self.port, self._certificates = free_port("127.0.0.1"), certificates
        options = ["--tls-port", str(self.port), "--tls-ca-cert-file", str(certificates / "ca.pem"),
                   "--tls-cert-file", str(certificates / f"{name}.pem"),
                   "--tls-key-file", str(certificates / f"{name}.key"),
                   "--tls-auth-clients", "yes" if asks else "no"]  # fmt: skip
        self.server = RedisServer(folder, options)

    def url(self, word: str = "", **parameters: str | Path) -> str:
        login = f":{word}@" if word else ""
        asked = "&".join(f"{name}={value}" for name, value in parameters.items())
        return f"rediss://{login}127.0.0.1:{self.port}/0?{asked}"

    def trusted(self, word: str = "", **parameters: str | Path) -> str:
        return self.url(word, ssl_ca_certs=self._certificates / "ca.pem", **parameters)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls(tmp_path: Path, certificates: Certificates) -> Iterator[Tls]:
    opened = Tls(tmp_path / "redis", certificates, "here")
    with opened.server as server, server.client() as client:
        client.config_set("requirepass", WORD)
        yield opened


def kept(url: str) -> bool:
    """Whether a session that is written there can be read again."""
    store = RedisStore(url, timeout_seconds=20)
    try:
        store.save_session(RECORD)
        return store.session("a") == RECORD
    finally:
        store.close()


def refusal(url: str) -> str:
    with pytest.raises(StoreError) as caught:
        kept(url)
    line = str(caught.value)
    assert "\n" not in line
    assert WORD not in line
    assert WRONG not in line
    return line


def test_a_password_travels_encrypted_to_a_server_that_is_known(tls: Tls) -> None:
    assert kept(tls.trusted(WORD))


def test_a_server_that_nobody_vouches_for_is_not_spoken_to(tls: Tls, certificates: Certificates) -> None:
    for url in (tls.url(WORD), tls.url(WORD, ssl_ca_certs=certificates / "other-ca.pem")):
        assert "certificate" in refusal(url).lower()
    assert "No such file" in refusal(tls.url(WORD, ssl_ca_certs="/nowhere/ca.pem"))


def test_a_certificate_of_another_host_is_refused(tmp_path: Path, certificates: Certificates) -> None:
    elsewhere = Tls(tmp_path / "redis", certificates, "elsewhere")
    with elsewhere.server:
        assert "certificate" in refusal(elsewhere.trusted(WORD)).lower()


def test_a_plain_address_of_a_tls_port_is_told_in_one_line(tls: Tls) -> None:
    assert "state store redis://:***@127.0.0.1" in refusal(f"redis://:{WORD}@127.0.0.1:{tls.port}/0")


def test_a_server_that_asks_for_certificates_is_shown_ours(
    tmp_path: Path, certificates: Certificates
) -> None:
    strict = Tls(tmp_path / "redis", certificates, "here", asks=True)
    ours = {"ssl_certfile": certificates / "client.pem", "ssl_keyfile": certificates / "client.key"}
    with strict.server:
        refusal(strict.trusted())
        assert kept(strict.trusted(**ours))


def test_a_user_with_few_rights_is_enough(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        with server.client() as client:
            rights = "~cryoflux:* resetchannels -@all +@read +@write +@connection +@transaction"
            client.execute_command("ACL", "SETUSER", "flux", "on", f">{WORD}", *rights.split(), "+info")
            client.execute_command("ACL", "SETUSER", "flux2", "on", f">{WORD}", *rights.split())
            client.execute_command("ACL", "SETUSER", "other", "on", f">{WORD}", "~other:*", "+@all")
        for user in ("flux", "flux2"):  # without INFO it is not known whether the server was started anew
            assert kept(f"redis://{user}:{WORD}@127.0.0.1:{server.port}/0")
        assert "permission" in refusal(f"redis://other:{WORD}@127.0.0.1:{server.port}/0").lower()
        assert "password" in refusal(f"redis://flux:{WRONG}@127.0.0.1:{server.port}/0").lower()


def test_a_wrong_password_is_told_once_and_tried_again_until_it_is_right(tmp_path: Path, tls: Tls) -> None:
    port = free_port("127.0.0.1")
    with (tmp_path / "control.log").open("w") as log:
        control = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "control", "--port", str(port)],
            env={**os.environ, "CRYOFLUX_STATE": tls.trusted(WRONG), "CRYOFLUX_LOG_LEVEL": "debug",
                 "CRYOFLUX_CONTROL_ENDPOINT": f"tcp://127.0.0.1:{free_port('127.0.0.1')}"},
            stdout=log, stderr=log, cwd=tmp_path,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:

            def readiness() -> dict[str, Any]:
                assert control.poll() is None, (tmp_path / "control.log").read_text()
                try:
                    return client.get("/readyz").json()
                except httpx.TransportError:
                    return {}

            told = eventually(lambda: readiness().get("store") == "failing" and readiness(), "it is told")
            assert "password" in told["detail"]
            with redis.Redis(port=tls.server.port, password=WORD) as other:

                def tries() -> int:
                    return sum(int(entry["count"]) for entry in other.acl_log() if entry["reason"] == "auth")

                seen, began = eventually(tries, "it is tried"), time.monotonic()
                eventually(lambda: tries() >= seen + 4, "it is tried again")
                assert (tries() - seen) / (time.monotonic() - began) < 10  # a second: no storm
                other.config_set("requirepass", WRONG)  # what it shows is right from now on
            eventually(lambda: readiness().get("store") == "ok", "it goes on by itself")
    finally:
        control.terminate()
        assert control.wait(PATIENCE_SECONDS) == 0
    lines = (tmp_path / "control.log").read_text()
    assert WRONG not in lines
    failed = [line for line in lines.splitlines() if "state store rediss://:***@" in line]
    assert 1 <= len(failed) <= 2, lines  # when it is first read, and when it is first written
    assert "can be written again" in lines
