"""Keys as files: made once, read with care, and only by who may."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
from zmq.auth import load_certificate

from common.protection import NotProtected
from common.settings import Settings
from common.wire.keys import CONTROL_BUS, DATA_PLANE, Keyring, make_keys, mark_of, role_of
from common.wire.planes import Planes

CRYOFLUX = (sys.executable, "-m", "services.cli")
ELSEWHERE = "tcp://192.0.2.7:5550"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


def test_keys_are_pairs_that_only_their_owner_can_read(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "control.key", "control.key_secret", "detector.key", "detector.key_secret", "worker.key",
        "worker.key_secret",
    ]  # fmt: skip
    assert folder.stat().st_mode & 0o777 == 0o700
    secrets = set()
    for name in ("control", "detector", "worker"):
        public, nothing = load_certificate(folder / f"{name}.key")
        again, secret = load_certificate(folder / f"{name}.key_secret")
        assert nothing is None
        assert secret is not None
        assert public == again == zmq.curve_public(secret)
        assert secret not in (folder / f"{name}.key").read_bytes()
        assert (folder / f"{name}.key_secret").stat().st_mode & 0o777 == 0o600
        secrets.add(secret)
    assert len(secrets) == 3


def test_no_key_is_ever_replaced(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "detector.key_secret").unlink()
    with pytest.raises(ValueError, match=r"control\.key is there already"):
        make_keys(folder)
    with pytest.raises(ValueError, match=r"detector\.key is there already"):
        make_keys(folder, ["node7", "detector"])
    del before["detector.key_secret"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["", "../worker", "a/b", ".hidden", "a b", "x" * 65, "-x", "a\n"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no name for a key"):
        make_keys(tmp_path / "keys", [name])
    assert not (tmp_path / "keys").exists()


def test_the_name_says_what_a_key_is_good_for() -> None:
    assert [role_of(name) for name in ("control", "control-2", "controller", "detector_b", "detector.b")] == [
        "control", "control", "worker", "detector", "detector",
    ]  # fmt: skip
    assert [role_of(name) for name in ("worker", "worker-7", "node7", "my-detector")] == ["worker"] * 4


def test_a_secret_key_never_shows(folder: Path) -> None:
    keyring = Keyring(folder, "worker")
    pair = keyring.pair()
    assert pair.secret.decode() not in f"{pair!r} {pair} {keyring!r} {vars(keyring)}"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o644, 0o666])
def test_a_secret_that_others_can_read_is_refused(folder: Path, mode: int) -> None:
    (folder / "worker.key_secret").chmod(mode)
    with pytest.raises(NotProtected) as refused:
        Keyring(folder, "worker")
    assert refused.value.strerror == (
        f"keys: {folder}/worker.key_secret can be read by others (mode {mode:04o}): "
        f"chmod 600 {folder}/worker.key_secret"
    )


def test_a_folder_that_anybody_can_put_keys_into_is_refused(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(NotProtected, match="anybody can put keys into"):
        Keyring(folder, "worker")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        (b"", "holds no CURVE key"),
        (b"\xff\xfe\x00", "holds no CURVE key"),
        (b'curve\n    public-key = "short"\n', "holds no CURVE key"),
        (b'curve\n    public-key = "' + b"~" * 40 + b'"\n', "holds no CURVE key"),
        (b"x" * 100_000, "holds no CURVE key"),
    ],
)
def test_a_file_that_is_no_key_is_one_clear_line(folder: Path, content: bytes | None, said: str) -> None:
    path = folder / "worker.key_secret"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(NotProtected) as refused:
        Keyring(folder, "worker")
    assert refused.value.strerror is not None
    assert str(path) in refused.value.strerror
    assert said in refused.value.strerror
    assert "\n" not in refused.value.strerror


def test_halves_of_different_keys_are_refused(folder: Path) -> None:
    public = (folder / "detector.key").read_text().split('"')[1]
    path = folder / "worker.key_secret"
    own = path.read_text().split('public-key = "')[1].split('"')[0]
    path.write_text(path.read_text().replace(own, public))
    with pytest.raises(NotProtected, match="do not belong together"):
        Keyring(folder, "worker")


def test_who_is_let_in_follows_the_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keyring = Keyring(folder, "detector")

    def names() -> list[str]:
        return [member.name for member in keyring.members().all()]

    assert names() == ["control", "detector", "worker"]
    assert keyring.members() is keyring.members()  # nothing is read where nothing has changed
    make_keys(folder, ["node7"])
    assert names() == ["control", "detector", "node7", "worker"]
    key = keyring.public("worker")
    (folder / "worker.key").unlink()
    assert names() == ["control", "detector", "node7"]
    assert keyring.members().get(key.decode()) is None
    assert not keyring.members().includes(b"worker-1" + mark_of(key))
    (folder / "rubbish.key").write_text("no key")
    assert names() == ["control", "detector", "node7"]
    assert "rubbish.key holds no CURVE key; it is not let in" in caplog.text
    shutil.rmtree(folder)
    assert names() == []
    assert "nobody is let in" in caplog.text


def test_a_key_written_anew_under_its_name_takes_the_place_of_the_old_one(folder: Path) -> None:
    keyring = Keyring(folder, "detector")
    old = keyring.public("worker").decode()
    keyring.members()
    (folder / "worker.key").unlink()
    (folder / "worker.key_secret").unlink()
    make_keys(folder, ["worker"])
    new = keyring.public("worker").decode()
    assert new != old
    assert keyring.members().get(old) is None
    assert keyring.members().get(new) is not None


# ---- settings


def test_loopback_needs_no_keys() -> None:
    planes = Planes(Settings(), "detector")
    for endpoint in ("tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://localhost:1", "ipc:///tmp/x", "inproc://x"):
        planes.check_control_bus(endpoint)
        planes.check_data_plane(endpoint)
    assert planes.control_bus is planes.data_plane is None


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://0.0.0.0:5550", "tcp://*:5550", "tcp://[::]:5550", ELSEWHERE, "tcp://head:5550", "tcp://eth0:5550",
        "tcp://127.0.0.1.example.org:5550", "tcp://127.0.0.1:0;192.0.2.7:5550", "tcp://localhost.:1",
        "udp://127.0.0.1:5550", "ws://127.0.0.1:5550", "nonsense",
    ],
)  # fmt: skip
def test_beyond_loopback_keys_are_needed(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    for check in (
        Planes(Settings(), "worker").check_control_bus,
        Planes(Settings(), "worker").check_data_plane,
    ):
        with pytest.raises(NotProtected) as refused:
            check(endpoint)
        assert refused.value.strerror is not None
        assert endpoint in refused.value.strerror
        assert "'cryoflux keys new'" in refused.value.strerror
        assert "\n" not in refused.value.strerror
    allowed = Planes(Settings(unprotected=("planes",)), "worker")
    for _ in range(3):
        allowed.check_control_bus(endpoint)
    assert caplog.text.count("is neither encrypted nor protected") == 1


def test_allowing_open_metrics_does_not_open_the_planes() -> None:
    with pytest.raises(NotProtected):
        Planes(Settings(unprotected=("metrics",)), "worker").check_control_bus(ELSEWHERE)


def test_with_keys_the_planes_may_be_anywhere(folder: Path) -> None:
    planes = Planes(Settings(keys=str(folder)), "detector")
    planes.check_control_bus(ELSEWHERE)
    planes.check_data_plane("tcp://0.0.0.0:0")
    assert planes.control_bus is not None
    assert planes.data_plane is not None
    assert (planes.control_bus.plane, planes.data_plane.plane) == (CONTROL_BUS, DATA_PLANE)
    assert planes.data_plane.keys.own == "detector"


@pytest.mark.parametrize(
    ("changes", "missing", "said"),
    [
        ({}, "worker.key_secret", "worker.key_secret: No such file"),
        ({}, "control.key", "control.key: no such file"),
        ({}, "detector.key", "detector.key: no such file"),
        ({"key": "detector"}, None, "key: detector is the key of a detector, and this is a worker"),
        ({"key": "node7"}, None, "node7.key_secret: No such file"),
        ({"keys": "/nowhere/keys"}, None, "/nowhere/keys/worker.key_secret: No such file"),
    ],
)
def test_a_worker_without_what_it_needs_says_what(
    folder: Path, changes: dict[str, str], missing: str | None, said: str
) -> None:
    if missing:
        (folder / missing).unlink()
    with pytest.raises(NotProtected) as refused:
        Planes(Settings.model_validate({"keys": str(folder), **changes}), "worker")
    assert refused.value.strerror is not None
    assert said.lower() in refused.value.strerror.lower()
    assert "\n" not in refused.value.strerror


# ---- the command


def cryoflux(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CRYOFLUX, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )


def test_the_command_makes_keys_and_says_what_belongs_where(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    made = cryoflux("keys", "new", str(folder))
    assert made.returncode == 0
    for line in ("control.key_secret detector.key worker.key", "detector.key_secret control.key worker.key",
                 "worker.key_secret control.key detector.key"):  # fmt: skip
        assert f"    {line}\n" in made.stdout
    shown = cryoflux("keys", "show", str(folder)).stdout
    for path in folder.glob("*.key_secret"):
        public, secret = load_certificate(path)
        assert secret is not None
        assert secret.decode() not in made.stdout + made.stderr + shown
        assert public.decode() in shown
    again = cryoflux("keys", "new", str(folder))
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == (
        f"cryoflux keys new: {folder}/control.key is there already: delete it first, or choose another name\n"
    )
    more = cryoflux("keys", "new", str(folder), "--name", "node7", "--name", "node8")
    assert more.returncode == 0
    assert "CRYOFLUX_KEY=node7" in more.stdout
    (folder / "node8.key").write_text("no key")
    listed = cryoflux("keys", "show", str(folder))
    assert listed.returncode == 1
    assert "node8.key holds no CURVE key" in listed.stdout


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {cryoflux("keys", "token").stdout.strip() for _ in range(3)}
    assert len(tokens) == 3
    assert all(len(token) == 43 for token in tokens)
    assert Settings.model_validate({"operator_token": tokens.pop()}).operator_token is not None


@pytest.mark.parametrize(
    ("arguments", "plane"),
    [
        (["control", "--control-endpoint", "tcp://0.0.0.0:5550", "--port", "0"], "control bus"),
        (["detector", "--data-bind", "tcp://0.0.0.0:0"], "data plane"),
        (["detector", "--control-endpoint", ELSEWHERE], "control bus"),
        (["reconstructor", "--control-endpoint", ELSEWHERE], "control bus"),
        (["reconstructor", "--data-endpoint", ELSEWHERE], "data plane"),
    ],
)
def test_every_part_refuses_to_go_beyond_this_machine_without_keys(arguments: list[str], plane: str) -> None:
    refused = cryoflux(*arguments)
    assert refused.returncode == 2
    lines = refused.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"cryoflux {arguments[0]}: {plane} on tcp://")
    assert "beyond this machine it needs keys" in lines[0]
